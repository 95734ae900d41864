"""Take a norm between a layer and the residual stream apart, so that each node's share is known.

For the scale that it took in one pass, such a norm is linear: `after = gain · before / scale`, as
RMSNorm computes it (Zhang & Sennrich 2019). A head's share is then `gain · (z W_O) / scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.anatomy import PostNorm
from circuit_trace.errors import AnatomyError

PROBE = 64.0
"""The norm of a vector of equal entries this large is its gain: what it adds to the mean square
(1e-5 at most) vanishes beside it."""


class Parts(NamedTuple):
    """What a norm did in one pass: one factor per position, one per feature, and what it added."""

    factor: Float[Tensor, "batch seq 1"]
    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"] | None


def take_apart(norm: PostNorm, before: Tensor, after: Tensor) -> Parts:
    """Find the norm's gain by applying it to known vectors, and its scale from what it just did.

    The scale is the one that reproduces `after`, so it needs no knowledge of the norm's constants.

    Raises:
        AnatomyError: The norm does more than scale (LayerNorm subtracts a mean).
    """
    probe = torch.zeros(2, 1, before.shape[-1], dtype=before.dtype, device=before.device)
    probe[1] = PROBE
    shift, at_probe = norm.apply(probe)[:, 0].float()
    gain = at_probe - shift
    if not bool(gain.any()):
        raise AnatomyError(
            f"The {type(norm.before.module).__name__} between a layer and the residual stream "
            "subtracts a mean; only norms that scale (RMSNorm) can be traced there."
        )
    wide = before.float() * gain
    target = after.float() - shift
    size = wide.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    factor = (wide * target).sum(-1, keepdim=True) / size
    return Parts(factor, gain, shift if bool(shift.any()) else None)
