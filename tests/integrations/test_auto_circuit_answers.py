"""Every shape of answers, by hand: each value is looked up and averaged in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.integrations import auto_circuit as ac

BATCH, SEQ, D_VOCAB = 4, 3, 7
WHERE = {"last": (BATCH,), "each position": (BATCH, SEQ)}


def drawn(seed: int, *shape: int) -> Tensor:
    """Tokens, none of them twice for one prompt or position."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape[:-1], D_VOCAB, generator=generator).argsort(-1)[..., : shape[-1]]


def values(seed: int, *where: int) -> Tensor:
    return torch.randn(*where, D_VOCAB, generator=torch.Generator().manual_seed(seed))


def batch_of(right: Any, wrong: Any) -> Any:
    prompts = torch.zeros(BATCH, SEQ, dtype=torch.long)
    return ac.PromptPairBatch(1, 0, prompts, prompts, right, wrong)


def shapes(where: str, single: bool = False) -> dict[str, tuple[Any, Any]]:
    """Right and wrong answers: as many for each prompt, or lists with different numbers."""
    lead = WHERE[where]
    uneven = [drawn(9 + n, *lead[1:], 1 + n % 3) for n in range(BATCH)]
    one = {"one and one": (drawn(1, *lead, 1), (drawn(1, *lead, 1) + 2) % D_VOCAB)}
    one["one and three"] = (drawn(3, *lead, 1), drawn(4, *lead, 3))
    one["lists of one, of more"] = (list(drawn(3, *lead, 1)), uneven)
    if single:
        return one
    return {
        **one,
        "two and three": (drawn(5, *lead, 2), drawn(6, *lead, 3)),
        "lists of different numbers": (uneven, uneven[::-1]),
    }


CASES = [(where, kind) for where in WHERE for kind in shapes(where)]
SINGLE = [(where, kind) for where in WHERE for kind in shapes(where, single=True)]


def rows(vals: Tensor, answers: Any) -> list[list[list[float]]]:
    """By prompt and position the values of the answers."""
    found = []
    for prompt, tokens in zip(vals.tolist(), answers, strict=True):
        listed = tokens.tolist()
        at = [(prompt, listed)] if tokens.ndim == 1 else zip(prompt, listed, strict=True)
        found.append([[one[token] for token in chosen] for one, chosen in at])
    return found


def means(vals: Tensor, answers: Any) -> list[float]:
    """The mean value of each prompt's answers, at each position unless they are listed."""
    by_place = [[mean(at) for at in prompt] for prompt in rows(vals, answers)]
    if isinstance(answers, list):
        return [mean(prompt) for prompt in by_place]
    return [value for prompt in by_place for value in prompt]


@pytest.mark.parametrize(("where", "kind"), CASES)
def test_values_and_differences(where: str, kind: str) -> None:
    vals, target = values(1, *WHERE[where]), values(2, *WHERE[where])
    right, wrong = shapes(where)[kind]
    batch = batch_of(right, wrong)
    assert ac.batch_avg_answer_val(vals, batch).item() == pytest.approx(mean(means(vals, right)))
    assert ac.batch_avg_answer_val(vals, batch, True).item() == pytest.approx(
        mean(means(vals, wrong))
    )

    def differences(of: Tensor) -> list[float]:
        listed = isinstance(right, list) or isinstance(wrong, list)
        sides = [means(of, list(one) if listed else one) for one in (right, wrong)]
        return [r - w for r, w in zip(*sides, strict=True)]

    expected = differences(vals)
    found = ac.batch_answer_diffs(vals, batch)
    assert tuple(found.shape) == (WHERE[where] if isinstance(right, Tensor) else (BATCH,))
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert ac.batch_avg_answer_diff(vals, batch).item() == pytest.approx(mean(expected), abs=1e-6)
    percents = ac.batch_answer_diff_percents(vals, target, batch).flatten().tolist()
    assert percents == pytest.approx(
        [100 * one / whole for one, whole in zip(expected, differences(target), strict=True)],
        rel=1e-4,
    )


@pytest.mark.parametrize(("where", "kind"), SINGLE)
def test_how_many_are_right(where: str, kind: str) -> None:
    right, wrong = shapes(where, single=True)[kind]
    batch = batch_of(right, wrong)
    found, beaten = [], []
    for seed in range(6):
        vals = values(seed, *WHERE[where])
        places = list(zip(rows(vals, right), rows(vals, wrong), vals.tolist(), strict=True))
        highest, higher = [], []
        for rights, wrongs, row in places:
            everywhere = [row] if where == "last" else row
            for (one,), others, everything in zip(rights, wrongs, everywhere, strict=True):
                highest.append(one == max(everything))
                higher.append(one >= max(others))
        assert ac.correct_answer_proportion(vals, batch).item() == pytest.approx(mean(highest))
        greater = ac.correct_answer_greater_than_incorrect_proportion(vals, batch).item()
        assert greater == pytest.approx(mean(higher))
        found.append(mean(highest))
        beaten.append(mean(higher))
    assert len({*found}) > 1
    assert len({*beaten}) > 1


