"""Numbers of edges: norms, cosines, projections and masks, for all edges at once.

An edge's numbers are those of its source at one position. So each source is projected once, a site at
a time, and of its vectors only these numbers are kept; edges look them up. Three vectors make up all:
clean K, current C and patched P; what is received is (1 − m) C + m P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit_trace.graph import Edge
from circuit_trace.plan import Plan, SourceOutputs, flat_scores
from circuit_trace.record.compare import Pair, pair_of
from circuit_trace.record.lens import Direction, carried
from circuit_trace.record.positions import largest_of, last_of, read_at
from circuit_trace.record.record import Record
from circuit_trace.record.rows import Rows

BatchIdx = int | Literal["mean"]
"""An element of the batch, or the mean over all of them."""


@dataclass(frozen=True, eq=False)
class EdgeNumbers:
    """Numbers of some edges, in their order, each at its position in `at` (-1 where a mean is over
    prompts that end at several).

    `delta_norm` and `cosine` compare the two of `pair`, `before_…` and `after_…` are theirs. Norms of
    what the pass does not know are None. Without a pair `after_…` are the current output's,
    `before_…` None, and `delta_norm` and `cosine` NaN.
    """

    pair: Pair | None
    at: Int[Tensor, " edge"]
    mask: Float[Tensor, " edge"]
    clean_norm: Float[Tensor, " edge"] | None
    current_norm: Float[Tensor, " edge"]
    patched_norm: Float[Tensor, " edge"] | None
    received_norm: Float[Tensor, " edge"]
    delta_norm: Float[Tensor, " edge"]
    cosine: Float[Tensor, " edge"]
    before_values: Float[Tensor, "edge value"] | None
    after_values: Float[Tensor, "edge value"]
    received_values: Float[Tensor, "edge value"]
    before_projection: Float[Tensor, " edge"] | None = None
    after_projection: Float[Tensor, " edge"] | None = None

    @property
    def before_norm(self) -> Float[Tensor, " edge"]:
        """The norm of what is compared with; NaN without a pair."""
        return self.delta_norm if self.pair is None else getattr(self, f"{self.pair[0]}_norm")

    @property
    def after_norm(self) -> Float[Tensor, " edge"]:
        """The norm of what is compared."""
        return getattr(self, f"{'current' if self.pair is None else self.pair[1]}_norm")

    @property
    def projected(self) -> Float[Tensor, " edge"]:
        """What the change adds along the direction; without a pair what the current output has."""
        assert self.after_projection is not None
        if self.before_projection is None:
            return self.after_projection
        return self.after_projection - self.before_projection


def edge_numbers(
    trace: Record,
    edges: Sequence[Edge] | Rows,
    batch_idx: BatchIdx,
    n_values: int = 0,
    direction: Any = None,
    compare: Any = None,
    at: Any = None,
) -> EdgeNumbers:
    """Compute the numbers of some edges for one element of the batch or as means over all, on the
    CPU; projections are dot products with `direction` (see `Direction.read`).

    `compare` is read by `pair_of`. Edges without positions of their own are looked at where `at`
    says: at one position, at each prompt's last, at a position for each of them, or (None) where each
    of them changes most.
    """
    rows = edges if isinstance(edges, Rows) else Rows.of(trace.graph, edges)
    pair = pair_of(trace, compare)
    along = None if direction is None else Direction.read(trace, direction)
    mask = flat_scores(trace.graph, trace.masks)[rows.numbers].float()
    owners = trace.plan_of(rows.numbers.tolist())
    plans = {id(plan): plan for plan in owners if plan is not None and plan.patched is not None}
    place = {key: number for number, key in enumerate(plans)}
    own = torch.tensor([place.get(id(owner), 0) for owner in owners], dtype=torch.long)
    found = _Found(rows.src, mask, own)
    vectors = _Vectors.of(trace, list(plans.values()))
    elements = list(range(trace.batch)) if batch_idx == "mean" else [batch_idx]
    tables = [_Tables.of(trace, rows, vectors, b, n_values, along) for b in elements]
    where = _positions(trace, rows, found, tables, elements, pair, at)
    every = [table.numbers(found, each, pair) for table, each in zip(tables, where, strict=True)]
    return every[0] if len(every) == 1 else _mean(every)


def _mean(every: Sequence[EdgeNumbers]) -> EdgeNumbers:
    """Means over the elements of a batch; positions where they agree."""
    means: dict[str, Any] = {"pair": every[0].pair}
    at = torch.stack([one.at for one in every])
    means["at"] = torch.where((at == at[0]).all(0), at[0], -1)
    for field in fields(EdgeNumbers)[2:]:
        found = [getattr(one, field.name) for one in every]
        means[field.name] = None if found[0] is None else torch.stack(found).mean(0)
    return EdgeNumbers(**means)


@dataclass(frozen=True, eq=False)
class _Found:
    """The source, mask and patching plan of each edge."""

    src: Int[Tensor, " edge"]
    mask: Float[Tensor, " edge"]
    own: Int[Tensor, " edge"]

    def alike(self) -> tuple[_Found, Int[Tensor, " edge"]]:
        """Edges that differ in none of the three once, and each edge's place among them."""
        key = torch.stack([self.src.double(), self.mask.double(), self.own.double()], dim=1)
        once, places = torch.unique(key, dim=0, return_inverse=True)
        return _Found(once[:, 0].long(), once[:, 1].float(), once[:, 2].long()), places


