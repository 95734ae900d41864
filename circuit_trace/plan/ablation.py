"""What is patched in instead of a source's output: another prompt's, zero, or a mean."""

from __future__ import annotations

from enum import Enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuit_trace.errors import InputError


class AblationType(Enum):
    """The value that replaces a source's output (auto-circuit's seven, under the same names)."""

    RESAMPLE = 1
    """What the source writes on the corrupt prompt."""
    ZERO = 2
    """Zero."""
    TOKENWISE_MEAN_CLEAN = 3
    """The mean at each position over the clean prompts of a dataset."""
    TOKENWISE_MEAN_CORRUPT = 4
    """The mean at each position over the corrupt prompts of a dataset."""
    TOKENWISE_MEAN_CLEAN_AND_CORRUPT = 5
    """The mean at each position over the clean and the corrupt prompts of a dataset."""
    BATCH_TOKENWISE_MEAN = 6
    """The mean at each position over the prompts of one batch that have a token there."""
    BATCH_ALL_TOK_MEAN = 7
    """The mean over all tokens of all prompts of one batch."""

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")

    @property
    def mean_over_dataset(self) -> bool:
        """Whether it takes a dataset rather than one batch."""
        return self.clean_dataset or self.corrupt_dataset

    @property
    def averaged(self) -> tuple[str, ...]:
        """Which prompts of a dataset the mean runs over, "clean", "corrupt" or both."""
        both = (("clean", self.clean_dataset), ("corrupt", self.corrupt_dataset))
        return tuple(name for name, is_averaged in both if is_averaged)

    @property
    def clean_dataset(self) -> bool:
        """Whether the mean runs over clean prompts."""
        return self in (
            AblationType.TOKENWISE_MEAN_CLEAN,
            AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT,
        )

    @property
    def corrupt_dataset(self) -> bool:
        """Whether the mean runs over corrupt prompts."""
        return self in (
            AblationType.TOKENWISE_MEAN_CORRUPT,
            AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT,
        )


def check_ablation(ablation: object) -> None:
    """Refuse what is no ablation, such as the name of one.

    Raises:
        InputError: It is none.
    """
    if not isinstance(ablation, AblationType):
        raise InputError(
            f"ablation must be an AblationType ({', '.join(a.name for a in AblationType)}); "
            f"got {ablation!r}."
        )


def ablate_batch(
    code: Float[Tensor, "batch seq node width"],
    ablation: AblationType,
    real: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch_or_1 seq_or_1 node width"]:
    """Apply an ablation of one batch to a source site's code, keeping averaged axes as length 1.

    A source's output is linear in its code, so the mean of the codes is the code of the mean. Where
    not `real` there is padding, which no mean counts.
    """
    match ablation:
        case AblationType.RESAMPLE:
            return code
        case AblationType.ZERO:
            return code.new_zeros((1, 1, *code.shape[2:]))
        case AblationType.BATCH_TOKENWISE_MEAN:
            return _mean(code, (0,), real)
        case AblationType.BATCH_ALL_TOK_MEAN:
            return _mean(code, (0, 1), real)
    raise AssertionError(f"{ablation} is a mean over a dataset, not over one batch")


def real_after(
    ablation: AblationType, real: Bool[Tensor, "batch seq"] | None
) -> Bool[Tensor, "batch_or_1 seq"] | None:
    """At which positions an ablation of a padded batch leaves something to patch in; None for all."""
    if real is None or ablation in (AblationType.ZERO, AblationType.BATCH_ALL_TOK_MEAN):
        return None
    return real if ablation is AblationType.RESAMPLE else real.any(0, keepdim=True)


def _mean(code: Tensor, dims: tuple[int, ...], real: Tensor | None) -> Tensor:
    if real is None:
        return code.mean(dims, keepdim=True)
    is_real = real.to(code.device)[..., None, None]
    total = torch.where(is_real, code, torch.zeros_like(code)).sum(dims, keepdim=True)
    return total / is_real.sum(dims, keepdim=True).clamp_min(1)