def test_a_model_that_is_right_at_every_position_is_right() -> None:
    answers = drawn(1, BATCH, SEQ, 1)
    batch = batch_of(answers, (answers + 1) % D_VOCAB)
    logits = torch.nn.functional.one_hot(answers[..., 0], D_VOCAB).float()
    assert ac.batch_avg_answer_val(logits, batch).item() == 1.0
    assert ac.batch_avg_answer_diff(logits, batch).item() == 1.0
    assert ac.correct_answer_proportion(logits, batch).item() == 1.0
    assert ac.correct_answer_greater_than_incorrect_proportion(logits, batch).item() == 1.0


def test_equal_values_count_as_the_first_of_them_says() -> None:
    """As `argmax` has it: the first of equal logits is the highest, and right stands before wrong."""
    batch = batch_of(torch.tensor([[0], [1], [0], [1]]), torch.tensor([[1], [0], [2], [2]]))
    flat = torch.zeros(BATCH, D_VOCAB)
    assert ac.correct_answer_proportion(flat, batch).item() == 0.5
    assert ac.correct_answer_greater_than_incorrect_proportion(flat, batch).item() == 1.0


def test_gradients_flow_to_each_answer_at_each_position() -> None:
    vals = values(1, BATCH, SEQ).requires_grad_()
    right, wrong = shapes("each position")["two and three"]
    ac.batch_avg_answer_diff(vals, batch_of(right, wrong)).backward()
    expected = torch.zeros(BATCH, SEQ, D_VOCAB)
    for prompt in range(BATCH):
        for at in range(SEQ):
            for tokens, share in ((right, 1 / 2), (wrong, -1 / 3)):
                for token in tokens[prompt, at].tolist():
                    expected[prompt, at, token] += share / (BATCH * SEQ)
    assert vals.grad is not None
    torch.testing.assert_close(vals.grad, expected)


def test_divergence_is_the_mean_over_all_positions() -> None:
    inputs, target = values(1, BATCH, SEQ).log_softmax(-1), values(2, BATCH, SEQ).log_softmax(-1)
    expected = mean(
        sum(
            float(torch.tensor(q).exp()) * (q - p)
            for p, q in zip(inputs[b, s].tolist(), target[b, s].tolist(), strict=True)
        )
        for b in range(BATCH)
        for s in range(SEQ)
    )
    assert ac.multibatch_kl_div(inputs, target).item() == pytest.approx(expected, rel=1e-4)


LAST, EVERY = values(1, BATCH), values(1, BATCH, SEQ)
ONE, THREE = drawn(1, BATCH, 1), drawn(2, BATCH, 3)
AT_EACH = drawn(3, BATCH, SEQ, 1)

SHAPES = r"Answers must be tokens \[n_answers\] for each prompt, or for each of its positions"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "answers at each position, values at the last": (
        lambda: ac.batch_avg_answer_val(LAST, batch_of(AT_EACH, AT_EACH)),
        SHAPES + r".*got answers \(4, 3, 1\) for values \(4, 7\)\. What of the outputs",
    ),
    "answers at the last, values at each position": (
        lambda: ac.batch_answer_diffs(EVERY, batch_of(ONE, ONE)),
        SHAPES + r".*got answers \(4, 1\) for values \(4, 3, 7\)",
    ),
    "fewer positions": (
        lambda: ac.correct_answer_proportion(EVERY, batch_of(AT_EACH[:, 1:], AT_EACH)),
        SHAPES.replace("Answers", "^Answers"),
    ),
    "listed answers at each position, values at the last": (
        lambda: ac.batch_avg_answer_diff(LAST, batch_of(list(AT_EACH), list(AT_EACH))),
        SHAPES + r".*got answers \(3, 1\) for values \(7,\)",
    ),
    "other prompts": (
        lambda: ac.batch_avg_answer_val(LAST, batch_of(list(ONE[:3]), ONE)),
        "There are values of 4 prompts, but answers for 3",
    ),
    "no answers": (
        lambda: ac.batch_avg_answer_val(LAST, batch_of(ONE[:, :0], ONE)),
        SHAPES,
    ),
    "numbers that are no tokens": (
        lambda: ac.batch_avg_answer_val(LAST, batch_of(ONE.float(), ONE)),
        "Answers must be tokens, whole numbers; got torch.float32",
    ),
    "another vocabulary": (
        lambda: ac.batch_answer_diff_percents(LAST, LAST, batch_of(ONE, ONE + 7)),
        "The answers have the tokens 7 to .*, but the values are of a vocabulary of 7",
    ),
    "several right answers": (
        lambda: ac.correct_answer_proportion(LAST, batch_of(THREE, ONE)),
        r"needs one right answer for each prompt; got \[3\] of them",
    ),
    "several right answers, to be greater": (
        lambda: ac.correct_answer_greater_than_incorrect_proportion(LAST, batch_of(THREE, ONE)),
        r"needs one right answer for each prompt; got \[3\] of them",
    ),
    "log-probabilities of other prompts": (
        lambda: ac.multibatch_kl_div(LAST, LAST[:1]),
        r"must have the same shape; got \(4, 7\) and \(1, 7\)",
    ),
    "no batch": (
        lambda: ac.measure_answer_val(None, [], {0: {}}),
        "The dataloader has no batch, so nothing can be measured",
    ),
    "another dataloader": (
        lambda: ac.measure_correct_ans_percent(None, [batch_of(ONE, ONE)], {3: {2: LAST}}),
        "A circuit has no outputs on a batch of this dataloader",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("as_a_user")
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ct.InputError, match=message):
        call()
