"""Numbers of edges: norms, cosines, projections and masks, for all edges at once.

An edge's numbers are those of its source at its position. So each source is projected once, a site
at a time, and of its vectors only these numbers are kept; edges look them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import Edge
from circuit_trace.plan import Plan, flat_scores
from circuit_trace.trace.lens import Direction
from circuit_trace.trace.rows import Rows

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
    edges: Sequence[Edge] | Rows,
    batch_idx: BatchIdx,
    n_values: int = 0,
    direction: Any = None,
) -> EdgeNumbers:
    """Compute the numbers of some edges for one element of the batch or as means over all, on the
    CPU; projections are dot products with `direction` (see `Direction.read`)."""
    rows = edges if isinstance(edges, Rows) else Rows.of(trace.graph, edges)
    along = None if direction is None else Direction.read(trace, direction)
    if batch_idx != "mean":
        return _numbers_of(trace, rows, batch_idx, n_values, along)
    every = [_numbers_of(trace, rows, b, n_values, along) for b in range(trace.batch)]
    means = {}
    for field in fields(EdgeNumbers):
        found = [getattr(one, field.name) for one in every]
        means[field.name] = None if found[0] is None else torch.stack(found).mean(0)
    return EdgeNumbers(**means)


def _numbers_of(
    trace: Trace, rows: Rows, batch_idx: int, n_values: int, direction: Direction | None
) -> EdgeNumbers:
    mask = flat_scores(trace.graph, trace.masks)[rows.numbers].float()
    vector = None if direction is None else direction.at(trace, batch_idx)
    owners = trace.plan_of(rows.numbers.tolist())
    plans = {id(plan): plan for plan in owners if plan is not None and plan.patched is not None}
    place = {key: number for number, key in enumerate(plans)}
    own = torch.tensor([place.get(id(owner), -1) for owner in owners], dtype=torch.long)
    tables = _Tables.of(trace, rows, list(plans.values()), batch_idx, n_values, vector)
    now = tables.written(rows, torch.zeros_like(own))
    if not plans:
        nan = torch.full((len(rows),), float("nan"))
        norm, values, along = now
        return EdgeNumbers(mask, norm, nan, nan, nan, norm, values, None, values, along)
    then = tables.written(rows, own + 1)
    dot = _over(tables.dot, own, rows, torch.sum)
    return EdgeNumbers(
        mask=mask,
        current_norm=now[0],
        patched_norm=then[0],
        delta_norm=_over(tables.apart, own, rows, torch.linalg.vector_norm),
        cosine=(dot / (now[0] * then[0])).clamp(-1, 1),
        received_norm=_mixed_norm(mask, now[0], then[0], dot),
        current_values=now[1],
        patched_values=then[1],
        received_values=_carried(mask[:, None], now[1], then[1]),
        current_projection=now[2],
        patched_projection=then[2],
    )


@dataclass(frozen=True, eq=False)
class _Tables:
    """Numbers of what every source wrote at every position, of what each plan patches in instead,
    and of how the two lie to each other; 0 for sources that were not asked for."""

    norm: Float[Tensor, "written source pos"]
    values: Float[Tensor, "written source pos value"]
    along: Float[Tensor, "written source pos"] | None
    apart: Float[Tensor, "plan source pos"]
    dot: Float[Tensor, "plan source pos"]

    @classmethod
    def of(
        cls,
        trace: Trace,
        rows: Rows,
        plans: Sequence[Plan],
        batch_idx: int,
        n_values: int,
        vector: Tensor | None,
    ) -> _Tables:
        """Project the sources of these edges, a site at a time."""
        shape = (len(trace.graph.srcs), trace.seq)
        norm, along = torch.zeros(2, 1 + len(plans), *shape).unbind()
        n_values = min(n_values, trace.current.sites[0].d_model)
        values = torch.zeros(1 + len(plans), *shape, n_values)
        apart, dot = torch.zeros(2, len(plans), *shape).unbind()
        by_site: dict[int, list[int]] = {}
        for source in rows.src.unique().tolist():
            by_site.setdefault(trace.graph.srcs[source].site, []).append(source)
        for found in by_site.values():
            here = [trace.graph.srcs[source] for source in found]
            now = trace.current.vectors(here, batch_idx).detach().float().cpu()
            for place in range(1 + len(plans)):
                one = now
                if place:
                    patched = plans[place - 1].patched
                    assert patched is not None
                    one = patched.vectors(here, batch_idx).detach().float().cpu()
                    dot[place - 1, found] = (now * one).sum(-1)
                    apart[place - 1, found] = (one - now).norm(dim=-1)
                norm[place, found] = one.norm(dim=-1)
                values[place, found] = one[..., :n_values]
                if vector is not None:
                    each = vector.expand(one.shape[1:])
                    along[place, found] = torch.einsum("nsd,sd->ns", one, each)
        return cls(norm, values, None if vector is None else along, apart, dot)

    def written(self, rows: Rows, which: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Norm, values and projection along each edge: at its position, or the norm over all
        positions and the rest at the last."""
        return (
            _over(self.norm, which, rows, torch.linalg.vector_norm),
            self.values[which, rows.src, rows.position],
            None if self.along is None else self.along[which, rows.src, rows.position],
        )


def _over(
    table: Float[Tensor, "plan source pos"], which: Tensor, rows: Rows, summary: Any
) -> Float[Tensor, " edge"]:
    """Each edge's number at its position, or the summary over all where it has none."""
    if bool((rows.position < 0).all()):
        return summary(table, dim=-1)[which, rows.src]
    return table[which, rows.src, rows.position]


def _mixed_norm(mask: Tensor, current: Tensor, patched: Tensor, dot: Tensor) -> Tensor:
    """‖(1 − mask) · current + mask · patched‖ from both norms and the dot product."""
    rest = 1 - mask
    square = (rest * current) ** 2 + (mask * patched) ** 2 + 2 * mask * rest * dot
    mixed = square.clamp_min(0).sqrt()
    return torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))


def _carried(mask: Tensor, current: Tensor, patched: Tensor) -> Tensor:
    """(1 − mask) · current + mask · patched; what an edge does not carry must not show, be it
    infinite."""
    mixed = (1 - mask) * current + mask * patched
    return torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))