@dataclass(frozen=True, eq=False)
class _Vectors:
    """The outputs that numbers are made of, each once, and where clean, current and what each plan
    patches in stand among them; None where the pass does not know it."""

    outputs: tuple[SourceOutputs, ...]
    clean: int | None
    current: int
    patched: tuple[int, ...]

    @classmethod
    def of(cls, trace: Record, plans: Sequence[Plan]) -> _Vectors:
        outputs = [trace.current]
        clean = None if trace.clean is None else 0
        if trace.clean is not None and trace.clean is not trace.current:
            clean = len(outputs)
            outputs.append(trace.clean)
        patched = [plan.patched for plan in plans if plan.patched is not None]
        start = len(outputs)
        return cls((*outputs, *patched), clean, 0, tuple(range(start, start + len(patched))))


def _positions(
    trace: Record,
    rows: Rows,
    found: _Found,
    tables: Sequence[_Tables],
    elements: Sequence[int],
    pair: Pair | None,
    at: Any,
) -> list[Int[Tensor, " edge"]]:
    """The position of each edge, for each element of the batch that is looked at."""
    if isinstance(at, Tensor):
        return [at] * len(tables)
    wanted = read_at(at, trace.seq, trace.graph.seq_len)
    if wanted is None or (len(rows) and bool((rows.position >= 0).all())):
        return [rows.position] * len(tables)
    real = trace.real_positions[list(elements)]
    if wanted == "last" or (wanted == "largest" and pair is None):
        return [last.expand(len(rows)) for last in last_of(real)]
    if wanted != "largest":
        return [torch.full((len(rows),), wanted)] * len(tables)
    once, places = found.alike()
    changes = torch.stack([table.changes(once, pair) for table in tables]).mean(0)
    return [largest_of(changes, real)[places]] * len(tables)


@dataclass(frozen=True, eq=False)
class _Tables:
    """For every source and position: norms, values and projections of each output, and how each two
    lie to each other; 0 for sources that were not asked for."""

    vectors: _Vectors
    norm: Float[Tensor, "output source pos"]
    apart: Float[Tensor, "output output source pos"]
    dot: Float[Tensor, "output output source pos"]
    values: Float[Tensor, "output source pos value"]
    along: Float[Tensor, "output source pos"] | None

    @classmethod
    def of(
        cls,
        trace: Record,
        rows: Rows,
        vectors: _Vectors,
        batch_idx: int,
        n_values: int,
        direction: Direction | None,
    ) -> _Tables:
        """Project the sources of these edges, a site at a time."""
        n, shape = len(vectors.outputs), (len(trace.graph.srcs), trace.seq)
        norm, along = torch.zeros(2, n, *shape).unbind()
        apart, dot = torch.zeros(2, n, n, *shape).unbind()
        values = torch.zeros(n, *shape, min(n_values, trace.current.sites[0].d_model))
        axis = None if direction is None else direction.at(trace, batch_idx)
        by_site: dict[int, list[int]] = {}
        for source in rows.src.unique().tolist():
            by_site.setdefault(trace.graph.srcs[source].site, []).append(source)
        for found in by_site.values():
            here = [trace.graph.srcs[source] for source in found]
            every = torch.stack(
                [one.vectors(here, batch_idx).detach().float().cpu() for one in vectors.outputs]
            )
            norm[:, found] = every.norm(dim=-1)
            values[:, found] = every[..., : values.shape[-1]]
            for one in range(n):
                for other in range(one + 1):
                    between = (every[one] - every[other]).norm(dim=-1)
                    product = (every[one] * every[other]).sum(-1)
                    apart[one, other, found] = apart[other, one, found] = between
                    dot[one, other, found] = dot[other, one, found] = product
            if axis is not None:
                each = axis.expand(every.shape[2:])
                along[:, found] = torch.einsum("onsd,sd->ons", every, each)
        return cls(vectors, norm, apart, dot, values, None if axis is None else along)

    def changes(self, found: _Found, pair: Pair | None) -> Float[Tensor, "edge seq"]:
        """‖change‖ from the one of a pair to the other, at every position."""
        return _Mixed(self, found, None).apart(*pair) if pair else self.norm[0, found.src]

    def numbers(self, found: _Found, at: Int[Tensor, " edge"], pair: Pair | None) -> EdgeNumbers:
        """The numbers of edges at their positions."""
        mixed = _Mixed(self, found, at)
        nan = torch.full((len(found.src),), float("nan"))
        is_patched, is_clean = bool(self.vectors.patched), self.vectors.clean is not None
        before, after = pair or (None, "current")
        return EdgeNumbers(
            pair=pair,
            at=at,
            mask=found.mask,
            clean_norm=mixed.norm("clean") if is_clean else None,
            current_norm=mixed.norm("current"),
            patched_norm=mixed.norm("patched") if is_patched else None,
            received_norm=mixed.norm("received"),
            delta_norm=nan if before is None else mixed.apart(before, after),
            cosine=nan if before is None else mixed.cosine(before, after),
            before_values=None if before is None else mixed.of(self.values, before),
            after_values=mixed.of(self.values, after),
            received_values=mixed.of(self.values, "received"),
            before_projection=(
                None if before is None or self.along is None else mixed.of(self.along, before)
            ),
            after_projection=None if self.along is None else mixed.of(self.along, after),
        )


