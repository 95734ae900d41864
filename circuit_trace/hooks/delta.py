"""The change that a plan makes to what each destination reads: Σ mask · (patched − current).

A destination's input in a patched pass is `r + Σ_e m_e (P_s − C_s)`, `r` being the residual stream
where it reads, `C_s` what the source wrote in this very pass and `P_s` the patched output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import DestModule
from circuit_trace.plan import Plan, SiteOutput, project

SPARSE_HEADS_PER_SOURCE = 4
"""Where a source feeds up to so many of a module's heads on average (and not more than half), adding
edges one by one beats a matrix product, which reads all sources' differences whatever the masks."""


Entry = tuple[tuple[int, ...], float]
"""A place in a module's weights, `([pos,] head, row)`, and the mask there."""


class Scratch:
    """Memory that each destination's input is computed in, one after the other.

    On a CPU fresh memory costs as much as the sums made in it: it is handed out page by page.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def like(self, tensor: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of that shape; it is overwritten when the next one is asked for."""
        size = math.prod(shape)
        memory = self._memory
        kind = tensor.dtype, tensor.device
        if memory is None or memory.numel() < size or (memory.dtype, memory.device) != kind:
            self._memory = memory = tensor.new_empty(size)
        return memory[:size].view(shape)


@dataclass(frozen=True, eq=False)
class Terms:
    """A change that is still to be summed: `weights` times `rows`.

    `rows` are source differences, `[row, batch, pos, d_model]`, at all positions; `weights` is
    `[head, row]` or `[pos, head, row]`, and `entries` lists what of it is not zero, where that is
    little enough to be added one by one.
    """

    rows: Tensor
    weights: Tensor
    entries: list[Entry] | None


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to the stream as some heads of a module read it, at some or all positions.

    It is given by `values`, or by `terms`, which are then summed on the stream itself.
    """

    heads: tuple[int, ...]
    positions: Tensor | None
    values: Float[Tensor, "head batch pos d_model"] | None
    terms: Terms | None = None

    def dense(self) -> Float[Tensor, "head batch pos d_model"]:
        """What is added, as one tensor."""
        if self.values is not None:
            return self.values
        assert self.terms is not None
        return self._summed(torch.zeros_like(self._at(self.terms.rows[0])), Scratch())

    def on(
        self, stream: Float[Tensor, "batch seq d_model"], scratch: Scratch
    ) -> Float[Tensor, "head batch pos d_model"]:
        """The stream as each head reads it."""
        at = self._at(stream)
        is_elsewhere = self.terms is not None and self.terms.rows.device != stream.device
        # Autograd saves what is read, even where only the weights that read it learn. And a change is
        # moved once, if layers are on several devices.
        if self.terms is None or torch.is_grad_enabled() or is_elsewhere:
            return at + self.dense().to(at)
        if at.dtype.itemsize < 4:  # each of many small changes would be rounded as the stream is
            change = self._summed(torch.zeros_like(at, dtype=torch.float32), scratch)
            return (at + change).to(at.dtype)
        return self._summed(at, scratch)

    def _at(self, tensor: Tensor) -> Tensor:
        """The positions that are touched."""
        return tensor if self.positions is None else tensor[:, self.positions.to(tensor.device)]

    def _summed(self, start: Tensor, scratch: Scratch) -> Tensor:
        assert self.terms is not None
        rows, weights, entries = self.terms.rows, self.terms.weights, self.terms.entries
        total = scratch.like(start, len(self.heads), *start.shape)
        if entries is None and self.positions is None and rows.dtype == total.dtype:
            torch.mm(weights.to(rows), rows.flatten(1), out=total.flatten(1))
            return total.add_(start)
        if entries is None:
            return total.copy_(start).add_(_product(weights, rows, self.positions))
        if self.positions is not None:
            total.copy_(start)
            at = self.positions.tolist()
            for (place, head, row), weight in entries:
                total[head, :, place].add_(rows[row, :, at[place]].to(total), alpha=weight)
            return total
        begun: set[int] = set()
        for (head, row), weight in entries:
            addend = rows[row].to(total)
            if head in begun:
                total[head].add_(addend, alpha=weight)
            else:
                torch.add(start, addend, alpha=weight, out=total[head])
                begun.add(head)
        return total


def _product(
    weights: Tensor, rows: Tensor, positions: Tensor | None
) -> Float[Tensor, "head batch pos d_model"]:
    if positions is None:
        return (weights.to(rows) @ rows.flatten(1)).unflatten(1, rows.shape[1:])
    rows = rows[:, :, positions.to(rows.device)]
    return torch.einsum("phk,kbpd->hbpd", weights.to(rows), rows)


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
        most = min(SPARSE_HEADS_PER_SOURCE, (len(self.heads) + 1) // 2)
        if len(places) > most * self.weights.shape[-1]:
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
        return _compress(plan.graph.module_by_name[module], plan.mask_now(module), self.rows)


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
        self.parts: list[Tensor] = []
        self.has_graph = False
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
        if self.plan.patched.real is not None:  # elsewhere there is nothing to patch in
            real = self.plan.patched.real.to(difference.device)[..., None, None]
            difference = torch.where(real, difference, torch.zeros_like(difference))
        if torch.is_grad_enabled():
            # Autograd cannot follow writes into one buffer that later products have saved.
            block = project(difference, weight, slots, gain)
            self.parts.append(block.to(self.parts[0].device) if self.parts else block)
            self.has_graph = True
            return
        batch, seq = difference.shape[:2]
        if self.buffer is None:
            shape = (len(self.plan.rows), batch, seq, current.d_model)
            dtype = difference.dtype if weight is None else weight.dtype
            device = self.parts[0].device if self.parts else difference.device
            self.buffer = torch.empty(shape, dtype=dtype, device=device)
        rows = self.buffer[self.n_filled : self.n_filled + len(slots)]
        project(difference, weight, slots, gain, out=rows)
        self.parts.append(rows)
        self.n_filled += len(slots)

    def at(self, module: str) -> Delta | None:
        """The change of what a module's heads read, None where nothing is patched there."""
        mask = self.plan.mask(module)
        if mask is None:
            return None
        n_rows = mask.weights.shape[-1]
        # Grad may be switched within a pass (checkpointing does): then parts are of both kinds.
        if self.has_graph or self.buffer is None:
            rows = torch.cat(self.parts)[:n_rows]
        else:
            rows = self.buffer[:n_rows]
        if rows.requires_grad or mask.weights.requires_grad:
            return Delta(mask.heads, mask.positions, _product(mask.weights, rows, mask.positions))
        terms = Terms(rows, mask.weights, self.plan.entries[module])
        return Delta(mask.heads, mask.positions, None, terms)


