"""Means of the sources' outputs over a dataset, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.plan.ablation import AblationType
from circuit_trace.plan.outputs import SiteOutput
from circuit_trace.plan.prompts import Prompts
from circuit_trace.progress import tqdm

BAR_AFTER_SECONDS = 2.0
"""A progress bar appears only where the dataset takes longer than this."""


def mean_outputs(
    run: Callable[[Prompts], Sequence[SiteOutput]],
    sets: Iterable[tuple[int, Prompts]],
    ablation: AblationType,
) -> tuple[tuple[SiteOutput, ...], Bool[Tensor, "1 seq"] | None]:
    """The token-wise mean of each site's code over sets of prompts, each with its batch's number.

    `run` records one of them. Every prompt counts alike, also where batches differ in size, at the
    positions where it has a token.

    Returns:
        A site's code `[1, seq, node, width]` each, and the positions at which there was any token,
        None if at all of them.

    Raises:
        InputError: Nothing to average, or prompts of unequal length.
    """
    sums: list[Tensor] = []
    sites: Sequence[SiteOutput] = ()
    counts = torch.zeros(0)
    progress = tqdm(sets, desc=str(ablation), unit="batch", delay=BAR_AFTER_SECONDS, leave=False)
    for number, prompts in progress:
        sites = run(prompts)
        seq = sites[0].code.shape[1]
        if sums and len(counts) != seq:
            raise InputError(
                f"A token-wise mean needs prompts of one length: batch {number} has {seq} tokens, "
                f"those before it {len(counts)}. Texts of unequal length are padded if they are one "
                "batch, a list of them; or pad tokens yourself, with an attention_mask."
            )
        real = torch.ones(sites[0].code.shape[:2]) if prompts.real is None else prompts.real.cpu()
        parts = [_sum(site.code, prompts.real) for site in sites]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        counts = real.sum(0) + (counts if len(counts) else 0)
    if not sums:
        raise InputError(
            f"The dataset for the ablation {ablation} is empty: there is nothing to average."
        )
    per_position = counts.clamp_min(1)[:, None, None]
    means = tuple(
        replace(site, code=(total / per_position.to(total)).to(site.code.dtype))
        for total, site in zip(sums, sites, strict=True)
    )
    return means, None if counts.all() else counts[None] > 0


def _sum(code: Tensor, real: Tensor | None) -> Tensor:
    """The sum over the batch, in float32 or wider so that many batches add up."""
    wide = torch.promote_types(code.dtype, torch.float32)
    if real is not None:
        code = torch.where(real.to(code.device)[..., None, None], code, torch.zeros_like(code))
    return code.sum(0, keepdim=True, dtype=wide)
