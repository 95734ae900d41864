"""Edges as columns of numbers, so that millions need no objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuit_trace.graph import Edge, Edges, Graph


@dataclass(frozen=True, eq=False)
class Rows:
    """Some edges: each one's number in the graph, its source's and destination's places among all,
    and its position, -1 where it means all of them."""

    graph: Graph
    numbers: Int[Tensor, " edge"]
    src: Int[Tensor, " edge"]
    dest: Int[Tensor, " edge"]
    position: Int[Tensor, " edge"]

    @classmethod
    def of(cls, graph: Graph, edges: Sequence[Edge], n_positions: int | None = None) -> Rows:
        """The rows of some edges; with `n_positions`, edges of all positions have a row at each."""
        listed = edges.numbers if isinstance(edges, Edges) else [graph.number(e) for e in edges]
        numbers = torch.tensor(listed, dtype=torch.long)
        position = torch.full_like(numbers, -1)
        in_position = numbers
        if graph.seq_len is not None:
            position = numbers // graph.n_edges_per_position
            in_position = numbers % graph.n_edges_per_position
        elif n_positions is not None:
            position = torch.arange(n_positions).repeat(len(numbers))
            numbers = in_position = numbers.repeat_interleave(n_positions)
        modules = graph.modules
        offsets = torch.tensor([module.offset for module in modules])
        which = torch.bucketize(in_position, offsets, right=True) - 1
        widths = torch.tensor([module.n_sources for module in modules])[which]
        n_dests = torch.tensor([0, *(len(module.dests) for module in modules)]).cumsum(0)
        in_module = in_position - offsets[which]
        dest = n_dests[which] + in_module // widths
        return cls(graph, numbers, in_module % widths, dest, position)

    def __len__(self) -> int:
        return len(self.numbers)
