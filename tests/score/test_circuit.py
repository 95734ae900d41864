"""Circuits against brute force, and their connectedness against networkx."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import networkx as nx
import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.plan import flat_scores, unflat_scores
from tests.models import TYPICAL, wrapped

PLAIN = wrapped(TYPICAL[0]).graph
THREE = wrapped(TYPICAL[0], 3).graph


def random_scores(graph: Graph, seed: int) -> ct.PruneScores:
    generator = torch.Generator().manual_seed(seed)
    return unflat_scores(graph, torch.randn(graph.n_edges, generator=generator))


def chosen(graph: Graph, circuit: ct.PruneScores) -> set[int]:
    flat = flat_scores(graph, circuit)
    assert set(flat.unique().tolist()) <= {0.0, 1.0}
    return set(flat.nonzero()[:, 0].tolist())


def on_a_path(graph: Graph, numbers: set[int]) -> set[int]:
    """The edges on a path from the start of the stream to its end, position by position."""
    kept = set()
    for position in range(graph.seq_len or 1):
        flow = nx.MultiDiGraph()
        here = {
            n: graph.edge_at(n)
            for n in numbers
            if n // graph.n_edges_per_position == (position if graph.seq_len else 0)
        }
        for number, edge in here.items():
            flow.add_edge(edge.src.unit, edge.dest.unit, number)
        start, end = graph.srcs[0].unit, graph.dests[-1].unit
        if start not in flow or end not in flow:
            continue
        reached = nx.descendants(flow, start) | {start}
        reaching = nx.ancestors(flow, end) | {end}
        kept |= {n for n, e in here.items() if e.src.unit in reached and e.dest.unit in reaching}
    return kept


@pytest.mark.parametrize("graph", [PLAIN, THREE], ids=["plain", "positions"])
@pytest.mark.parametrize("n", [0, 1, 17, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_strongest(graph: Graph, n: int, seed: int) -> None:
    scores = random_scores(graph, seed)
    flat = flat_scores(graph, scores).abs()
    strongest = set(sorted(range(graph.n_edges), key=lambda e: -float(flat[e]))[:n])
    whole = ct.circuit(scores, n_edges=n, model=graph, prune=False)
    assert chosen(graph, whole) == strongest


@pytest.mark.parametrize("n", [5, 17, 40, 110])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dead_ends_go(n: int, seed: int) -> None:
    scores = random_scores(PLAIN, seed)
    whole = chosen(PLAIN, ct.circuit(scores, n_edges=n, prune=False))
    expected = on_a_path(PLAIN, whole)
    with nullcontext() if expected else pytest.warns(UserWarning, match=rf"none of the {n} edges"):
        found = ct.circuit(scores, n_edges=n)
    assert chosen(PLAIN, found) == expected


@pytest.mark.parametrize("n", [1, 8, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedily_from_the_end_backwards(n: int, seed: int) -> None:
    scores = random_scores(PLAIN, seed)
    flat = flat_scores(PLAIN, scores).abs()
    reached, taken = {"Resid End"}, set()
    while len(taken) < n:
        open_edges = [
            e for e in range(PLAIN.n_edges)
            if e not in taken and PLAIN.edge_at(e).dest.unit in reached
        ]  # fmt: skip
        best = max(open_edges, key=lambda e: float(flat[e]))
        taken.add(best)
        reached.add(PLAIN.edge_at(best).src.unit)
    found = ct.circuit(scores, n_edges=n, method="greedy", prune=False)
    assert chosen(PLAIN, found) == taken


def test_by_threshold_and_by_fraction() -> None:
    scores = random_scores(PLAIN, 3)
    flat = flat_scores(PLAIN, scores).abs()
    above = set((flat >= 1.0).nonzero()[:, 0].tolist())
    assert chosen(PLAIN, ct.circuit(scores, threshold=1.0, prune=False)) == above
    assert len(chosen(PLAIN, ct.circuit(scores, fraction=0.25, prune=False))) == 27
    assert len(chosen(PLAIN, ct.circuit(scores, fraction=1, prune=False))) == PLAIN.n_edges


def test_it_is_a_mask_to_patch_with() -> None:
    model = wrapped(TYPICAL[0])
    circuit = ct.circuit(random_scores(model.graph, 0), n_edges=30, model=model)
    tokens = torch.arange(6)[None]
    trace = model.trace(tokens, corrupt=tokens.flip(1), masks=circuit)
    assert len(trace.edges) == len(chosen(model.graph, circuit)) > 0


SCORES = random_scores(PLAIN, 0)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no size": (lambda: ct.circuit(SCORES), ct.InputError, "Give the circuit one size"),
    "two sizes": (
        lambda: ct.circuit(SCORES, n_edges=1, threshold=1),
        ct.InputError,
        "got n_edges and threshold",
    ),
    "too many": (
        lambda: ct.circuit(SCORES, n_edges=111),
        ct.InputError,
        "from 0 to all 110; got 111",
    ),
    "no part": (lambda: ct.circuit(SCORES, fraction=2), ct.InputError, "from 0 to 1; got 2"),
    "a negative threshold": (lambda: ct.circuit(SCORES, threshold=-1), ct.InputError, "0 or more"),
    "no such method": (
        lambda: ct.circuit(SCORES, n_edges=1, method="best"),
        ct.InputError,
        "'best'",
    ),
    "all zero": (
        lambda: ct.circuit({k: v * 0 for k, v in SCORES.items()}, n_edges=1),
        ct.MaskError,
        "all zero",
    ),
    "not finite": (
        lambda: ct.circuit({k: v / 0 for k, v in SCORES.items()}, n_edges=1),
        ct.MaskError,
        "expected finite numbers",
    ),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_circuit(case: str) -> None:
    ask, error, message = WRONG[case]
    with pytest.raises(error) as caught:
        ask()
    assert message in str(caught.value)
