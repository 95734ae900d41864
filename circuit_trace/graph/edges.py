"""Edges, and ordered collections of them that hold numbers instead of a million objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from circuit_trace.graph.nodes import DestNode, SrcNode

if TYPE_CHECKING:
    from circuit_trace.graph.graph import Graph


@dataclass(frozen=True)
class Edge:
    """A source and a destination that reads it, at one token position or (`None`) at all."""

    src: SrcNode
    dest: DestNode
    seq_idx: int | None = None

    @property
    def name(self) -> str:
        """The edge's name without its position, `A5.2->A7.1.Q`."""
        return f"{self.src.name}->{self.dest.name}"

    def __str__(self) -> str:
        return self.name if self.seq_idx is None else f"{self.name} @{self.seq_idx}"


class Edges(Sequence[Edge]):
    """An ordered, lazy sequence of edges: positions first, then destinations, then sources.

    It holds the edges' numbers; an `Edge` is made when it is asked for. `len` is free, slices are
    again lazy, and `in` takes an edge or a name.
    """

    def __init__(self, graph: Graph, numbers: Sequence[int]) -> None:
        self.graph = graph
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Edge: ...
    @overload
    def __getitem__(self, index: slice) -> Edges: ...
    def __getitem__(self, index: int | slice) -> Edge | Edges:
        if isinstance(index, slice):
            return Edges(self.graph, self.numbers[index])
        return self.graph.edge_at(self.numbers[index])

    def __iter__(self) -> Iterator[Edge]:
        return map(self.graph.edge_at, self.numbers)

    def __contains__(self, edge: object) -> bool:
        """Whether the edge, or an edge of that name at any position, is among these."""
        numbers = self.graph.known_numbers(edge)
        return any(number in self.numbers for number in numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edges) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        shown = ", ".join(str(edge) for edge in self[:3])
        return f"<Edges: {len(self):,} ({shown}{', …' if len(self) > 3 else ''})>"
