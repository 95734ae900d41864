"""The nodes of a computation graph, who writes to the residual stream and who reads it, and its edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

NodeKind = Literal["embed", "attention", "mlp", "output"]
"""What a node is, as pictures colour it."""


@dataclass(frozen=True)
class SrcNode:
    """Something that writes to the residual stream: `Resid Start`, a head `A5.2`, an `MLP 3`.

    `idx` is its place among all sources, `site` and `slot` where the anatomy finds it, `depth`
    its place along the flow (0 for the embedding), `layer` its block (None at the stream's ends).
    """

    name: str
    idx: int
    site: int
    slot: int
    kind: NodeKind
    depth: int
    layer: int | None
    head: int | None

    @property
    def unit(self) -> str:
        """The node this source is the output of: itself."""
        return self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DestNode:
    """Something that reads the residual stream: `A7.1.Q`, `MLP 7`, `Resid End`.

    `unit` is the node it is an input of ("A7.1" for "A7.1.Q"), `module_name` its key in
    `PruneScores`, `slot` its row there, and `n_sources` how many sources stand before it.
    """

    name: str
    unit: str
    module_name: str
    slot: int
    n_sources: int
    kind: NodeKind
    depth: int
    layer: int | None
    head: int | None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DestModule:
    """The destinations that share one tensor of scores, `[seq?] [head?] [n_sources]`.

    `offset` is the number of its first edge among the edges of one position.
    """

    name: str
    dests: tuple[DestNode, ...]
    n_sources: int
    has_heads: bool
    offset: int

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of its scores without the position axis."""
        return (len(self.dests), self.n_sources) if self.has_heads else (self.n_sources,)

    @property
    def n_edges(self) -> int:
        """How many edges end here, at one position."""
        return len(self.dests) * self.n_sources


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
