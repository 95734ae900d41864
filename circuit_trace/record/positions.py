"""Where a row's numbers are taken: one stated position, never a sum that one of them owns.

In a language model the first token's vectors are often hundreds of times as long as all others (an
attention sink; Xiao et al. 2023), so a norm over all positions is that token's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import whole_number

At = int | Literal["largest", "last"]
"""A position, the last one of each prompt, or for each edge the one of its largest change."""


def read_at(at: Any, seq: int, seq_len: int | None) -> At | None:
    """Where a user wants numbers taken; None where each edge has its own position.

    Raises:
        InputError: There is no such position, or edges have positions of their own.
    """
    if seq_len is not None:
        if at is None:
            return None
        raise InputError(
            f"at={at!r} is for models wrapped without seq_len; here each edge has its own position."
        )
    if at is None or at in ("largest", "last"):
        return "largest" if at is None else at
    position = whole_number(at)
    if position is None or not 0 <= position < seq:
        raise InputError(
            f"at must be 'largest', 'last' or a position from 0 to {seq - 1}; got {at!r}."
        )
    return position


def last_of(real: Bool[Tensor, "batch seq"]) -> Int[Tensor, " batch"]:
    """Each prompt's last position that is no padding."""
    places = torch.arange(real.shape[1])
    return torch.where(real, places, -1).amax(1)


def largest_of(
    changes: Float[Tensor, "row seq"], real: Bool[Tensor, "batch seq"]
) -> Int[Tensor, " row"]:
    """The position of each row's largest change. Padding never counts, and the first token of a
    prompt, which may be a sink, only where nothing changes at any other."""
    somewhere = real.any(0)
    first = real.int().argmax(1)
    later = somewhere.clone()
    later[first] = False
    sizes = changes.nan_to_num(float("inf"), float("inf")).abs()
    rest = sizes.masked_fill(~later, -1.0)
    best, place = rest.max(1)
    whole = sizes.masked_fill(~somewhere, -1.0).argmax(1)
    return torch.where(best > 0, place, whole)
