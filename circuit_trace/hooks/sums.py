"""Does a pass add up? The sum of what its sources wrote against the stream that passed, step by step.

Between one destination and the next the stream must grow by what the sources between them wrote, at
every position of every prompt. Both are compared in the directions in which inputs were recorded: a
projection is linear, so no source's output is needed as wide as the stream.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import InputError, RecordWarning
from circuit_trace.graph import Graph
from circuit_trace.hooks.record import PassRecord, Read, sketch
from circuit_trace.hooks.verify import tolerance_of
from circuit_trace.plan import SiteOutput

SMALL = 0.01
"""Positions count as no smaller than this share of the middle one: next to nothing has no digits."""


TINY = torch.finfo(torch.float32).tiny


class Gap(NamedTuple):
    """The destination at which a record first parts from its pass, and by how much of what it read."""

    dest: str
    relative: float


def warn_of_gap(graph: Graph, record: PassRecord) -> None:
    """Warn if a record does not add up: a `RecordWarning`, which names the place."""
    gap = first_gap(graph, record)
    if gap is not None:
        warnings.warn(
            f"This pass does not add up: {gap.dest} read something else than the sum of what the sources "
            f"before it wrote (from there on, by {gap.relative:.2g} of its size). Something was added to "
            "the stream that belongs to no source: by a hook of yours, by a part of the model that the "
            "anatomy does not know (features of an image), or by dropout. What each source wrote is "
            "recorded right, but it is not all that was read.",
            RecordWarning,
            stacklevel=3,
        )


@torch.no_grad()
def first_gap(graph: Graph, record: PassRecord) -> Gap | None:
    """Where the stream first grows by something else than what sources wrote, None if it never does."""
    try:
        sums = _sums(record)
    except InputError:  # weights were changed since: whoever asks what heads wrote is told so
        return None
    reads = list(_unpatched(graph, record))
    seen = torch.stack([read.seen.cpu() for read in reads])
    before = [sums[graph.modules[read.dests[0]].n_sources].expand_as(seen[0]) for read in reads]
    rest = seen - torch.stack(before)
    grown = rest.diff(dim=0, prepend=torch.zeros_like(rest[:1]))
    dtypes = (torch.float32, *(site.code.dtype for site in record.outputs))
    allowed = max(map(tolerance_of, dtypes))
    for read, relative in zip(reads, _relative(grown, seen), strict=True):
        if relative > allowed:
            return Gap(graph.modules[read.dests[0]].dests[0].name, relative)
    return None


def _unpatched(graph: Graph, record: PassRecord) -> Iterator[Read]:
    """The reads of the stream without what plans add to it, in order."""
    touched = {name for plan in record.plans for name in plan.masks}
    for read in record.reads:
        is_changed = any(graph.modules[dest].name in touched for dest in read.dests)
        if read.heads is None and not (read.patched and is_changed):
            yield read


def _sums(record: PassRecord) -> dict[int, Tensor]:
    """The projected sum of the first n sources and the biases beside them, by n."""
    total, n_sources = torch.zeros(()), 0
    sums = {0: total}
    for site, bias in zip(record.outputs, record.biases, strict=True):
        n_sources += site.code.shape[2]
        total = total + _projected(site).cpu()
        if bias is not None:
            own = bias if bias.ndim == 3 else bias[None, None]
            total = total + sketch(own).cpu()
        sums[n_sources] = total
    return sums


def _projected(site: SiteOutput) -> Float[Tensor, "batch seq direction"]:
    """The sum of what a site's nodes wrote, on the fixed directions."""
    weight = site.live_weight
    written = site.code if weight is None else weight
    written = written if site.gain is None else written * site.gain
    if weight is None:
        return sketch(written).sum(2)
    return site.code.float().flatten(2) @ sketch(written).flatten(0, 1)


def _relative(
    grown: Float[Tensor, "read batch seq direction"],
    seen: Float[Tensor, "read batch seq direction"],
) -> list[float]:
    """The largest difference at any position, relative to what was read there; where that is no number,
    nothing can be told."""
    size = seen.norm(dim=-1)
    least = SMALL * size.flatten(1).nanmedian(dim=1).values[:, None, None]
    relative = grown.norm(dim=-1) / torch.maximum(size, least).clamp_min(TINY)
    is_known = size.isfinite() & least.isfinite()
    return torch.where(is_known, relative.nan_to_num(torch.inf), 0.0).flatten(1).amax(1).tolist()
