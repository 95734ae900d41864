"""The change that a plan makes to what each destination reads: Σ mask · (patched − current).

A destination's input in a patched pass is `r + Σ_e m_e (P_s − C_s)`, `r` being the residual stream
where it reads, `C_s` what the source wrote in this very pass and `P_s` the patched output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import DestModule
from circuit_trace.plan import Plan, SiteOutput, project

SPARSE_ENTRIES_PER_HEAD = 4
"""Up to so many masked edges a head, adding them one by one beats a matrix product."""


Entry = tuple[tuple[int, ...], float]
"""A place in a module's weights, `([pos,] head, row)`, and the mask there."""


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to the stream as some heads of a module read it, at some or all positions."""

    heads: tuple[int, ...]
    positions: Tensor | None
    values: Float[Tensor, "head batch pos d_model"]


@dataclass(frozen=True, eq=False)
class ModuleMask:
    """The part of one module's mask that is not zero: its heads, positions and sources.

    `weights` is `[head, row]` or, with positions, `[pos, head, row]`; a row is a needed source.
    """

    heads: tuple[int, ...]
    positions: Tensor | None
    weights: Tensor

    def entries(self) -> list[Entry] | None:
        """The non-zero weights and their places, where they are few enough to add one by one."""
        if self.weights.requires_grad:
            return None
        places = self.weights.nonzero()
        lines = len(self.heads) * (1 if self.positions is None else len(self.positions))
        if len(places) > SPARSE_ENTRIES_PER_HEAD * lines:
            return None
        values = self.weights[tuple(places.T)].tolist()
        return [(tuple(place), value) for place, value in zip(places.tolist(), values, strict=True)]


class PlanDeltas:
    """A plan made ready to apply: which source differences it needs, and each module's mask."""

    def __init__(self, plan: Plan) -> None:
        assert plan.patched is not None
        self.patched = plan.patched
        self.plan = plan
        self.rows = _needed_sources(plan)
        self.slots_of_site: dict[int, list[int]] = {}
        for row in self.rows:
            src = plan.graph.srcs[row]
            self.slots_of_site.setdefault(src.site, []).append(src.slot)
        self.masks = {name: self._compressed(name) for name in plan.masks}
        self.entries = {name: mask.entries() for name, mask in self.masks.items()}

    def mask(self, module: str) -> ModuleMask | None:
        """A module's mask; one that learns is read anew, since it may change between passes."""
        mask = self.masks.get(module)
        return self._compressed(module) if mask and mask.weights.requires_grad else mask

    def _compressed(self, module: str) -> ModuleMask:
        plan = self.plan
        return _compress(plan.graph.module_by_name[module], plan.masks[module], self.rows)


def _columns(module: DestModule, mask: Tensor) -> Tensor:
    """The mask as `[pos?, head, source]`, a head axis in every case."""
    lead = mask.shape[: mask.ndim - len(module.shape)]
    return mask.reshape(*lead, len(module.dests), module.n_sources)


def _needed_sources(plan: Plan) -> list[int]:
    needed: set[int] = set()
    for name, mask in plan.masks.items():
        module = plan.graph.module_by_name[name]
        if mask.requires_grad:
            needed.update(range(module.n_sources))
        else:
            columns = _columns(module, mask).reshape(-1, module.n_sources)
            needed.update(columns.any(0).nonzero()[:, 0].tolist())
    return sorted(needed)


def _compress(module: DestModule, mask: Tensor, rows: list[int]) -> ModuleMask:
    columns = _columns(module, mask)
    columns = columns[..., [row for row in rows if row < module.n_sources]]
    touched = torch.ones_like(columns, dtype=torch.bool) if mask.requires_grad else columns != 0
    by_head = touched.any(-1).reshape(-1, columns.shape[-2])
    heads = by_head.any(0).nonzero()[:, 0]
    positions = None
    if columns.ndim == 3:
        positions = by_head.any(1).nonzero()[:, 0]
        columns = columns[positions]
    return ModuleMask(tuple(heads.tolist()), positions, columns[..., heads, :])


