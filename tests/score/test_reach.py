"""What leads from the start of the stream to its end, in random models, against networkx."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_trace.graph import Graph
from circuit_trace.score.reach import (
    connected,
    leads_on,
    worst_from,
    worst_through,
    would_join,
)
from tests.score.paths import before_the_end, flow_of, on_a_path, read
from tests.shapes import graphs

WORST = 5
"""The worst rank in these tests; many edges share one."""


@dataclass(frozen=True)
class Ranks:
    """A rank for each edge of a graph: few of the best or many, so that little is connected, or all."""

    seed: int
    exponent: float

    def of(self, graph: Graph) -> torch.Tensor:
        drawn = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(self.seed))
        return (drawn**self.exponent * (WORST + 1)).long()


some_graph = graphs(150)
some_ranks = st.builds(Ranks, st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 1.0]))


def kept_up_to(ranks: torch.Tensor, worst: int) -> list[int]:
    return (ranks <= worst).nonzero()[:, 0].tolist()


def ends_well(graph: Graph, numbers: Iterable[int]) -> set[int]:
    """The edges by which, with others of these, something comes to the end of the stream."""
    edges = {number: graph.edge_at(number) for number in numbers}
    before = before_the_end(graph, flow_of(graph, edges.values()))
    return {number for number, edge in edges.items() if read(edge) in before}


def numbers(kept: torch.Tensor) -> set[int]:
    return set(kept.nonzero()[:, 0].tolist())


@settings(max_examples=40, deadline=None)
@given(some_graph, some_ranks)
def test_how_many_ranks_an_edge_waits_for(graph: Graph, drawn: Ranks) -> None:
    ranks = drawn.of(graph)
    through, on = worst_through(graph, ranks), worst_from(graph, ranks)
    for worst in range(WORST + 1):
        kept = kept_up_to(ranks, worst)
        path = on_a_path(graph, kept)
        assert numbers(through <= worst) == path
        assert numbers(connected(graph, ranks <= worst)) == path
        assert numbers(on <= worst) == ends_well(graph, kept)


@settings(max_examples=40, deadline=None)
@given(some_graph, some_ranks, st.integers(-1, WORST))
def test_what_the_end_feels(graph: Graph, drawn: Ranks, worst: int) -> None:
    ranks = drawn.of(graph)
    edges = [graph.edge_at(number) for number in kept_up_to(ranks, worst)]
    before = before_the_end(graph, flow_of(graph, edges))
    end = graph.dests[-1].name
    for module in graph.modules:
        felt = leads_on(graph, ranks <= worst)[module.name]
        for slot, dest in enumerate(module.dests):
            expected = [
                dest.name == end or ("in", dest.name, at) in before for at in range(len(felt))
            ]
            assert felt[:, slot].tolist() == expected


@settings(max_examples=25, deadline=None)
@given(some_graph, some_ranks, st.integers(-1, 2))
def test_what_one_more_edge_would_join(graph: Graph, drawn: Ranks, worst: int) -> None:
    ranks = drawn.of(graph)
    kept = set(kept_up_to(ranks, worst))
    expected = {n for n in set(range(graph.n_edges)) - kept if n in on_a_path(graph, kept | {n})}
    assert numbers(would_join(graph, ranks <= worst)) == expected
