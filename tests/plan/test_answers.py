"""Answers in every form, those that are none, and those that are hardly what was meant."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.plan import PromptPairs
from circuit_trace.plan.answers import Twin
from tests.models import TYPICAL, tokens, wrapped

CLEAN, CORRUPT = tokens(1, batch=3), tokens(2, batch=3)
RIGHT: list[list[int]] = [[1, 2], [3], [4, 5, 6]]
WRONG: list[list[int]] = [[7], [8, 9, 10], [11]]


@pytest.fixture
def model() -> ct.PatchableModel:
    return wrapped(TYPICAL[0])


def read(model: ct.PatchableModel, *answers: Any, n: int = 3) -> PromptPairs:
    return next(iter(model.pairs_of((CLEAN[:n], CORRUPT[:n], *answers))))


def plain(logits: Tensor) -> Tensor:
    """Each prompt's mean over its own answers less that over its own wrong ones."""
    last = logits[:, -1]
    return torch.stack(
        [
            last[i, r].mean() - last[i, w].mean()
            for i, (r, w) in enumerate(zip(RIGHT, WRONG, strict=True))
        ]
    )


@pytest.mark.parametrize("method", ["eap", "exact", "mask-gradient"])
def test_as_many_answers_as_a_prompt_has(model: ct.PatchableModel, method: str) -> None:
    expected = ct.score_edges(
        model, (CLEAN, CORRUPT), lambda logits, batch: plain(logits), method=method
    )
    for right, wrong in (
        (RIGHT, WRONG),
        ([torch.tensor(row) for row in RIGHT], [torch.tensor(row) for row in WRONG]),
        (torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, 6]]), WRONG),
    ):
        found = ct.score_edges(model, (CLEAN, CORRUPT, right, wrong), method=method)
        for key, score in expected.items():
            assert_close(found[key], score, rtol=1e-5, atol=1e-6)


def test_log_probabilities_of_as_many_answers_as_there_are(model: ct.PatchableModel) -> None:
    data = (CLEAN, CORRUPT, RIGHT)
    found = ct.faithfulness(
        model, data, ct.score_edges(model, data, "answer_logprob"), "answer_logprob", sizes=[1]
    )
    with torch.no_grad():
        last = model(CLEAN)[:, -1].log_softmax(-1)
    expected = [float(last[i, row].mean()) for i, row in enumerate(RIGHT)]
    assert found.clean.tolist() == pytest.approx(expected, rel=1e-5)


