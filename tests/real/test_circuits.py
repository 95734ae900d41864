"""Circuits of the real model: so many connected edges, whatever the task and the method."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.plan import flat_scores
from circuit_trace.score.faithfulness import MIB_SIZES
from tests.real.tasks import IOI, TASKS, Task
from tests.real.test_tasks import difference
from tests.score.paths import chosen, on_a_path

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


def test_faithfulness_is_there_before_the_smallest_of_mibs_sizes(
    bridge: Any, model: ct.PatchableModel
) -> None:
    _, of_tokens = token_scores(bridge, IOI)
    scores = {name: score.sum(0) for name, score in of_tokens.items()}
    curve = ct.faithfulness(model, IOI.data, scores, sizes=(10, 70), bar=False)
    assert curve.n_edges == (10, 70)
    assert MIB_SIZES[0] * curve.n_all == pytest.approx(70, abs=1)
    clean, corrupt = IOI.values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        circuit = ct.circuit(scores, n_edges=10, model=model)
    others = {name: 1 - mask for name, mask in circuit.items()}
    logits = model.trace(IOI.clean, corrupt=IOI.corrupt, masks=others).logits
    expected = (difference(bridge, IOI, logits) - corrupt) / (clean - corrupt)
    assert curve.faithfulness[0].item() == pytest.approx(expected, abs=1e-3)
    assert expected > 0.25
