"""Exactly so many connected edges: the best that connect enough, less the weakest that can be spared."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuit_trace.graph import Edges, Graph
from circuit_trace.record.rows import Rows
from circuit_trace.score.reach import NEVER, readings, worst_through, would_join

MOST_TRIED = 1000
"""So many edges are tried as a shortcut before a size counts as one that no circuit has."""


def sized(
    graph: Graph, order: Int[Tensor, " edge"], sizes: Sequence[int]
) -> list[Bool[Tensor, " edge"]]:
    """For each size, so many connected edges (fewer if there are not so many; more if none of the
    circuits tried has that size).

    The first edges of the order are taken, as many as connect enough of them. Where the last of these
    completes more paths than there is room for, the weakest edges go again, one after the other and
    each with what hangs on it alone, as long as enough are left. Where even so too many are left,
    because everything hangs together, another edge cuts the paths short: the strongest that does.

    Args:
        graph: Whose edges they are.
        order: The edges that may be taken, best first.
        sizes: How many edges are to be left.
    """
    ranks = _ranks(graph, order)
    last = worst_through(graph, ranks)
    in_order = last.sort().values
    n_most = int((last < NEVER).sum())
    found = []
    for size in sizes:
        n = min(size, n_most)
        kept = last <= in_order[n - 1] if n else torch.zeros_like(last, dtype=torch.bool)
        found.append(_fitted(graph, ranks, kept, n))
    return found


def size_with(graph: Graph, order: Int[Tensor, " edge"], number: int) -> int | None:
    """The least size at which this edge is sure to be in the circuit; None where it cannot be."""
    last = worst_through(graph, _ranks(graph, order))
    return int((last <= last[number]).sum()) if last[number] < NEVER else None


def _ranks(graph: Graph, order: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """Every edge's place in the order, if it has one."""
    ranks = torch.full((graph.n_edges,), NEVER)
    ranks[order] = torch.arange(len(order))
    return ranks


def _fitted(
    graph: Graph, ranks: Int[Tensor, " edge"], kept: Bool[Tensor, " edge"], n: int
) -> Bool[Tensor, " edge"]:
    """Connected edges, `n` or more, with what can be spared left out."""
    kept = _less(graph, ranks, kept, n)
    while (n_kept := int(kept.sum())) > n:
        for number in islice(_shortcuts(graph, ranks, kept), MOST_TRIED):
            longer = kept.clone()
            longer[number] = True
            shorter = _less(graph, ranks, longer, n, but=number)
            if int(shorter.sum()) < n_kept:
                kept = shorter
                break
        else:
            break
    return kept


def _shortcuts(
    graph: Graph, ranks: Int[Tensor, " edge"], kept: Bool[Tensor, " edge"]
) -> Iterable[int]:
    """The edges between nodes of a circuit that it does not have, the best first."""
    numbers = (would_join(graph, kept) & (ranks < NEVER)).nonzero()[:, 0]
    return numbers[ranks[numbers].argsort()].tolist()


def _less(
    graph: Graph,
    ranks: Int[Tensor, " edge"],
    kept: Bool[Tensor, " edge"],
    n: int,
    but: int | None = None,
) -> Bool[Tensor, " edge"]:
    """Connected edges less the weakest ones that can go, each with what hangs on it, while `n` are
    left; `but` stays."""
    n_over = int(kept.sum()) - n
    if n_over <= 0:
        return kept
    numbers = kept.nonzero()[:, 0]
    arcs, left = _Arcs(graph, numbers), kept.clone()
    for number in numbers[ranks[numbers].argsort(descending=True)].tolist():
        gone = arcs.hanging_on(number, n_over) if left[number] and number != but else None
        if gone is not None:
            arcs.remove(gone)
            edges = [arc for arc in gone if arc >= 0]
            left[edges] = False
            n_over -= len(edges)
            if n_over == 0:
                break
    return left


class _Arcs:
    """Connected edges, and links from where they end to the sources that read it, as arcs of a graph
    whose nodes go when no arc comes in or none goes out. An edge's arc is its number, a link's is
    negative."""

    def __init__(self, graph: Graph, numbers: Int[Tensor, " edge"]) -> None:
        rows = Rows.of(graph, Edges(graph, numbers.tolist()))
        at = rows.position.clamp(min=0).tolist()
        self.ends: dict[int, tuple[Hashable, Hashable]] = {}
        self.into: dict[Hashable, set[int]] = {}
        self.out: dict[Hashable, set[int]] = {}
        written = dict.fromkeys(zip(rows.src.tolist(), at, strict=True))
        read = dict.fromkeys(zip(rows.dest.tolist(), at, strict=True))
        for number, source, dest, position in zip(
            numbers.tolist(), rows.src.tolist(), rows.dest.tolist(), at, strict=True
        ):
            self._add(number, ("written", source, position), ("read", dest, position))
        self._link(readings(graph), written, read)

    def _link(
        self,
        of_source: Sequence[Sequence[tuple[int, bool]]],
        written: Iterable[tuple[int, int]],
        read: Iterable[tuple[int, int]],
    ) -> None:
        """Links to the sources from what they read: at their own position, or "seen" since an earlier
        one."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for dest, position in read:
            first[dest] = min(position, first.get(dest, position))
        for source, position in written:
            for dest, across in of_source[source]:
                if not across:
                    here = ("read", dest, position)
                    if here in self.into:
                        self._add(None, here, ("written", source, position))
                elif first.get(dest, position + 1) <= position:
                    self._add(None, ("seen", dest, position), ("written", source, position))
                    last[dest] = max(position, last.get(dest, position))
        for dest, end in last.items():
            for position in range(first[dest], end + 1):
                if ("read", dest, position) in self.into:
                    self._add(None, ("read", dest, position), ("seen", dest, position))
                if position < end:
                    self._add(None, ("seen", dest, position), ("seen", dest, position + 1))

    def _add(self, number: int | None, tail: Hashable, head: Hashable) -> None:
        arc = -1 - len(self.ends) if number is None else number
        self.ends[arc] = tail, head
        self.out.setdefault(tail, set()).add(arc)
        self.into.setdefault(head, set()).add(arc)

    def hanging_on(self, number: int, most: int) -> set[int] | None:
        """The arcs that are on no path without this edge, itself among them; None where more than so
        many of them are edges."""
        gone, todo, n_edges = {number}, [number], 0
        while todo:
            arc = todo.pop()
            n_edges += arc >= 0
            if n_edges > most:
                return None
            tail, head = self.ends[arc]
            for lost, with_it in (
                (self.out.get(tail, set()), self.into.get(tail, set())),
                (self.into.get(head, set()), self.out.get(head, set())),
            ):
                if lost <= gone:
                    fresh = with_it - gone
                    gone |= fresh
                    todo += fresh
        return gone

    def remove(self, arcs: Iterable[int]) -> None:
        """Take arcs out."""
        for arc in arcs:
            tail, head = self.ends.pop(arc)
            self.out[tail].discard(arc)
            self.into[head].discard(arc)
