"""P − C of every source of a batch, and its products with the gradients at the destinations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import DestModule, Graph
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

    def products(
        self, module: DestModule, gradient: Float[Tensor, "head batch seq d_model"]
    ) -> Float[Tensor, "pos edge"]:
        """(P − C) · gradient of every edge into a module: at each position, or summed over all."""
        rows = self._first(module.n_sources)
        gradient = gradient.to(rows)
        if self.graph.seq_len is None:
            return (gradient.flatten(1) @ rows.flatten(1).T).view(1, -1)
        by_position = gradient.permute(2, 0, 1, 3).flatten(2)
        return torch.bmm(by_position, rows.flatten(2).permute(1, 2, 0)).flatten(1)

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
        mine, theirs = now.weight, then.weight
        if mine is None or theirs is None:
            are_equal = mine is theirs
        else:  # some models make a new tensor of their weights each time that they are asked for them
            are_equal = torch.equal(mine, theirs)
        return then.code.to(now.code) - now.code if are_equal else None

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


def _wide(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
