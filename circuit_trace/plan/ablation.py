"""What is patched in instead of a source's output: another prompt's, zero, or a mean."""

from __future__ import annotations

from enum import Enum

from jaxtyping import Float
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
    """The mean at each position over the prompts of one batch."""
    BATCH_ALL_TOK_MEAN = 7
    """The mean over all positions and prompts of one batch."""

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")

    @property
    def mean_over_dataset(self) -> bool:
        """Whether it takes a dataset rather than one batch."""
        return self.clean_dataset or self.corrupt_dataset

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
    code: Float[Tensor, "batch seq node width"], ablation: AblationType
) -> Float[Tensor, "batch_or_1 seq_or_1 node width"]:
    """Apply an ablation of one batch to a source site's code, keeping averaged axes as length 1.

    A source's output is linear in its code, so the mean of the codes is the code of the mean.
    """
    match ablation:
        case AblationType.RESAMPLE:
            return code
        case AblationType.ZERO:
            return code.new_zeros((1, 1, *code.shape[2:]))
        case AblationType.BATCH_TOKENWISE_MEAN:
            return code.mean(0, keepdim=True)
        case AblationType.BATCH_ALL_TOK_MEAN:
            return code.mean((0, 1), keepdim=True)
    raise AssertionError(f"{ablation} is a mean over a dataset, not over one batch")
