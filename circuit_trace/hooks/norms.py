"""A norm before a reader or the unembedding as the linear map that it was at each position.

For the scale that it took there, LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019) are
linear: `norm(x) = centred(x) · gain / scale + shift`, where only LayerNorm subtracts the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.hooks.postnorm import PROBE


@dataclass(frozen=True, eq=False)
class LinearNorm:
    """A norm at the positions of one stream; `centred` is that stream, less its mean for LayerNorm.

    In float32, or in float64 for a stream of it. `relative` is how far these parts are from what the
    norm gave; where the stream is nothing, or not finite, it and the scale are NaN.
    """

    gain: Float[Tensor, " d_model"]
    is_centred: bool
    centred: Float[Tensor, "*position d_model"]
    scale: Float[Tensor, "*position 1"]
    relative: Float[Tensor, "*position"]
    of_change: Float[Tensor, "*position"]
    """The same, but measured by what the norm gave less its shift: where next to nothing comes in, the
    shift alone comes out, and no scale can be told from it."""
    grows: bool
    """Whether the scale grows with the stream, as that of a norm does; otherwise it is a constant."""

    @classmethod
    @torch.no_grad()
    def of(
        cls, norm: Callable[[Tensor], Tensor], stream: Float[Tensor, "*position d_model"]
    ) -> LinearNorm:
        """Take a norm apart: it is applied to nothing, to equal entries, to entries that have no
        mean and to twice these; then to the stream, whose scale is the one that gives the result."""
        wide = torch.promote_types(stream.dtype, torch.float32)
        signs = torch.ones(stream.shape[-1], device=stream.device, dtype=wide)
        signs[1::2] = -1
        signs = signs - signs.mean()
        probes = torch.stack([torch.zeros_like(signs), torch.ones_like(signs), signs, 2 * signs])
        shift, even, odd, double = norm((PROBE * probes)[None].to(stream.dtype))[0].to(wide)
        size = float((odd - shift).abs().max().nan_to_num())
        near = partial(torch.allclose, rtol=1e-3, atol=1e-3 * size)
        is_centred = near(even, shift)
        gain = (odd - shift) / (signs / signs.square().mean().sqrt())
        centred = subtract_mean(stream.to(wide), is_centred)
        normed = norm(stream).to(wide)
        along = centred * gain
        scale = along.norm(dim=-1, keepdim=True) / (normed - shift).norm(dim=-1, keepdim=True)
        scale = torch.where(scale > 0, scale, float("nan"))
        apart = (along / scale + shift - normed).norm(dim=-1)
        relative = apart / normed.norm(dim=-1).clamp_min(1e-30)
        # Rounding is as large as what comes out, shift and all.
        rounding = torch.finfo(stream.dtype).eps * normed.norm(dim=-1)
        of_change = (apart + rounding) / (normed - shift).norm(dim=-1).clamp_min(1e-30)
        return cls(gain, is_centred, centred, scale, relative, of_change, near(odd, double))


def subtract_mean(vectors: Tensor, is_centred: bool) -> Tensor:
    """Vectors less their mean, where a norm takes it away."""
    return vectors - vectors.mean(-1, keepdim=True) if is_centred else vectors
