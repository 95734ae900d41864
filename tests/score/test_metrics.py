"""The named metrics' values, against plain torch on each prompt alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from circuit_trace.plan import PromptPairs
from circuit_trace.score.metrics import read_metric

LENGTHS, SEQ, D_VOCAB = (4, 2, 5), 5, 11
RIGHT: list[list[int]] = [[1], [2, 3], [4, 5, 6]]
WRONG: list[list[int]] = [[7, 8], [9], [10, 0]]
FILLED = [torch.tensor([row + [-1] * (3 - len(row)) for row in rows]) for rows in (RIGHT, WRONG)]
TOKENS = torch.randint(0, D_VOCAB, (3, SEQ), generator=torch.Generator().manual_seed(0))
LOGITS, CLEAN_LOGITS = (
    torch.randn(3, SEQ, D_VOCAB, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
)


def log_softmax(row: Tensor) -> Tensor:
    """By its definition, in double precision."""
    wide = row.double()
    return wide - wide.exp().sum().log()


def by_hand(metric: str, prompt: int, where: list[int]) -> float:
    """The metric of one prompt whose tokens are at these positions."""
    last, right, wrong = LOGITS[prompt, where[-1]], RIGHT[prompt], WRONG[prompt]
    if metric == "logit_diff":
        means = [sum(float(last[t]) for t in some) / len(some) for some in (right, wrong)]
        return means[0] - means[1]
    if metric == "answer_logprob":
        return sum(float(log_softmax(last)[t]) for t in right) / len(right)
    if metric == "kl":
        before = log_softmax(CLEAN_LOGITS[prompt, where[-1]])
        return float((before.exp() * (before - log_softmax(last))).sum())
    steps = list(pairwise(where))
    losses = [-float(log_softmax(LOGITS[prompt, a])[TOKENS[prompt, b]]) for a, b in steps]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("metric", ["logit_diff", "answer_logprob", "kl", "loss"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_values(metric: str, side: str) -> None:
    places: dict[str, Any] = {
        "left": lambda n: list(range(SEQ - n, SEQ)),
        "right": lambda n: list(range(n)),
        "none": lambda n: list(range(SEQ)),
    }
    wheres = [places[side](n) for n in LENGTHS]
    mask = None
    if side != "none":
        mask = torch.zeros(3, SEQ, dtype=torch.bool)
        for row, where in zip(mask, wheres, strict=True):
            row[where] = True
    batch = PromptPairs(TOKENS, TOKENS, *FILLED, attention_mask=mask)
    logits = LOGITS.clone().requires_grad_()
    found = read_metric(metric)(logits, batch, CLEAN_LOGITS)
    expected = [by_hand(metric, prompt, where) for prompt, where in enumerate(wheres)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    counted = torch.zeros(3, SEQ, dtype=torch.bool)
    for row, where in zip(counted, wheres, strict=True):
        row[where[:-1] if metric == "loss" else where[-1:]] = True
    assert torch.equal(slope.abs().sum(-1) > 0, counted), "padding has no slope, tokens have"


@pytest.mark.parametrize("metric", ["logit_diff", "answer_logprob", "kl", "loss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_logits_alone(metric: str, dtype: torch.dtype) -> None:
    """What is computed from them is no coarser than single precision."""
    logits, own = LOGITS.to(dtype), CLEAN_LOGITS.to(dtype)
    batch = PromptPairs(TOKENS, TOKENS, *FILLED)
    measure = read_metric(metric)
    found = measure(logits, batch, own)
    assert found.dtype == torch.float32
    exact = measure(logits.double(), batch, own.double())
    assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["logit_diff", "answer_logprob"])
def test_slopes_of_as_many_answers_as_there_are(metric: str) -> None:
    """Against a small step in each answer's logit."""
    batch = PromptPairs(TOKENS, None, *FILLED)
    measure, start = read_metric(metric), LOGITS.double()
    logits = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(measure(logits, batch, None).sum(), logits)
    for prompt in range(3):
        for token in range(D_VOCAB):
            step = torch.zeros_like(start)
            step[prompt, -1, token] = 1e-5
            ahead, behind = (measure(start + s, batch, None)[prompt] for s in (step, -step))
            assert_close(slope[prompt, -1, token], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-8)
