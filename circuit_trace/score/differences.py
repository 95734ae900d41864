"""P − C of every source of a batch, and its products with the gradients at the destinations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import DestModule, Graph
from circuit_trace.hooks.delta import Scratch
from circuit_trace.plan import SiteOutput, SourceOutputs, project


class Differences:
    """Patched less current of all sources, `[source, batch, seq, d_model]`, in float32 or wider.

    Heads are projected once, when the first destination asks for them. Where positions are told
    apart the batch and position axes stand the other way round, so that all prompts of one position
    lie together and a destination module is one (batched) matrix product in either case.
    """

    def __init__(self, graph: Graph, current: Sequence[SiteOutput], patched: SourceOutputs) -> None:
        self.graph = graph
        self._current = current
        self._patched = patched
        self._n_projected = self._n_sites = 0
        self._scratch = Scratch()

    def products(
        self, module: DestModule, gradients: Iterable[tuple[slice, Tensor]]
    ) -> Float[Tensor, "pos edge"]:
        """(P − C) · gradient of every edge into a module: at each position, or summed over all.

        The gradients `[head, batch, seq, d_model]` come for some heads at a time and add up.
        """
        rows = self._first(module.n_sources)
        has_positions = self.graph.seq_len is not None
        lead = (rows.shape[1], len(module.dests)) if has_positions else (len(module.dests),)
        whole = self._scratch.like(rows, *lead, *rows.shape[1 + has_positions :])
        begun: set[int] = set()
        for heads, part in gradients:
            into = whole[:, heads] if has_positions else whole[heads]
            part = part.permute(2, 0, 1, 3) if has_positions else part
            into.add_(part) if heads.start in begun else into.copy_(part)
            begun.add(heads.start)
        if not has_positions:
            return (whole.flatten(1) @ rows.flatten(1).T).view(1, -1)
        return torch.bmm(whole.flatten(2), rows.flatten(2).permute(1, 2, 0)).flatten(1)

    def norms(self) -> Float[Tensor, "pos source"]:
        """‖P − C‖ of every source at each position, or over all, summed over prompts."""
        rows = self._first(len(self.graph.srcs))
        if self.graph.seq_len is None:
            return rows.flatten(2).norm(dim=-1).sum(1)[None]
        return rows.norm(dim=-1).sum(2).T

    def of_site(self, number: int) -> Float[Tensor, "node batch seq d_model"]:
        """What one site's nodes would write more if they wrote what is patched in."""
        now, then = self._current[number], self._patched.sites[number]
        slots = range(now.code.shape[2])
        wide = torch.promote_types(now.code.dtype, torch.float32)
        if then.shares_weight(now):
            change = then.code.to(now.code.device, wide) - now.code.to(wide)
            return project(change, _wide(now.weight, wide), slots, _wide(now.gain, wide))
        return then.project(slots).to(now.code).to(wide) - now.project(slots).to(wide)

    def code_of_site(self, number: int) -> Float[Tensor, "batch seq node width"] | None:
        """The same before the site's weights, None where the two have different ones."""
        now, then = self._current[number], self._patched.sites[number]
        return then.code.to(now.code) - now.code if _are_equal(now.weight, then.weight) else None

    def _first(self, n_sources: int) -> Tensor:
        """The first sources' differences, those of further sites computed when they are needed."""
        while self._n_projected < n_sources:
            rows = self.of_site(self._n_sites)
            rows = rows if self.graph.seq_len is None else rows.transpose(1, 2)
            self._rows[self._n_projected : self._n_projected + len(rows)] = rows
            self._n_projected += len(rows)
            self._n_sites += 1
        return self._rows[:n_sources]

    @cached_property
    def _rows(self) -> Tensor:
        code = self._current[0].code
        batch, seq, _, d_model = code.shape
        axes = (batch, seq) if self.graph.seq_len is None else (seq, batch)
        wide = torch.promote_types(code.dtype, torch.float32)
        return code.new_empty((len(self.graph.srcs), *axes, d_model), dtype=wide)


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    """By value: some models make a new tensor of their weights each time that they are asked."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other.to(one))


def _wide(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
