"""Edges as rows of numbers: norms, cosine and mask, computed for all edges at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import Edge
from circuit_trace.plan import SourceOutputs
from circuit_trace.trace.lens import Direction, Tokens, top_tokens

if TYPE_CHECKING:
    from circuit_trace.trace.trace import Trace

BatchIdx = int | Literal["mean"]
"""An element of the batch, or the mean over all of them."""


@dataclass(frozen=True, eq=False)
class EdgeNumbers:
    """Numbers of some edges, in their order; `patched_norm`, `delta_norm` and `cosine` are NaN, and
    other patched numbers None, where nothing was patched in.

    With a position the vectors are those at it. Without, norms and cosine run over all positions
    and `values` are the last position's.
    """

    mask: Float[Tensor, " edge"]
    current_norm: Float[Tensor, " edge"]
    patched_norm: Float[Tensor, " edge"]
    delta_norm: Float[Tensor, " edge"]
    cosine: Float[Tensor, " edge"]
    received_norm: Float[Tensor, " edge"]
    current_values: Float[Tensor, "edge value"]
    patched_values: Float[Tensor, "edge value"] | None
    received_values: Float[Tensor, "edge value"]
    current_projection: Float[Tensor, " edge"] | None = None
    patched_projection: Float[Tensor, " edge"] | None = None


def edge_numbers(
    trace: Trace,
    edges: Sequence[Edge],
    batch_idx: BatchIdx,
    n_values: int = 0,
    direction: Any = None,
) -> EdgeNumbers:
    """Compute the numbers of some edges for one element of the batch or as means over all, on the
    CPU; projections are dot products with `direction` (see `Direction.read`).

    Each source is projected once, however many edges leave it.
    """
    along = None if direction is None else Direction.read(trace, direction)
    if batch_idx != "mean":
        return _numbers_of(trace, edges, batch_idx, n_values, along)
    every = [_numbers_of(trace, edges, b, n_values, along) for b in range(trace.batch)]
    means = {}
    for field in fields(EdgeNumbers):
        found = [getattr(one, field.name) for one in every]
        means[field.name] = None if found[0] is None else torch.stack(found).mean(0)
    return EdgeNumbers(**means)


def _numbers_of(
    trace: Trace,
    edges: Sequence[Edge],
    batch_idx: int,
    n_values: int,
    direction: Direction | None,
) -> EdgeNumbers:
    graph = trace.graph
    numbers = [graph.number(edge) for edge in edges]
    mask = _masks(trace, numbers)
    plans = trace.plan_of(numbers)
    current = _Vectors(trace.current, edges, batch_idx, n_values)
    parts = {id(plan): plan for plan in plans if plan is not None and plan.patched is not None}
    patched_norm, delta_norm, cosine = torch.full((3, len(edges)), float("nan")).unbind()
    values = current.values.clone() if parts else None
    received, carried = current.norm.clone(), current.values.clone()
    vector = None if direction is None else direction.at(trace, batch_idx)
    along = None if vector is None else current.along(vector)
    patched_along = None if along is None or not parts else along.clone()
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
        received[at] = _mixed_norm(mask[at], norm, patched.norm, dot)
        carried[at] = _mixed(mask[at, None], current.values[at], patched.values)
        if vector is not None and patched_along is not None:
            patched_along[at] = patched.along(vector)
    return EdgeNumbers(
        mask,
        current.norm,
        patched_norm,
        delta_norm,
        cosine,
        received,
        current.values,
        values,
        carried,
        along,
        patched_along,
    )


def _mixed_norm(mask: Tensor, current: Tensor, patched: Tensor, dot: Tensor) -> Tensor:
    """‖(1 − mask) · current + mask · patched‖ from both norms and the dot product."""
    rest = 1 - mask
    square = (rest * current) ** 2 + (mask * patched) ** 2 + 2 * mask * rest * dot
    return _carried(mask, current, patched, square.clamp_min(0).sqrt())


def _mixed(mask: Tensor, current: Tensor, patched: Tensor) -> Tensor:
    """(1 − mask) · current + mask · patched."""
    return _carried(mask, current, patched, (1 - mask) * current + mask * patched)


def _carried(mask: Tensor, current: Tensor, patched: Tensor, mixed: Tensor) -> Tensor:
    """What an edge carries: what it does not carry must not show, be it infinite."""
    return torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))


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

    def along(self, vector: Float[Tensor, "*seq d_model"]) -> Tensor:
        """The dot product with a vector, edge by edge; the last position's where there is none."""
        shares = torch.einsum("nsd,sd->ns", self.vectors, vector.expand(self.vectors.shape[1:]))
        return shares[self.source, self.position]

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


def _masks(trace: Trace, numbers: Sequence[int]) -> Tensor:
    """The masks of the edges of these numbers."""
    per_position = [
        trace.masks[module.name].reshape(-1, module.n_edges) for module in trace.graph.modules
    ]
    return (
        torch.cat(per_position, dim=1).reshape(-1)[torch.tensor(numbers, dtype=torch.long)].float()
    )


def edge_table(
    trace: Trace,
    edges: Sequence[Edge],
    batch_idx: BatchIdx,
    direction: Any = None,
    n_tokens: int = 0,
) -> pd.DataFrame:
    """The rows of `Trace.table`."""
    listed = list(edges)
    numbers = edge_numbers(trace, listed, batch_idx, direction=direction)
    strings = None if batch_idx == "mean" else trace.token_strings(batch_idx)
    positions = [edge.seq_idx for edge in listed]
    columns: dict[str, Any] = {
        "edge": [edge.name for edge in listed],
        "src": [edge.src.name for edge in listed],
        "dest": [edge.dest.name for edge in listed],
        "seq_idx": pd.array(positions, dtype="Int64"),
        # As objects: pandas' own strings cannot hold half a surrogate pair, which tokens can.
        "token": pd.Series(
            [None if strings is None or p is None else strings[p] for p in positions], dtype=object
        ),
        "mask": numbers.mask.numpy(),
        "current_norm": numbers.current_norm.numpy(),
        "patched_norm": numbers.patched_norm.numpy(),
        "delta_norm": numbers.delta_norm.numpy(),
        "cosine": numbers.cosine.numpy(),
        "received_norm": numbers.received_norm.numpy(),
    }
    if numbers.current_projection is not None:
        columns["current_projection"] = numbers.current_projection.numpy()
        if numbers.patched_projection is not None:
            columns["patched_projection"] = numbers.patched_projection.numpy()
    if n_tokens:
        tokens = top_tokens(trace, listed, batch_idx, n_tokens)
        columns["promotes"] = [_names(raised) for raised, _ in tokens]
        columns["suppresses"] = [_names(lowered) for _, lowered in tokens]
    return pd.DataFrame(columns)


def _names(tokens: Tokens) -> tuple[str, ...]:
    return tuple(name for name, _ in tokens)
