"""Scores of query heads and of the key-value head that they share, one from the other by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Shape
from circuit_trace.integrations.groups import from_groups, to_groups
from tests.integrations.circuits import PLAIN, assert_same, scores_for

SHARED = Shape(1, 6, 2)
HEADS = Shape(1, 6, 6).graph()
KEYS = "blocks.0.hook_k_input"


@pytest.mark.parametrize(("groups", "expected"), [("sum", [[6.0], [15.0]]), ("same", None)])
def test_to_groups(groups: Any, expected: list[list[float]] | None) -> None:
    scores = scores_for(HEADS, share=0.0)
    scores[KEYS] = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    if expected is None:
        with pytest.raises(ct.FormatError, match=r"those of 'blocks\.0\.hook_k_input' differ"):
            to_groups(scores, HEADS, SHARED.graph(), groups)
    else:
        assert to_groups(scores, HEADS, SHARED.graph(), groups)[KEYS].tolist() == expected


@pytest.mark.parametrize(("groups", "expected"), [("sum", [3.0, 1.0]), ("same", [9.0, 3.0])])
def test_from_groups_and_back(groups: Any, expected: list[float]) -> None:
    scores = scores_for(SHARED.graph())
    scores[KEYS] = torch.tensor([[9.0], [3.0]])
    heads = from_groups(scores, SHARED, groups)
    assert heads[KEYS].flatten().tolist() == [expected[0]] * 3 + [expected[1]] * 3
    queries = "blocks.0.hook_q_input"
    assert torch.equal(heads[queries], scores[queries])
    back = to_groups(heads, HEADS, SHARED.graph(), groups)
    assert torch.equal(back[KEYS], scores[KEYS])


def test_without_groups_nothing_changes() -> None:
    scores = scores_for(PLAIN)
    assert_same(to_groups(scores, PLAIN, PLAIN, None), scores)
    assert_same(from_groups(scores, Shape.of_graph(PLAIN), None), scores)


def test_a_sum_that_is_too_large() -> None:
    scores = scores_for(HEADS, share=0.0)
    scores[KEYS] += 3e38
    with pytest.raises(
        ct.MaskError, match=r"^The scores of each group together .* = inf: expected"
    ):
        to_groups(scores, HEADS, SHARED.graph(), "sum")
