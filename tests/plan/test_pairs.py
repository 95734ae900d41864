"""Data in batches: what is odd about prompts is said, and what is given is read alike everywhere."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.plan import PromptPairs
from tests.models import TYPICAL, tokens, wrapped

CLEAN, CORRUPT = tokens(1, batch=3), tokens(2, batch=3)
RIGHT, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])


@pytest.fixture
def model() -> ct.PatchableModel:
    return wrapped(TYPICAL[0])


def calls(model: ct.PatchableModel) -> list[Any]:
    """All that takes pairs of prompts."""
    scores = ct.score_edges(model, (CLEAN, CORRUPT, RIGHT, WRONG))
    return [
        lambda data, **more: ct.score_edges(model, data, **more),
        lambda data, **more: ct.exact_scores(model, data, edges="*->Resid End", **more),
        lambda data, **more: ct.acdc(model, data, "logit_diff", threshold=100.0, **more),
        lambda data, **more: ct.faithfulness(model, data, scores, sizes=[1], **more),
    ]


@pytest.mark.filterwarnings("ignore::circuit_trace.DataWarning")
def test_prompts_that_are_all_the_same_are_refused(model: ct.PatchableModel) -> None:
    message = r"^Each corrupt prompt is the same as its clean prompt, so patching changes nothing"
    for call in calls(model):
        for data in ((CLEAN, CLEAN, RIGHT, WRONG), [(CLEAN, CLEAN.clone(), RIGHT, WRONG)]):
            with pytest.raises(ct.InputError, match=message):
                call(data)


def test_some_prompts_that_are_the_same_are_said(model: ct.PatchableModel) -> None:
    some = torch.cat([CORRUPT[:1], CLEAN[1:2], CORRUPT[2:]])
    message = (
        r"^Batch 1: the corrupt prompts \[1\] are the same as their clean prompts, so patching"
    )
    for call in calls(model):
        with pytest.warns(ct.DataWarning, match=message):
            call([(CLEAN, CORRUPT, RIGHT, WRONG), (CLEAN, some, RIGHT, WRONG)])


def test_prompts_may_be_the_same_where_something_else_is_patched_in(
    model: ct.PatchableModel,
) -> None:
    data = (CLEAN, CLEAN, RIGHT, WRONG)
    expected = ct.score_edges(model, {"clean": CLEAN, "answers": RIGHT, "wrong_answers": WRONG},
                              ablation=ct.AblationType.ZERO)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ct.score_edges(model, data, ablation=ct.AblationType.ZERO)
        ct.score_edges(model, data, patched=model.source_outputs(CORRUPT))
    for key, score in expected.items():
        assert torch.equal(found[key], score)


def test_a_trace_of_a_prompt_patched_from_itself_says_so(model: ct.PatchableModel) -> None:
    with pytest.warns(ct.DataWarning, match=r"^The corrupt prompts are the same as the clean ones"):
        model.trace(CLEAN, corrupt=CLEAN, edges=["A0.1->Resid End"])


def test_padding_alone_does_not_make_prompts_differ(model: ct.PatchableModel) -> None:
    mask = torch.ones_like(CLEAN)
    mask[:, :2] = 0
    other = CLEAN.clone()
    other[:, :2] = 9
    data = {"clean": CLEAN, "corrupt": other, "attention_mask": mask}
    with pytest.raises(
        ct.InputError, match=r"^Each corrupt prompt is the same as its clean prompt"
    ):
        ct.score_edges(model, data, "loss")


def test_a_batch_that_was_read_is_data_too(model: ct.PatchableModel) -> None:
    mask = torch.ones_like(CLEAN)
    mask[0, :2] = 0
    data = {"clean": CLEAN, "corrupt": CORRUPT, "answers": RIGHT, "wrong_answers": WRONG}
    (pairs,) = model.pairs_of({**data, "attention_mask": mask})
    assert isinstance(pairs, PromptPairs)
    expected = ct.score_edges(model, {**data, "attention_mask": mask})
    for again in (pairs, [pairs]):
        found = ct.score_edges(model, again)
        for key, score in expected.items():
            assert torch.equal(found[key], score)
    mean = ct.AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT
    one, other = (
        model.source_outputs(d, mean)["A0.1"] for d in (pairs, {**data, "attention_mask": mask})
    )
    assert torch.equal(one, other)


def test_the_last_position_of_each_prompt(model: ct.PatchableModel) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]])
    (pairs,) = model.pairs_of({"clean": CLEAN, "corrupt": CORRUPT, "attention_mask": mask})
    assert pairs.last.tolist() == [5, 2, 4]
    logits = torch.arange(3 * 6 * 2.0).view(3, 6, 2)
    assert torch.equal(
        pairs.last_logits(logits), torch.stack([logits[0, 5], logits[1, 2], logits[2, 4]])
    )
    (plain,) = model.pairs_of((CLEAN, CORRUPT))
    assert plain.last.tolist() == [5, 5, 5]
    assert torch.equal(plain.last_logits(logits), logits[:, 5])


def test_prompts_that_do_not_fit(model: ct.PatchableModel) -> None:
    message = (
        r"^Batch 0: Clean and corrupt prompts must have the same number .* \(3, 6\) and \(3, 5\)"
    )
    for call in calls(model):
        with pytest.raises(ct.InputError, match=message):
            call((CLEAN, CORRUPT[:, :5], RIGHT, WRONG))
