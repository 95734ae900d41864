"""Every shape of answers that auto-circuit takes means the same here, by its own functions."""

from __future__ import annotations

import os

import pytest
import torch
from torch.testing import assert_close

from circuit_trace.integrations import auto_circuit as ours
from tests.integrations.test_auto_circuit_answers import (
    CASES,
    SINGLE,
    WHERE,
    batch_of,
    shapes,
    values,
)

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")

from auto_circuit.utils import tensor_ops as theirs

THEIRS = [case for case in SINGLE if case != ("each position", "lists of one, of more")]
"""auto-circuit asserts that a listed answer is one token, so not one for each position."""


@pytest.mark.parametrize(("where", "kind"), CASES)
def test_values_and_differences(where: str, kind: str) -> None:
    batch, vals = batch_of(*shapes(where)[kind]), values(1, *WHERE[where])
    target = values(2, *WHERE[where])
    for name, more in (
        ("batch_avg_answer_val", (vals, batch)),
        ("batch_avg_answer_val", (vals, batch, True)),
        ("batch_answer_diffs", (vals, batch)),
        ("batch_avg_answer_diff", (vals, batch)),
        ("batch_answer_diff_percents", (vals, target, batch)),
    ):
        assert_close(getattr(ours, name)(*more), getattr(theirs, name)(*more), msg=name)


@pytest.mark.parametrize(("where", "kind"), THEIRS)
def test_how_many_are_right(where: str, kind: str) -> None:
    batch = batch_of(*shapes(where, single=True)[kind])
    seen = set()
    for seed in range(6):
        # Few different values, so that some are equal.
        logits = values(seed, *WHERE[where]).round()
        for name in (
            "correct_answer_proportion",
            "correct_answer_greater_than_incorrect_proportion",
        ):
            expected = getattr(theirs, name)(logits, batch)
            assert_close(getattr(ours, name)(logits, batch), expected, msg=name)
            seen.add((name, expected.item()))
    assert len(seen) > 4


@pytest.mark.parametrize("where", WHERE)
def test_divergence(where: str) -> None:
    logprobs, target = (values(seed, *WHERE[where]).log_softmax(-1) for seed in (1, 2))
    found = ours.multibatch_kl_div(logprobs, target)
    assert_close(found, theirs.multibatch_kl_div(logprobs, target))
    assert found > torch.tensor(0.1)
