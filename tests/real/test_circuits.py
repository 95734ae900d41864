"""Circuits of the real model: so many connected edges, whatever the task and the method."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.plan import flat_scores
from tests.real.tasks import TASKS, Task
from tests.score.test_circuit import chosen, on_a_path

N = 30


@cache
def token_scores(bridge: Any, task: Task) -> tuple[ct.PatchableModel, ct.PruneScores]:
    """Scores of every edge at every position; their sums are those without positions."""
    model = ct.wrap(bridge, seq_len=task.n_tokens, verify=False)
    return model, ct.score_edges(model, task.data, method="eap-ig", steps=2, bar=False)


@pytest.mark.parametrize("method", ["top", "greedy"])
@pytest.mark.parametrize("with_positions", [True, False], ids=["positions", "all at once"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_thirty_connected_edges(
    bridge: Any, model: ct.PatchableModel, task: Task, with_positions: bool, method: Any
) -> None:
    graph, scores = model.graph, {}
    by_token, of_tokens = token_scores(bridge, task)
    if with_positions:
        graph, scores = by_token.graph, of_tokens
    else:
        scores = {name: score.sum(0) for name, score in of_tokens.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ct.circuit(scores, n_edges=N, method=method, model=graph)
    left = chosen(graph, found)
    assert len(left) == N
    assert on_a_path(graph, left) == left
    flat = flat_scores(graph, scores)
    strongest = flat.abs().topk(N).indices.tolist()
    assert left | set(found.dropped.numbers) >= set(strongest)


def test_faithfulness_begins_where_the_circuit_is_small(bridge: Any) -> None:
    task = TASKS[0]
    model, scores = token_scores(bridge, task)
    curve = ct.faithfulness(
        model, task.data, scores, sizes=(10, 80, 1000), circuit="greedy", bar=False
    )
    assert curve.n_edges == (10, 80, 1000)
    assert curve.clean.item() == pytest.approx(task.values[0], abs=2e-3)
    assert curve.corrupt.item() == pytest.approx(task.values[1], abs=2e-3)
    assert curve.faithfulness[0] < 0.2 < 0.5 < curve.faithfulness[2]
