"""Which edges of a circuit lie on a path, by networkx and the nodes' names alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import networkx as nx

import circuit_trace as ct
from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import flat_scores


def chosen(graph: Graph, circuit: ct.PruneScores) -> set[int]:
    flat = flat_scores(graph, circuit)
    assert set(flat.unique().tolist()) <= {0.0, 1.0}
    return set(flat.nonzero()[:, 0].tolist())


def written(edge: Edge) -> tuple[str, str, int]:
    """What an edge comes from."""
    return "out", edge.src.name, edge.seq_idx or 0


def read(edge: Edge) -> tuple[str, str, int]:
    """What an edge leads to."""
    return "in", edge.dest.name, edge.seq_idx or 0


def flow_of(graph: Graph, edges: Iterable[Edge]) -> nx.DiGraph:
    """What depends on what by these edges. What a node writes at a position depends on its keys and
    values there and before (where it has one input for all, on that), on its other inputs there."""
    flow = nx.DiGraph((written(edge), read(edge)) for edge in edges)
    of_module = {module.name: module.dests for module in graph.modules}
    heads = Counter(src.layer for src in graph.srcs if src.head is not None)
    for src, dest in itertools.product(graph.srcs, graph.dests):
        if src.kind != dest.kind or src.layer != dest.layer:
            continue
        n_inputs = len(of_module[dest.module_name])
        if src.head is not None and src.head * n_inputs // heads[src.layer] != dest.slot:
            continue
        across = src.head is not None and not dest.name.endswith(".Q")
        for here, later in itertools.combinations_with_replacement(range(graph.seq_len or 1), 2):
            if here == later or across:
                flow.add_edge(("in", dest.name, here), ("out", src.name, later))
    return flow


def before_the_end(graph: Graph, flow: nx.DiGraph) -> set[tuple[str, str, int]]:
    """What the end of the stream depends on, itself included."""
    return _around(flow, ("in", graph.dests[-1].name), nx.ancestors)


def on_a_path(graph: Graph, numbers: Iterable[int]) -> set[int]:
    """The edges on a path from the start of the stream to its end."""
    edges = {number: graph.edge_at(number) for number in numbers}
    flow = flow_of(graph, edges.values())
    after = _around(flow, ("out", graph.srcs[0].name), nx.descendants)
    before = before_the_end(graph, flow)
    return {n for n, edge in edges.items() if written(edge) in after and read(edge) in before}


def _around(flow: nx.DiGraph, node: tuple[str, str], way: Any) -> set[tuple[str, str, int]]:
    """A node at every position and all that lies that way from it."""
    found = [{one} | way(flow, one) for one in flow if one[:2] == node]
    return set().union(*found)