class PassDeltas:
    """The source differences of one pass, filled as the sources write and read by destinations."""

    def __init__(self, plan: PlanDeltas) -> None:
        self.plan = plan
        self.blocks: list[Tensor] = []
        self.buffer: Tensor | None = None
        self.n_filled = 0

    def source_wrote(self, site: int, current: SiteOutput) -> None:
        """Take in what a source site wrote in this pass, if an edge that is patched starts there."""
        slots = self.plan.slots_of_site.get(site)
        if slots is None:
            return
        patched = self.plan.patched.sites[site]
        if not patched.shares_weight(current):  # outputs of another model, or of other weights
            change = patched.project(slots).to(current.code) - current.project(slots)
            difference, weight, gain = change.permute(1, 2, 0, 3), None, None
            slots = list(range(len(slots)))
        else:
            difference = patched.code.to(current.code) - current.code
            weight, gain = current.weight, current.gain
        if torch.is_grad_enabled():
            # Autograd cannot follow writes into one buffer that later products have saved.
            self.blocks.append(project(difference, weight, slots, gain))
            return
        batch, seq = difference.shape[:2]
        if self.buffer is None:
            shape = (len(self.plan.rows), batch, seq, current.d_model)
            dtype = difference.dtype if weight is None else weight.dtype
            self.buffer = torch.empty(shape, dtype=dtype, device=difference.device)
        rows = slice(self.n_filled, self.n_filled + len(slots))
        project(difference, weight, slots, gain, out=self.buffer[rows])
        self.n_filled += len(slots)

    def at(self, module: str) -> Delta | None:
        """The change of what a module's heads read, None where nothing is patched there."""
        mask = self.plan.mask(module)
        if mask is None:
            return None
        n_rows = mask.weights.shape[-1]
        rows = torch.cat(self.blocks) if self.buffer is None else self.buffer
        rows = rows[:n_rows]
        entries = self.plan.entries[module]
        if mask.positions is not None:
            rows = rows[:, :, mask.positions.to(rows.device)]
        if entries is not None:
            values = _sum_entries(rows, len(mask.heads), entries)
        elif mask.positions is None:
            values = (mask.weights.to(rows) @ rows.flatten(1)).unflatten(1, rows.shape[1:])
        else:
            values = torch.einsum("phk,kbpd->hbpd", mask.weights.to(rows), rows)
        return Delta(mask.heads, mask.positions, values)


def _sum_entries(rows: Tensor, n_heads: int, entries: list[Entry]) -> Tensor:
    (place, weight), *others = entries
    if not others and len(place) == 2:
        row = rows[place[1] : place[1] + 1]
        return row if weight == 1 else row * weight
    values = rows.new_zeros((n_heads, *rows.shape[1:]))
    for (*position, head, row), weight in entries:
        if position:
            values[head][:, position[0]].add_(rows[row][:, position[0]], alpha=weight)
        else:
            values[head].add_(rows[row], alpha=weight)
    return values


def combine(deltas: list[Delta], n_positions: int) -> Delta:
    """Add the changes that several plans make to one module."""
    if len(deltas) == 1:
        return deltas[0]
    heads = sorted({head for delta in deltas for head in delta.heads})
    head_batch_d = deltas[0].values
    total = head_batch_d.new_zeros(
        (len(heads), head_batch_d.shape[1], n_positions, head_batch_d.shape[3])
    )
    for delta in deltas:
        index = torch.tensor([heads.index(head) for head in delta.heads], device=total.device)
        positions = (torch.arange(n_positions) if delta.positions is None else delta.positions).to(
            total.device
        )
        where = (
            index[:, None, None],
            torch.arange(total.shape[1], device=total.device)[None, :, None],
            positions[None, None, :],
        )
        total = total.index_put(where, delta.values, accumulate=True)
    return Delta(tuple(heads), None, total)