def combine(deltas: list[Delta], n_positions: int) -> Delta:
    """Add the changes that several plans make to one module."""
    if len(deltas) == 1:
        return deltas[0]
    heads = sorted({head for delta in deltas for head in delta.heads})
    first = deltas[0].dense()
    total = first.new_zeros((len(heads), first.shape[1], n_positions, first.shape[3]))
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
        total = total.index_put(where, delta.dense(), accumulate=True)
    return Delta(tuple(heads), None, total)


def add_delta(tensor: Tensor, delta: Delta) -> Tensor:
    """The stream itself, changed."""
    changed = delta.on(tensor, Scratch())[0]  # it outlives this hook
    if delta.positions is None:
        return changed
    whole = tensor.clone()
    whole[:, delta.positions.to(tensor.device)] = changed
    return whole


def replace_heads(tensor: Tensor, n_heads: int, delta: Delta, new: Tensor) -> Tensor:
    """A tensor of heads, in whichever layout the model uses, with the patched heads replaced."""
    if tensor[0, 0].numel() != n_heads * new.shape[-1]:
        raise InputError(
            f"A tensor of {n_heads} heads × {new.shape[-1]} was to be patched, but this pass has "
            f"the shape {tuple(tensor.shape)}. If the model's settings were changed after it was "
            "wrapped (ungrouped key-value heads, for instance), wrap it again."
        )
    heads = tensor.reshape(*tensor.shape[:2], n_heads, -1).clone()
    index = torch.tensor(delta.heads, device=tensor.device)
    values = new.permute(1, 2, 0, 3).to(heads)
    if delta.positions is None:
        heads[:, :, index] = values
    else:
        positions = delta.positions.to(tensor.device)
        heads[:, positions[:, None], index[None, :]] = values
    return heads.view_as(tensor)
