"""Edges as rows of numbers: norms, cosine and mask, computed for all edges at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import Edge
from circuit_trace.plan import SourceOutputs

if TYPE_CHECKING:
    from circuit_trace.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class EdgeNumbers:
    """Numbers of some edges, in their order; `patched_norm` and what follows are NaN, and
    `patched_values` None, where nothing was patched in.

    With a position the vectors are those at it. Without, norms and cosine run over all positions
    and `values` are the last position's.
    """

    mask: Float[Tensor, " edge"]
    current_norm: Float[Tensor, " edge"]
    patched_norm: Float[Tensor, " edge"]
    delta_norm: Float[Tensor, " edge"]
    cosine: Float[Tensor, " edge"]
    current_values: Float[Tensor, "edge value"]
    patched_values: Float[Tensor, "edge value"] | None


def edge_numbers(
    trace: Trace, edges: Sequence[Edge], batch_idx: int, n_values: int = 0
) -> EdgeNumbers:
    """Compute the numbers of some edges for one element of the batch, on the CPU.

    Each source is projected once, however many edges leave it.
    """
    graph = trace.graph
    numbers = [graph.number(edge) for edge in edges]
    mask = torch.tensor([_mask(trace, edge) for edge in edges])
    plans = trace.plan_of(numbers)
    current = _Vectors(trace.current, edges, batch_idx, n_values)
    parts = {id(plan): plan for plan in plans if plan is not None and plan.patched is not None}
    patched_norm, delta_norm, cosine = torch.full((3, len(edges)), float("nan")).unbind()
    values = current.values.clone() if parts else None
    for plan in parts.values():
        assert plan.patched is not None
        rows = [row for row, own in enumerate(plans) if own is plan]
        chosen = [edges[row] for row in rows]
        patched = _Vectors(plan.patched, chosen, batch_idx, n_values)
        at = torch.tensor(rows)
        dot = current.dot(patched, at)
        norm = current.norm[at]
        patched_norm[at] = patched.norm
        delta_norm[at] = current.distance(patched, at)
        cosine[at] = (dot / (norm * patched.norm)).clamp(-1, 1)
        assert values is not None
        values[at] = patched.values
    return EdgeNumbers(mask, current.norm, patched_norm, delta_norm, cosine, current.values, values)


class _Vectors:
    """Source vectors of one batch element, looked up per edge: `[source, seq, d_model]`."""

    def __init__(
        self,
        outputs: SourceOutputs,
        edges: Sequence[Edge],
        batch_idx: int,
        n_values: int,
    ) -> None:
        srcs = list({edge.src.idx: edge.src for edge in edges}.values())
        place = {src.idx: number for number, src in enumerate(srcs)}
        vectors = outputs.vectors(srcs, batch_idx).detach().float().cpu()
        self.vectors = vectors
        self.source = torch.tensor([place[edge.src.idx] for edge in edges], dtype=torch.long)
        self.position = torch.tensor(
            [-1 if edge.seq_idx is None else edge.seq_idx for edge in edges], dtype=torch.long
        )
        self.norm = self._pick(vectors.norm(dim=-1), lambda rows: rows.norm(dim=-1))
        self.values = vectors[self.source, self.position, :n_values]

    def dot(self, other: _Vectors, at: Tensor) -> Tensor:
        """The products of these vectors at some edges with another's, edge by edge."""
        return self._edgewise(other, at, lambda mine, theirs: (mine * theirs).sum(-1))

    def distance(self, other: _Vectors, at: Tensor) -> Tensor:
        """The norms of the differences, edge by edge."""
        squares = self._edgewise(other, at, lambda mine, theirs: (mine - theirs).square().sum(-1))
        return squares.sqrt()

    def _pick(self, table: Tensor, over_positions) -> Tensor:
        """`table[source, position]` per edge, or its summary over positions where there is none."""
        whole = self.position < 0
        found = table[self.source, self.position]
        return torch.where(whole, over_positions(table)[self.source], found)

    def _edgewise(self, other: _Vectors, at: Tensor, combine) -> Tensor:
        """Combine the two vectors of each pair (source here, source there) once."""
        pairs = torch.stack([self.source[at], other.source])
        unique, of_edge = torch.unique(pairs, dim=1, return_inverse=True)
        table = combine(self.vectors[unique[0]], other.vectors[unique[1]])
        position = self.position[at]
        whole = position < 0
        return torch.where(whole, table.sum(-1)[of_edge], table[of_edge, position])


def _mask(trace: Trace, edge: Edge) -> float:
    dest = edge.dest
    index = [edge.seq_idx] if edge.seq_idx is not None else []
    index += [dest.slot] if dest.head is not None else []
    return float(trace.masks[dest.module_name][(*index, edge.src.idx)])


def edge_table(trace: Trace, edges: Sequence[Edge], batch_idx: int) -> pd.DataFrame:
    """The rows of `Trace.table`."""
    listed = list(edges)
    numbers = edge_numbers(trace, listed, batch_idx)
    strings = trace.token_strings(batch_idx)
    positions = [edge.seq_idx for edge in listed]
    return pd.DataFrame(
        {
            "edge": [edge.name for edge in listed],
            "src": [edge.src.name for edge in listed],
            "dest": [edge.dest.name for edge in listed],
            "seq_idx": pd.array(positions, dtype="Int64"),
            "token": [None if strings is None or p is None else strings[p] for p in positions],
            "mask": numbers.mask.numpy(),
            "current_norm": numbers.current_norm.numpy(),
            "patched_norm": numbers.patched_norm.numpy(),
            "delta_norm": numbers.delta_norm.numpy(),
            "cosine": numbers.cosine.numpy(),
        }
    )