FORMS: dict[str, tuple[Any, list[list[int]]]] = {
    "ids": (torch.tensor([1, 2, 3]), [[1], [2], [3]]),
    "rows of ids": (torch.tensor([[1, 2], [3, 4], [5, 6]]), [[1, 2], [3, 4], [5, 6]]),
    "a list": ([1, 2, 3], [[1], [2], [3]]),
    "lists": ([[1], [2, 3], [4]], [[1, -1], [2, 3], [4, -1]]),
    "tensors in a list": ([torch.tensor(1), torch.tensor([2, 3]), 4], [[1, -1], [2, 3], [4, -1]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_answers(model: ct.PatchableModel, form: str) -> None:
    given, expected = FORMS[form]
    found = read(model, given).answers
    assert found is not None
    assert found.tolist() == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "rows": ([1, 2], r"^Batch 0: answers must have a row for each of the 3 prompts; got the shape"),
    "none of one": ([[1], [], [2]], r"^Batch 0: Prompt 1 has none of the answers: each needs one"),
    "all fill": (torch.full((3, 1), -1), r"^Batch 0: Prompt 0 has none of the answers"),
    "negative": (
        [1, 2, -3],
        r"^Batch 0: answers run from -3 to 2; this model knows the tokens 0 to",
    ),
    "too large": (
        [1, 2, 23],
        r"^Batch 0: answers run from 1 to 23; this model knows the tokens 0 to",
    ),
    "text": (
        ["a", "b", "c"],
        r"^Batch 0: Cannot read 'a' as one of the answers: expected a token's",
    ),
    "floats": (torch.rand(3), r"^Batch 0: answers must be token ids"),
    "booleans": ([True, 1, 2], r"^Batch 0: Cannot read True as one of the answers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_answers_that_are_none(model: ct.PatchableModel, case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(ct.InputError, match=message):
        read(model, given)


@pytest.mark.parametrize(
    ("right", "wrong", "prompt"),
    [
        ([1, 2, 3], [4, 2, 5], 1),
        ([[1, 2], [3], [4]], [[2, 1], [5], [6]], 0),
        ([1, 2, 3], [[4], [5], [3, 3]], 2),
    ],
)
def test_right_and_wrong_answers_that_are_the_same(
    model: ct.PatchableModel, right: Any, wrong: Any, prompt: int
) -> None:
    message = rf"^Batch 0: The answers and the wrong answers of prompt {prompt} are the same tokens"
    with pytest.raises(ct.InputError, match=message):
        read(model, right, wrong)


def test_answers_that_share_some_are_taken(model: ct.PatchableModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(model, [[1, 2, 2]] * 3, [[1, 1, 2]] * 3)


@pytest.mark.parametrize("given", [5, [5], torch.tensor(5), torch.tensor([[5, 6]])])
def test_one_answer_for_many_prompts_is_said(model: ct.PatchableModel, given: Any) -> None:
    with pytest.warns(
        ct.DataWarning, match=r"^One row of answers was given for 3 prompts, so it is"
    ):
        found = read(model, given).answers
    assert found is not None
    assert found.shape[0] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(model, given, n=1)


def test_several_answers_of_one_prompt_in_a_flat_list(model: ct.PatchableModel) -> None:
    message = (
        r"got the shape \(2, 1\)\. Several answers of one prompt are a list within the list\.$"
    )
    with pytest.raises(ct.InputError, match=message):
        read(model, [1, 2], n=1)


class Words:
    """A tokenizer in which a space before a word makes another token of it."""

    vocabulary = ("Paris", " Paris", " Rome", "Lon", "don", "!", " a")

    def to_ids(self, text: str) -> list[int]:
        found: list[int] = []
        while text:
            fits = [word for word in self.vocabulary if text.startswith(word)]
            word = max(fits, key=len, default=text[0])
            found.append(self.vocabulary.index(word) if fits else len(self.vocabulary))
            text = text[len(word) :]
        return found

    def to_strings(self, row: Tensor) -> list[str]:
        return [(*self.vocabulary, "?")[int(token)] for token in row]


@pytest.fixture
def reading() -> ct.PatchableModel:
    from dataclasses import replace

    words, base = Words(), wrapped(TYPICAL[0])
    unembed = base.anatomy.unembed
    assert unembed is not None
    known = replace(
        base.anatomy, to_strings=words.to_strings, unembed=replace(unembed, to_ids=words.to_ids)
    )
    return ct.wrap(base.wrapped_model, anatomy=known)


def test_an_answer_of_several_tokens_is_shown_in_pieces(reading: ct.PatchableModel) -> None:
    message = (
        r"^Batch 0: answers must be single tokens, but 'London' is 2 of them, \['Lon', 'don'\]\. Mind "
        r"the space before a word, choose words that are one token, or give the token that tells"
    )
    with pytest.raises(ct.InputError, match=message):
        read(reading, "London", n=1)
    with pytest.raises(ct.InputError, match="the tokenizer does not know 'x', it reads '\\?'"):
        read(reading, "x", n=1)


def test_texts_of_as_many_answers_as_there_are(reading: ct.PatchableModel) -> None:
    found = read(reading, [["Paris", " Rome"], "!", (" Paris",)]).answers
    assert found is not None
    assert found.tolist() == [[0, 2], [5, -1], [1, -1]]


def test_the_answer_that_the_model_spells_with_a_space(reading: ct.PatchableModel) -> None:
    """Both spellings are tokens: where the other has a much larger logit, both logits are said."""
    pairs = read(reading, ["Paris", " Paris", "!"], [" Rome", " a", "Paris"])
    twins = [(twin.prompt, twin.text, twin.twin_text) for twin in pairs.twins]
    assert twins == [(0, "Paris", " Paris"), (1, " Paris", "Paris"), (2, "Paris", " Paris")]
    with torch.no_grad():
        last = reading(CLEAN)[:, -1]
    for lift, is_said in ((3.0, True), (1.0, False)):
        biased = ct.PatchableModel(reading.wrapped_model, reading.anatomy, reading.graph)
        unembed = reading.wrapped_model.unembed

        def raised(_module: Any, _args: Any, out: Tensor, lift: float = lift) -> Tensor:
            out = out.clone()
            out[..., 1] = out[..., 0] + lift
            return out

        handle = unembed.register_forward_hook(raised)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            for method in ("eap", "eap-ig", "mask-gradient", "exact"):
                data = (CLEAN[:1], CORRUPT[:1], "Paris", " Rome")
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    ct.score_edges(biased, data, method=method)
                said = [str(one.message) for one in caught if one.category is ct.DataWarning]
                expected = (
                    f"The answer 'Paris' of prompt 0 has the logit {last[0, 0]:.2f} on the clean "
                    f"prompt, but ' Paris', a token too, has {last[0, 0] + lift:.2f}. Was ' Paris' "
                    "meant?"
                )
                assert said == ([expected] if is_said else [])
        finally:
            handle.remove()
    assert isinstance(pairs.twins[0], Twin)