class _Mixed:
    """Numbers of edges from the tables, at their positions or (None) at all; what is received is
    mixed from current and patched."""

    def __init__(self, tables: _Tables, found: _Found, at: Int[Tensor, " edge"] | None) -> None:
        self._tables = tables
        self._src, self._at = found.src, at
        vectors = tables.vectors
        now = torch.full_like(found.src, vectors.current)
        then = now
        if vectors.patched:
            then = torch.tensor(vectors.patched)[found.own]
        clean = now if vectors.clean is None else torch.full_like(now, vectors.clean)
        self._place = {"clean": clean, "current": now, "patched": then}
        # Without anything patched in, what is received is current.
        self._mask = found.mask if at is not None else found.mask[:, None]

    def _take(self, table: Tensor, *which: Tensor) -> Tensor:
        if self._at is None:
            return table[(*which, self._src)]
        return table[(*which, self._src, self._at)]

    def of(self, table: Tensor, name: str) -> Tensor:
        """A number that is linear in the vector, or several."""
        if name != "received":
            return self._take(table, self._place[name])
        parts = [self._take(table, self._place[one]) for one in ("current", "patched")]
        mask = self._mask[:, None] if parts[0].ndim > self._mask.ndim else self._mask
        return carried(mask, *parts)

    def norm(self, name: str) -> Tensor:
        """‖vector‖."""
        if name != "received":
            return self._take(self._tables.norm, self._place[name])
        now, then = self._place["current"], self._place["patched"]
        dot = self._take(self._tables.dot, now, then)
        return _mixed_norm(self._mask, self.norm("current"), self.norm("patched"), dot)

    def apart(self, one: str, other: str) -> Tensor:
        """‖other − one‖."""
        if one == "received":
            one, other = other, one
        first = self._place[one]
        if other != "received":
            return self._take(self._tables.apart, first, self._place[other])
        # What is received is (1 − m) C + m P, so from X it is (1 − m) (C − X) + m (P − X).
        now, then = self._place["current"], self._place["patched"]
        to_now = self._take(self._tables.apart, first, now)
        to_then = self._take(self._tables.apart, first, then)
        across = self._take(self._tables.apart, now, then)
        # 2 ⟨C − X, P − X⟩ = ‖C − X‖² + ‖P − X‖² − ‖P − C‖².
        dot = (to_now**2 + to_then**2 - across**2) / 2
        return _mixed_norm(self._mask, to_now, to_then, dot)

    def cosine(self, one: str, other: str) -> Tensor:
        """⟨one, other⟩ / (‖one‖ ‖other‖)."""
        if one == "received":
            one, other = other, one
        first = self._place[one]
        if other == "received":
            dots = [
                self._take(self._tables.dot, first, self._place[part])
                for part in ("current", "patched")
            ]
            dot = carried(self._mask, *dots)
        else:
            dot = self._take(self._tables.dot, first, self._place[other])
        return (dot / (self.norm(one) * self.norm(other))).clamp(-1, 1)


def _mixed_norm(mask: Tensor, current: Tensor, patched: Tensor, dot: Tensor) -> Tensor:
    """‖(1 − mask) · current + mask · patched‖ from both norms and the dot product."""
    rest = 1 - mask
    square = (rest * current) ** 2 + (mask * patched) ** 2 + 2 * mask * rest * dot
    mixed = square.clamp_min(0).sqrt()
    return torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))
