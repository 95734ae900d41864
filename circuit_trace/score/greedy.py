"""The order in which a circuit grows from the end of the stream backwards, as EAP-IG's does."""

from __future__ import annotations

from heapq import heappop, heappush

import torch
from jaxtyping import Int
from torch import Tensor

from circuit_trace.graph import Edges, Graph
from circuit_trace.record.rows import Rows
from circuit_trace.score.reach import readings, worst_from


def places(order: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """The place of every edge in an order of all."""
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order))
    return found


def greedy_order(graph: Graph, strongest: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """All edges as they are taken from the end backwards: each the strongest of those that lead to a
    node already taken (Hanna et al. 2024).

    An edge waits for the weakest on its best way to the end, so these can be taken in that order; only
    what waits for the same edge is grown one by one.
    """
    ranks = places(strongest)
    waits_for = worst_from(graph, ranks)
    order = strongest[waits_for[strongest].argsort(stable=True)]
    counts = waits_for[order].unique_consecutive(return_counts=True)[1]
    together = (counts > 1).repeat_interleave(counts)
    waiting = _Waiting(graph, order[together], ranks)
    order[together] = order[together][waiting.grown(counts[counts > 1].tolist())]
    return order


class _Waiting:
    """Batches of edges, one after the other: each waits for the weakest edge of its batch."""

    def __init__(
        self, graph: Graph, edges: Int[Tensor, " edge"], ranks: Int[Tensor, " edge"]
    ) -> None:
        rows = Rows.of(graph, Edges(graph, edges.tolist()))
        self.sources, self.dests = rows.src.tolist(), rows.dest.tolist()
        self.positions = rows.position.clamp(min=0).tolist()
        self.ranks = ranks[edges].tolist()
        self.readings = readings(graph)

    def grown(self, sizes: list[int]) -> Int[Tensor, " edge"]:
        """The places of all edges, batch by batch in the order in which they are taken."""
        taken: list[int] = []
        start = 0
        for size in sizes:
            taken += self._batch(range(start, start + size))
            start += size
        return torch.tensor(taken, dtype=torch.long)

    def _batch(self, batch: range) -> list[int]:
        """The weakest of a batch, then backwards from it."""
        into: dict[tuple[int, int], list[int]] = {}
        for place in batch:
            into.setdefault((self.dests[place], self.positions[place]), []).append(place)
        weakest = max(batch, key=self.ranks.__getitem__)
        found = [(self.ranks[weakest], weakest)]
        taken, reached = [], set()
        while found:
            _, place = heappop(found)
            taken.append(place)
            source, position = self.sources[place], self.positions[place]
            if (source, position) not in reached:
                reached.add((source, position))
                for dest, across in self.readings[source]:
                    for earlier in range(position + 1) if across else (position,):
                        for before in into.pop((dest, earlier), ()):
                            heappush(found, (self.ranks[before], before))
        return taken
