"""Collections of edges hold numbers, not edges."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

import circuit_trace as ct
from circuit_trace.graph import Edge
from tests.graph.test_graph import GPT2, narrow
from tests.models import shared

SMALL = ct.wrap(shared("hooked LN"), seq_len=3, verify=False)
PLAIN = ct.wrap(shared("hooked LN"), verify=False)


def test_nothing_of_two_million_edges_is_built() -> None:
    anatomy = ct.wrap(narrow(**GPT2), verify=False).anatomy
    tracemalloc.start()
    graph = anatomy.graph(64)
    edges = graph.edges
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(edges) == 2_079_424
    assert peak < 1_000_000, "more than half a byte an edge: something is built"
    assert edges.numbers == range(2_079_424)
    assert isinstance(edges[10:-10:3].numbers, range)
    assert not [thing for thing in gc.get_objects() if type(thing) is Edge and thing.seq_idx == 63]


def test_first_last_and_middle_of_two_million() -> None:
    edges = ct.wrap(narrow(**GPT2), verify=False, seq_len=64).edges
    assert str(edges[0]) == "Resid Start->A0.0.Q @0"
    assert str(edges[32_491]) == "Resid Start->A0.0.Q @1"
    assert str(edges[-1]) == "MLP 11->Resid End @63"
    assert str(edges[-157]) == "Resid Start->Resid End @63"


def test_iteration_is_positions_then_destinations_then_sources() -> None:
    order = [(edge.seq_idx, edge.dest.name, edge.src.idx) for edge in SMALL.edges]
    place = {dest.name: number for number, dest in enumerate(SMALL.dests)}
    keys = [(seq_idx, place[dest], src) for seq_idx, dest, src in order]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(SMALL.edges) == 3 * PLAIN.n_edges


@pytest.mark.parametrize("number", [0, 1, 57, 109, 110, 329, -1, -110, -330])
def test_indexing(number: int) -> None:
    every = list(SMALL.edges)
    assert len(every) == 330
    assert SMALL.edges[number] == every[number]


@pytest.mark.parametrize("number", [330, -331])
def test_indexing_outside(number: int) -> None:
    with pytest.raises(IndexError):
        SMALL.edges[number]


@pytest.mark.parametrize(
    "cut",
    [
        slice(2, 7),
        slice(None),
        slice(None, None, -1),
        slice(-3, None),
        slice(5, 5),
        slice(0, 99, 13),
    ],
)
def test_slicing(cut: slice) -> None:
    part = SMALL.edges[cut]
    assert type(part) is type(SMALL.edges)
    assert list(part) == list(SMALL.edges)[cut]
    assert len(part) == len(list(part))
    assert bool(part) == (len(list(part)) > 0)


def test_membership() -> None:
    edge = SMALL.edge("A0.1->A1.2.Q", 1)
    assert edge in SMALL.edges
    assert "A0.1->A1.2.Q" in SMALL.edges
    assert (2, "A0.1->A1.2.Q") in SMALL.edges
    assert SMALL.edges[0] not in SMALL.edges[1:]
    assert SMALL.edges[0].name in SMALL.edges[1:], "the name is there at another position"
    assert PLAIN.edges[0].name not in PLAIN.edges[1:]


@pytest.mark.parametrize(
    "absent", ["A1.0->A0.1.Q", "nonsense", "", (3, "A0.1->A1.2.Q"), 5, None, object(), ("a", "b")]
)
@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_edge_is_not_a_member(absent: object) -> None:
    assert absent not in SMALL.edges


def test_equality() -> None:
    assert SMALL.edges == ct.wrap(shared("hooked LN"), seq_len=3, verify=False).edges
    assert SMALL.edges != PLAIN.edges
    assert SMALL.edges[:4] == SMALL.edges[:5][:-1]
    assert SMALL.edges[:4] != SMALL.edges[1:5]
    assert SMALL.edges[:4] != list(SMALL.edges[:4])
    assert SMALL.edge("A0.1->A1.2.Q", 1) == SMALL.edge("A0.1->A1.2.Q", 1)
    assert SMALL.edge("A0.1->A1.2.Q", 1) != SMALL.edge("A0.1->A1.2.Q", 2)
    assert len({SMALL.edge("A0.1->A1.2.Q", 1), SMALL.edge("A0.1->A1.2.Q", 1)}) == 1


def test_the_list_habits_of_a_sequence() -> None:
    edge = SMALL.edge("A0.1->A1.2.Q", 1)
    assert SMALL.edges[SMALL.edges.index(edge)] == edge
    assert SMALL.edges.count(edge) == 1
    assert next(reversed(SMALL.edges)) == SMALL.edges[-1]


def test_they_show_what_they_hold() -> None:
    assert repr(SMALL.edges) == (
        "<Edges: 330 (Resid Start->A0.0.Q @0, Resid Start->A0.1.Q @0, Resid Start->A0.2.Q @0, …)>"
    )
    assert repr(PLAIN.edges[:1]) == "<Edges: 1 (Resid Start->A0.0.Q)>"
    assert repr(PLAIN.edges[:0]) == "<Edges: 0 ()>"
