"""Circuits against brute force, and their connectedness against networkx."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import circuit_trace as ct
from circuit_trace.graph import Edge, Graph
from circuit_trace.integrations.shape import Shape
from circuit_trace.plan import flat_scores, unflat_scores
from tests.models import TYPICAL, wrapped
from tests.score.paths import before_the_end, chosen, flow_of, on_a_path, read
from tests.shapes import graphs

PLAIN, THREE = (Shape(2, 4, 4).graph(seq_len) for seq_len in (None, 3))
GRAPHS = {
    "plain": PLAIN,
    "positions": THREE,
    "key-value heads, positions": Shape(n_layers=2, n_heads=4, n_kv_heads=2).graph(2),
    "parallel": Shape(n_layers=2, n_heads=2, n_kv_heads=2, parallel=True).graph(),
    "attention only, positions": Shape(2, 2, 2, attn_only=True).graph(3),
}


def random_scores(graph: Graph, seed: int) -> ct.PruneScores:
    generator = torch.Generator().manual_seed(seed)
    return unflat_scores(graph, torch.randn(graph.n_edges, generator=generator))


def told_or_not(scores: ct.PruneScores, **options: Any) -> ct.Circuit:
    """A circuit, whatever is said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.circuit(scores, **options)


@pytest.mark.parametrize("graph", [PLAIN, THREE], ids=["plain", "positions"])
@pytest.mark.parametrize("n", [0, 1, 17, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_strongest(graph: Graph, n: int, seed: int) -> None:
    scores = random_scores(graph, seed)
    flat = flat_scores(graph, scores).abs()
    strongest = set(sorted(range(graph.n_edges), key=lambda e: -float(flat[e]))[:n])
    whole = ct.circuit(scores, n_edges=n, model=graph, prune=False)
    assert chosen(graph, whole) == strongest


@pytest.mark.parametrize("method", ["top", "greedy"])
@pytest.mark.parametrize("least", [0.5, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_dead_ends_above_a_threshold_go(graph: Graph, least: float, method: Any) -> None:
    scores = random_scores(graph, 0)
    flat = flat_scores(graph, scores).abs()
    above = (flat >= least).nonzero()[:, 0].tolist()
    found = told_or_not(scores, threshold=least, model=graph, method=method)
    assert chosen(graph, found) == on_a_path(graph, above)
    assert set(found.dropped.numbers) == set(above) - on_a_path(graph, above)


@pytest.mark.parametrize("method", ["top", "greedy"])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_so_many_connected_edges_are_left(graph: Graph, method: Any) -> None:
    scores = random_scores(graph, 1)
    sizes = [*range(12), 20, 33, graph.n_edges // 2, graph.n_edges - 1, graph.n_edges]
    for n in sizes:
        found = told_or_not(scores, n_edges=n, model=graph, method=method)
        left = chosen(graph, found)
        assert (len(left), found.n_edges) == (n, n)
        assert on_a_path(graph, left) == left


def naive(graph: Graph, order: list[int], n: int) -> set[int]:
    """The shortest start of an order that connects enough, less the weakest that can be spared, each
    left out by itself and the whole pruned anew."""
    left: set[int] = set()
    for length in range(len(order) + 1):
        left = on_a_path(graph, order[:length])
        if len(left) >= n:
            break
    for number in reversed(order):
        shorter = on_a_path(graph, left - {number})
        if number in left and len(shorter) >= n:
            left = shorter
    return left


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_weakest_that_can_be_spared_go(data: st.DataObject) -> None:
    graph = data.draw(graphs(150))
    order = data.draw(st.permutations(range(graph.n_edges)))
    n = data.draw(st.integers(0, min(40, graph.n_edges)))
    flat = torch.zeros(graph.n_edges)
    flat[order] = torch.arange(graph.n_edges, 0, -1).float()
    expected = naive(graph, order, n)
    left = chosen(graph, told_or_not(unflat_scores(graph, flat), n_edges=n, model=graph))
    if len(expected) == n:
        assert left == expected
    else:  # everything hangs together: a shortcut is taken
        assert len(left) == n
        assert on_a_path(graph, left) == left


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_few_scores(data: st.DataObject) -> None:
    """Where few edges have a score, those that score 0 are no part of a circuit, and what is left
    grows with what is asked for."""
    graph = data.draw(graphs())
    numbers = data.draw(st.lists(st.integers(0, graph.n_edges - 1), min_size=1, max_size=25))
    flat = torch.zeros(graph.n_edges)
    flat[numbers] = 1.0 + torch.arange(len(numbers)).float()
    scored = set(flat.nonzero()[:, 0].tolist())
    most, before = on_a_path(graph, scored), 0
    for n in range(min(len(scored) + 2, graph.n_edges)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = ct.circuit(unflat_scores(graph, flat), n_edges=n, model=graph)
        left = chosen(graph, found)
        assert on_a_path(graph, left) == left <= most
        assert before <= len(left)
        assert len(left) >= min(n, len(most))
        if len(left) != n:
            assert f"has {len(left)} edges instead of {n}" in str(said[0].message)
        before = len(left)


@settings(max_examples=15, deadline=None)
@given(graphs(150), st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_greedily_from_the_end_backwards(graph: Graph, seed: int, n: int) -> None:
    """Each edge is the strongest of those that lead on to the end by what is taken already."""
    scores, n = random_scores(graph, seed), min(n, graph.n_edges)
    flat, end = flat_scores(graph, scores).abs(), graph.dests[-1]
    taken: dict[int, Edge] = {}
    while len(taken) < n:
        reached = before_the_end(graph, flow_of(graph, taken.values()))
        best = max(
            (number for number, edge in enumerate(graph.edges)
            if number not in taken and (edge.dest == end or read(edge) in reached)),
            key=lambda number: float(flat[number]),
        )  # fmt: skip
        taken[best] = graph.edge_at(best)
    found = ct.circuit(scores, n_edges=n, method="greedy", model=graph, prune=False)
    assert chosen(graph, found) == set(taken)


def test_by_threshold_and_by_fraction() -> None:
    scores = random_scores(PLAIN, 3)
    flat = flat_scores(PLAIN, scores).abs()
    above = set((flat >= 1.0).nonzero()[:, 0].tolist())
    assert chosen(PLAIN, ct.circuit(scores, threshold=1.0, prune=False)) == above
    assert len(chosen(PLAIN, ct.circuit(scores, fraction=0.25, prune=False))) == 27
    assert len(chosen(PLAIN, ct.circuit(scores, fraction=1, prune=False))) == PLAIN.n_edges


@pytest.mark.parametrize("method", ["top", "greedy"])
def test_signed_ranking(method: Any) -> None:
    scores = random_scores(PLAIN, 4)
    flat = flat_scores(PLAIN, scores)
    options = {"n_edges": 25, "method": method, "prune": False}
    highest = chosen(PLAIN, told_or_not(scores, rank_by="highest", **options))
    mirrored = {name: -score for name, score in scores.items()}
    assert chosen(PLAIN, told_or_not(mirrored, rank_by="lowest", **options)) == highest
    if method == "top":
        assert highest == set(flat.topk(25).indices.tolist())
    else:
        positive = {name: score.exp() for name, score in scores.items()}  # in the same order
        assert chosen(PLAIN, told_or_not(positive, **options)) == highest
    above = chosen(PLAIN, told_or_not(scores, threshold=0.5, rank_by="lowest", prune=False))
    assert above == set((flat <= -0.5).nonzero()[:, 0].tolist())


def test_what_is_dropped() -> None:
    scores = random_scores(THREE, 5)
    flat = flat_scores(THREE, scores)
    found = told_or_not(scores, n_edges=30, model=THREE)
    strongest = flat.abs().topk(30).indices.tolist()
    assert found.dropped.numbers == [n for n in strongest if n not in chosen(THREE, found)]
    assert found.dropped_scores.tolist() == flat[found.dropped.numbers].tolist()
    table = found.dropped_table()
    assert [f"{row.edge} @{row.seq_idx}" for row in table.itertuples()] == [  # pyright: ignore[reportAttributeAccessIssue]
        str(edge) for edge in found.dropped
    ]
    assert table["score"].tolist() == found.dropped_scores.tolist()
    assert repr(found) == (
        f"<Circuit: 30 edges; {len(table)} dropped, first {str(found.dropped[0])!r} "
        f"({table['score'][0]:.3g})>"
    )


def only(**scores: float) -> ct.PruneScores:
    """Scores of some edges, their names' arrows and blanks written `_to_` and `_`; all others 0."""
    flat = torch.zeros(PLAIN.n_edges)
    for name, score in scores.items():
        flat[PLAIN.number(PLAIN.edge(name.replace("_to_", "->").replace("_", " ")))] = score
    return unflat_scores(PLAIN, flat)


SAID = {
    "a strong edge without a way": (
        only(Resid_Start_to_Resid_End=1.0, Resid_Start_to_MLP_0=-3.0, MLP_0_to_Resid_End=0.5),
        {"n_edges": 1, "method": "greedy"},
        "Of the 1 strongest edges the circuit lacks 1, first 'Resid Start->MLP 0' (-3): what leads from "
        "it to the end of the stream, or to it from the start, is too weak. It is connected at "
        "n_edges=3; the circuit's .dropped lists all.",
    ),
    "no way at all": (
        only(Resid_Start_to_Resid_End=1.0, Resid_Start_to_MLP_0=-3.0),
        {"threshold": 1.0},
        "Of the 2 strongest edges the circuit lacks 1, first 'Resid Start->MLP 0' (-3): what leads from "
        "it to the end of the stream, or to it from the start, is too weak. No path of edges that score "
        "other than 0 leads through it; the circuit's .dropped lists all.",
    ),
    "fewer": (
        only(Resid_Start_to_MLP_0=1.0, MLP_0_to_Resid_End=0.5),
        {"n_edges": 5},
        "The circuit has 2 edges instead of 5: no more lie on a path of edges that score other than 0 "
        "from the start of the stream to its end. Score more edges, or ask for fewer.",
    ),
    "more": (
        only(Resid_Start_to_MLP_0=1.0, MLP_0_to_Resid_End=0.5),
        {"n_edges": 1},
        "The circuit has 2 edges instead of 1: no circuit of that size was found among the edges that "
        "score other than 0, since paths are longer. Ask for more, or score the edges that would shorten "
        "them, such as 'Resid Start->Resid End'.",
    ),
    "none": (
        only(Resid_Start_to_MLP_0=1.0, MLP_0_to_Resid_End=0.5),
        {"threshold": 0.75, "method": "greedy"},
        "The circuit is empty: none of the 1 edges that score 0.75 or more lies on a path of such edges "
        "from the start of the stream to its end. Lower the threshold, or say n_edges=, how many "
        "connected edges are to be left.",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_circuit_is_not_is_said(case: str) -> None:
    scores, options, message = SAID[case]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ct.circuit(scores, **options)
    assert [str(one.message) for one in said] == [message]
    assert said[0].filename == __file__


def test_nothing_is_said_of_what_is_weak_or_was_asked_for() -> None:
    scores = only(Resid_Start_to_Resid_End=1.0, Resid_Start_to_MLP_0=0.4, MLP_0_to_MLP_1=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ct.circuit(scores, n_edges=1).n_edges == 1
        assert ct.circuit(scores, threshold=0.3).n_edges == 1
        assert ct.circuit(scores, n_edges=0).n_edges == 0
        assert ct.circuit(scores, threshold=2.0).n_edges == 0
        assert ct.circuit(scores, n_edges=3, prune=False).n_edges == 3
        assert ct.circuit(scores, fraction=1).n_edges == PLAIN.n_edges


def test_it_is_prune_scores(tmp_path: Path) -> None:
    found = told_or_not(random_scores(PLAIN, 0), n_edges=30)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert isinstance(other, ct.Circuit)
        assert chosen(PLAIN, other) == chosen(PLAIN, found)
        assert (other.n_edges, list(other.dropped)) == (30, list(found.dropped))
    ct.save_scores(found, tmp_path / "circuit.pkl")
    assert chosen(PLAIN, ct.load_scores(tmp_path / "circuit.pkl")) == chosen(PLAIN, found)


def test_it_is_a_mask_to_patch_with() -> None:
    model = wrapped(TYPICAL[0])
    circuit = told_or_not(random_scores(model.graph, 0), n_edges=30, model=model)
    tokens = torch.arange(6)[None]
    trace = model.trace(tokens, corrupt=tokens.flip(1), masks=circuit)
    assert len(trace.edges) == 30


SCORES = random_scores(PLAIN, 0)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no size": (lambda: ct.circuit(SCORES), ct.InputError, "Give the circuit one size"),
    "no scores": (
        lambda: ct.circuit([1], n_edges=1, model=PLAIN),  # pyright: ignore[reportArgumentType]
        ct.MaskError,
        "to a tensor; got list",
    ),
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
    "no such ranking": (
        lambda: ct.circuit(SCORES, n_edges=1, rank_by="signed"),
        ct.InputError,
        "rank_by='absolute' or 'highest' or 'lowest'; got 'signed'",
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
