"""Nodes and edges with the attributes that auto-circuit's scripts read, made from our graph's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.graph import Edges, Graph


@runtime_checkable
class Masked(Protocol):
    """What has a mask for each edge, as a `PatchableModel` does."""

    @property
    def patch_masks(self) -> Any:
        """The masks by their modules' names."""
        ...

    def dest_wrapper(self, module_name: str) -> Any:
        """The module that holds a destination's masks."""
        ...


HEAD_DIM = 2
"""The axis of heads in `[batch, seq, head, d_model]`."""


@dataclass(frozen=True, repr=False)
class Node:
    """A node of the computation graph.

    `layer` counts attention and MLP apart (together where a block runs them in parallel), so that
    an edge leads from a lower to a higher layer. `head_idx` and `head_dim` are None without heads.
    """

    name: str
    module_name: str
    layer: int
    head_idx: int | None = None
    head_dim: int | None = None

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class SrcNode(Node):
    """Something that writes to the residual stream; `src_idx` is its place among all sources."""

    src_idx: int = 0


@dataclass(frozen=True, repr=False)
class DestNode(Node):
    """Something that reads the residual stream; `min_src_idx` is its first source, always 0."""

    min_src_idx: int = 0

    def module(self, model: Masked) -> Any:
        """The module that holds this node's masks."""
        return model.dest_wrapper(self.module_name)


@dataclass(frozen=True, repr=False)
class Edge(ct.Edge):
    """An edge between such nodes; whatever takes a `circuit_trace.Edge` takes it too."""

    src: SrcNode  # pyright: ignore[reportIncompatibleVariableOverride]
    dest: DestNode  # pyright: ignore[reportIncompatibleVariableOverride]
    seq_idx: int | None = None

    @property
    def patch_idx(self) -> tuple[int, ...]:
        """The edge's place in its destination module's masks or scores."""
        lead = (self.seq_idx, self.dest.head_idx)
        return (*(i for i in lead if i is not None), self.src.src_idx - self.dest.min_src_idx)

    def patch_mask(self, model: Masked) -> torch.nn.Parameter:
        """The masks of the destination's module, `[seq?] [head?] [n_sources]`."""
        return model.patch_masks[self.dest.module_name]

    def prune_score(self, prune_scores: ct.PruneScores) -> Tensor:
        """This edge's score."""
        return prune_scores[self.dest.module_name][self.patch_idx]

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


@dataclass(frozen=True, eq=False)
class NodeTable:
    """The nodes of a graph: sources by their number, destinations by their name."""

    srcs: tuple[SrcNode, ...]
    dests: Mapping[str, DestNode]

    @classmethod
    def of(cls, graph: Graph, source_module: Callable[[ct.SrcNode], str]) -> NodeTable:
        """Give every node of a graph its module's name and its layer."""
        # A layer ends where the next destination has more sources before it.
        ends = sorted({module.n_sources for module in graph.modules})
        srcs = tuple(
            SrcNode(
                src.name,
                source_module(src),
                bisect_right(ends, src.idx),
                src.head,
                None if src.head is None else HEAD_DIM,
                src.idx,
            )
            for src in graph.srcs
        )
        dests = {
            dest.name: DestNode(
                dest.name,
                dest.module_name,
                bisect_right(ends, dest.n_sources),
                dest.head,
                None if dest.head is None else HEAD_DIM,
            )
            for dest in graph.dests
        }
        return cls(srcs, dests)

    def edge(self, edge: ct.Edge) -> Edge:
        """The same edge between the nodes of this table."""
        return Edge(self.srcs[edge.src.idx], self.dests[edge.dest.name], edge.seq_idx)


def in_transformer_lens(src: ct.SrcNode) -> str:
    """The module that a transformer's source has in auto-circuit, which is one of TransformerLens."""
    if src.kind == "embed":
        return "blocks.0.hook_resid_pre"
    return f"blocks.{src.layer}.{'attn.hook_result' if src.kind == 'attention' else 'hook_mlp_out'}"


T_co = TypeVar("T_co", covariant=True)


class InOrder(Set[T_co]):
    """A set that cannot be changed and has an order; `-`, `&` and `|` give ordinary sets."""

    _from_iterable: Callable[..., Any] = set

    def __init__(self, items: Sequence[T_co]) -> None:
        self._items = items

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<{len(self):,} in order: {', '.join(map(str, self._items[:3]))}, …>"

    union, intersection, difference = Set.__or__, Set.__and__, Set.__sub__

    def copy(self) -> set[T_co]:
        """An ordinary set of the same, to be changed."""
        return set(self)


class EdgeList(Sequence[Edge]):
    """Edges in the graph's order, made when they are asked for."""

    def __init__(self, edges: Edges, table: NodeTable) -> None:
        self._edges = edges
        self._table = table

    def __len__(self) -> int:
        return len(self._edges)

    @overload
    def __getitem__(self, index: int) -> Edge: ...
    @overload
    def __getitem__(self, index: slice) -> EdgeList: ...
    def __getitem__(self, index: int | slice) -> Edge | EdgeList:
        if isinstance(index, slice):
            return EdgeList(self._edges[index], self._table)
        return self._table.edge(self._edges[index])

    def __contains__(self, edge: object) -> bool:
        return isinstance(edge, Edge) and edge in self._edges

    def __repr__(self) -> str:
        return repr(self._edges)


class EdgesByName(Mapping[str, Edge]):
    """The edges at one position (or at all) by their names; an unknown one raises EdgeError."""

    def __init__(self, graph: Graph, table: NodeTable, seq_idx: int | None) -> None:
        self._graph = graph
        self._table = table
        self._seq_idx = seq_idx

    def __getitem__(self, name: str) -> Edge:
        return self._table.edge(self._graph.edge(name, self._seq_idx))

    def __iter__(self) -> Iterator[str]:
        first = self._graph.edges[: len(self)]
        return (edge.name for edge in first)

    def __len__(self) -> int:
        return self._graph.n_edges_per_position
