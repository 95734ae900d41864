"""Means of the sources' outputs over a dataset, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.plan.ablation import AblationType
from circuit_trace.plan.outputs import SiteOutput
from circuit_trace.progress import tqdm

BAR_AFTER_SECONDS = 2.0
"""A progress bar appears only where the dataset takes longer than this."""


def mean_outputs(
    run: Callable[[Any], Sequence[SiteOutput]], data: Any, ablation: AblationType
) -> tuple[tuple[SiteOutput, ...], int]:
    """The token-wise mean of each site's code over the prompts that the ablation asks for.

    `run` records one batch. Two in a tuple, or two tensors in a list, are a pair of clean and
    corrupt; a list of strings is a batch, and a single tensor a dataset of one batch. Every prompt
    counts alike, also where batches differ in size.

    Returns:
        A site's code `[1, seq, node, width]` each, and the number of positions.

    Raises:
        InputError: Nothing to average, a batch that is no pair where pairs are needed, or prompts
            of unequal length.
    """
    is_one = isinstance(data, Tensor | str | Mapping) or _named_pair(data) is not None
    batches: Iterable[Any] = [data] if is_one else data
    if not isinstance(batches, Iterable):
        raise InputError(
            f"The ablation {ablation} takes a dataset, any iterable of batches; got "
            f"{type(data).__name__}."
        )
    sums: list[Tensor] = []
    sites: Sequence[SiteOutput] = ()
    count = 0
    progress = tqdm(batches, desc=str(ablation), unit="batch", delay=BAR_AFTER_SECONDS, leave=False)
    for number, batch in enumerate(progress):
        for prompts in _prompts(batch, ablation, number):
            sites = run(prompts)
            seq = sites[0].code.shape[1]
            if sums and sums[0].shape[1] != seq:
                raise InputError(
                    f"A token-wise mean needs prompts of one length: batch {number} has {seq} "
                    f"tokens, those before it {sums[0].shape[1]}."
                )
            parts = [_sum(site.code) for site in sites]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            count += sites[0].code.shape[0]
    if not sums:
        raise InputError(
            f"The dataset for the ablation {ablation} is empty: there is nothing to average."
        )
    return tuple(
        replace(site, code=(total / count).to(site.code.dtype))
        for total, site in zip(sums, sites, strict=True)
    ), sums[0].shape[1]


def _sum(code: Tensor) -> Tensor:
    """The sum over the batch, in float32 or wider so that many batches add up."""
    wide = torch.promote_types(code.dtype, torch.float32)
    return code.sum(0, keepdim=True, dtype=wide)


def _prompts(batch: Any, ablation: AblationType, number: int) -> list[Any]:
    """The parts of a batch that the ablation averages: clean, corrupt or both."""
    pair = _pair(batch)
    if pair is None:
        if ablation is AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT:
            raise InputError(
                f"The ablation {ablation} needs pairs of clean and corrupt prompts, but batch "
                f"{number} is a {type(batch).__name__}: give (clean, corrupt) tuples, mappings or "
                "objects with those names."
            )
        is_wrapped = isinstance(batch, list | tuple) and len(batch) == 1
        return [batch[0] if is_wrapped and isinstance(batch[0], Tensor) else batch]
    clean, corrupt = pair
    return [clean] * ablation.clean_dataset + [corrupt] * ablation.corrupt_dataset


def _pair(batch: Any) -> tuple[Any, Any] | None:
    """Clean and corrupt, where a batch is a pair; a torch DataLoader makes lists of its tuples."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        is_text = isinstance(batch, list) and all(isinstance(one, str) for one in batch)
        return None if is_text else (batch[0], batch[1])
    return _named_pair(batch)


def _named_pair(batch: Any) -> tuple[Any, Any] | None:
    if isinstance(batch, Mapping) and {"clean", "corrupt"} <= set(batch):
        return batch["clean"], batch["corrupt"]
    clean, corrupt = getattr(batch, "clean", None), getattr(batch, "corrupt", None)
    return None if clean is None or corrupt is None else (clean, corrupt)
