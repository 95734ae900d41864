"""Which edges of a circuit lie on a path, by networkx and the nodes' names alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import networkx as nx

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.plan import flat_scores


def chosen(graph: Graph, circuit: ct.PruneScores) -> set[int]:
    flat = flat_scores(graph, circuit)
    assert set(flat.unique().tolist()) <= {0.0, 1.0}
    return set(flat.nonzero()[:, 0].tolist())


def on_a_path(graph: Graph, numbers: Iterable[int]) -> set[int]:
    """The edges on a path from the start of the stream to its end. What a node writes at a position
    depends on its keys and values there and before, and on its other inputs there."""
    flow, edges = nx.DiGraph(), {n: graph.edge_at(n) for n in numbers}
    for edge in edges.values():
        at = edge.seq_idx or 0
        flow.add_edge(("out", edge.src.name, at), ("in", edge.dest.name, at))
    of_module = {module.name: module.dests for module in graph.modules}
    heads = Counter(src.layer for src in graph.srcs if src.head is not None)
    for src, dest in itertools.product(graph.srcs, graph.dests):
        if src.kind != dest.kind or src.layer != dest.layer:
            continue
        n_inputs = len(of_module[dest.module_name])
        if src.head is not None and src.head * n_inputs // heads[src.layer] != dest.slot:
            continue
        for here, later in itertools.combinations_with_replacement(range(graph.seq_len or 1), 2):
            if here == later or dest.name.endswith((".K", ".V")):
                flow.add_edge(("in", dest.name, here), ("out", src.name, later))
    ends = [
        [node for node in flow if node[:2] == end]
        for end in (("out", graph.srcs[0].name), ("in", graph.dests[-1].name))
    ]
    after = set().union(*({node} | nx.descendants(flow, node) for node in ends[0]))
    before = set().union(*({node} | nx.ancestors(flow, node) for node in ends[1]))
    return {
        number
        for number, edge in edges.items()
        if ("out", edge.src.name, edge.seq_idx or 0) in after
        and ("in", edge.dest.name, edge.seq_idx or 0) in before
    }
