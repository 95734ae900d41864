"""P − C of every source of a batch, and its products with the gradients at the destinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import Graph
from circuit_trace.hooks.delta import Scratch
from circuit_trace.plan import SiteOutput, SourceOutputs, project
from circuit_trace.score.pull_back import Overlap, PullBack

AT_ONCE = {"cpu": 2**25, "cuda": 2**30}
"""Bytes of the sources' differences that are worked on at a time: on a CPU fresh memory costs as much as
the sums in it, on a GPU each part costs the start of all its kernels."""


class Differences:
    """Patched less current of all sources, in float32 or wider, some positions after the other.

    As vectors they are as wide as the stream: those of all sources at all positions would take many
    times what the model's own tensors do.
    """

    def __init__(self, graph: Graph, current: Sequence[SiteOutput], patched: SourceOutputs) -> None:
        self.graph = graph
        self._current = current
        self._patched = patched
        self._same_weights = [
            then.has_weight_of(now) for now, then in zip(current, patched.sites, strict=True)
        ]
        self._rows, self._gradients = Scratch(), Scratch()

    @torch.no_grad()
    def products(self, gradients: PullBack) -> Float[Tensor, "pos edge"]:
        """(P − C) · gradient of every edge: at each position, or summed over all."""
        numbered = list(enumerate(self.graph.modules))
        # Modules that read the same sources are one product: a layer's queries, keys and values.
        groups = [list(some) for _, some in groupby(numbered, lambda one: one[1].n_sources)]
        overlaps = [gradients.overlaps(number) for number, _ in numbered]
        parts = []
        for positions, rows in self._all_rows():
            along, found = _Along(rows, positions, self.graph.seq_len is None), []
            for group in groups:
                n_heads = [len(module.dests) for _, module in group]
                before = rows[: group[0][1].n_sources]
                written = self._gradients.like(rows, sum(n_heads), *rows.shape[1:])
                for (number, _), heads in zip(group, written.split(n_heads), strict=True):
                    gradients.into(number, positions, heads)
                product = self._product(written, before)
                by_module = product.view(len(product), -1, len(before)).split(n_heads, dim=1)
                for (number, _), own in zip(group, by_module, strict=True):
                    for overlap in overlaps[number]:
                        own.sub_(along.products(overlap, len(before)))
                found.append(product)
            parts.append(torch.cat(found, dim=1))
        return torch.cat(parts) if self.graph.seq_len is not None else sum(parts[1:], parts[0])

    def _product(
        self,
        gradients: Float[Tensor, "head seq batch d_model"],
        rows: Float[Tensor, "source seq batch d_model"],
    ) -> Float[Tensor, "pos edge"]:
        if self.graph.seq_len is None:
            return (gradients.flatten(1) @ rows.flatten(1).T).view(1, -1)
        one, other = gradients.flatten(2).transpose(0, 1), rows.flatten(2).transpose(0, 1)
        if len(gradients) == 1:
            return torch.bmm(one, other.mT).flatten(1)
        # The longer one first: this way round it takes half the time on a CPU.
        return torch.bmm(other, one.mT).mT.flatten(1)

    def norms(self) -> Float[Tensor, "pos source"]:
        """‖P − C‖ of every source at each position, or over all, summed over prompts."""
        squares = torch.cat([rows.square().sum(-1) for _, rows in self._all_rows()], dim=1)
        if self.graph.seq_len is None:
            return squares.sum(1).sqrt().sum(1)[None]
        return squares.sqrt().sum(2).T

    def of_site(self, number: int) -> Float[Tensor, "node batch seq d_model"]:
        """What one site's nodes would write more if they wrote what is patched in."""
        return self._of_site(number, slice(None)).transpose(1, 2)

    def code_of_site(self, number: int) -> Float[Tensor, "batch seq node width"] | None:
        """The same before the site's weights, None where the two have different ones."""
        now, then = self._current[number], self._patched.sites[number]
        return then.code.to(now.code) - now.code if self._same_weights[number] else None

    def _all_rows(self) -> Iterator[tuple[slice, Float[Tensor, "source seq batch d_model"]]]:
        """All sources' differences at some positions; the next ones overwrite them."""
        code, n_sources = self._current[0].code, len(self.graph.srcs)
        batch, seq, _, d_model = code.shape
        like = code.new_empty(0, dtype=torch.promote_types(code.dtype, torch.float32))
        most = AT_ONCE.get(code.device.type, max(AT_ONCE.values()))
        step = max(1, most // (n_sources * batch * d_model * like.itemsize))
        for start in range(0, seq, step):
            positions = slice(start, min(seq, start + step))
            rows = self._rows.like(like, n_sources, positions.stop - start, batch, d_model)
            begin = 0
            for number in range(len(self._current)):
                end = begin + self._current[number].code.shape[2]
                self._of_site(number, positions, rows[begin:end])
                begin = end
            yield positions, rows

    def _of_site(
        self, number: int, positions: slice, out: Tensor | None = None
    ) -> Float[Tensor, "node seq batch d_model"]:
        now, then = self._current[number], self._patched.sites[number]
        batch, seq, n_nodes, _ = now.code.shape
        slots = range(n_nodes)
        wide = torch.promote_types(now.code.dtype, torch.float32)
        weight, gain = _wide(now.weight, wide), _wide(now.gain, wide)
        # What is the same for all prompts or positions (zeros, means) is kept once.
        code = now.code[:, positions].transpose(0, 1).to(wide)
        other = then.code.expand(batch, seq, -1, -1)[:, positions].transpose(0, 1)
        other = other.to(now.code.device, wide)
        if self._same_weights[number]:
            return project(other - code, weight, slots, gain, out)
        theirs = [_wide(one, wide, now.code.device) for one in (then.weight, then.gain)]
        change = project(other, theirs[0], slots, theirs[1]) - project(code, weight, slots, gain)
        return change if out is None else out.copy_(change)


class _Along:
    """Products of sources' differences at some positions with the vectors that all heads share."""

    def __init__(
        self, rows: Float[Tensor, "source seq batch d_model"], positions: slice, summed: bool
    ) -> None:
        self._rows = rows
        self._positions = positions
        self._summed = summed
        self._sums: Tensor | None = None
        self._key = 0, 0
        self._found = rows

    def products(self, overlap: Overlap, n_sources: int) -> Float[Tensor, "pos head source"]:
        """The first sources' parts along the vectors, by their weights for each head."""
        weights = torch.stack([one[:, self._positions] for one in overlap.weights], dim=1)
        weights = weights.permute(2, 3, 0, 1).to(self._rows)  # [seq, head, batch, run]
        along = self._along(overlap.vectors, n_sources)
        if self._summed:
            return weights.transpose(0, 1).flatten(1)[None] @ along.flatten(0, 2)[None]
        return weights.flatten(2) @ along.flatten(1, 2)

    def _along(
        self, vectors: Sequence[Tensor] | None, n_sources: int
    ) -> Float[Tensor, "seq batch run source"]:
        """Once for all heads that share the vectors; the mean once for all layers."""
        if vectors is None:
            if self._sums is None:
                self._sums = self._rows.sum(-1).permute(1, 2, 0)[:, :, None]
            return self._sums[..., :n_sources]
        if self._key != (id(vectors), n_sources):
            here = torch.stack([one[:, self._positions] for one in vectors])
            here = here.permute(2, 1, 0, 3).flatten(0, 1).to(self._rows)  # [row, run, d_model]
            rows = self._rows[:n_sources].flatten(1, 2).permute(1, 2, 0)
            self._key = id(vectors), n_sources
            self._found = torch.bmm(here, rows).unflatten(0, self._rows.shape[1:3])
        return self._found


def _wide(
    tensor: Tensor | None, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | None:
    return None if tensor is None else tensor.to(device=device, dtype=dtype)
