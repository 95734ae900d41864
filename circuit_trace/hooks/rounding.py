"""How far apart two computations of one tensor are, measured by what was added up to make it.

A sum in floating point is off by as much as its summands are rounded, however little of them is left
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §4.2), and independent roundings add up
as squares do. So a difference is compared, entry by entry, with `sqrt(Σ summand²)`: it is a
fraction of the type's epsilon where the two do the same, in whatever order, and beside a huge first
token, a huge entry or terms that cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 0.01
"""Entries count as no smaller than this share of a position's, and positions of the middle one."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference, relative to a result, that rounding explains after several layers. Float32
sums in another order differ by 1e-6 to 1e-5; a forgotten bias or norm weight by 1e-2 and more."""

FINEST = {torch.float64: 1e-6}
"""The least that is allowed for a type. On a GPU float32 may be multiplied as TensorFloat32, which
rounds to 5e-4, so for all others it is 1e-3."""


def tolerance_of(dtype: torch.dtype) -> float:
    """The largest relative difference that rounding explains in numbers of this kind."""
    return TOLERANCE.get(dtype, max(TOLERANCE.values()))


def one_rounding(dtype: torch.dtype) -> float:
    """The most that one step may differ, relative to its summands: 1e-3, in bfloat16 0.0078.

    Each rounding is off by 0.2 epsilon in the mean, and a step has about three of them.
    """
    return max(torch.finfo(dtype).eps, FINEST.get(dtype, 1e-3))


def wide(tensor: Tensor) -> Tensor:
    """The tensor in a type whose own rounding vanishes beside that of half precision."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def difference(ours: Tensor, theirs: Tensor, *squares: Tensor | None) -> float:
    """The root mean square over a position's entries, at the worst position, of
    `(ours − theirs) / sqrt(theirs² + Σ squares)`; `[batch, seq, ...]` each."""
    if ours.shape != theirs.shape:
        return float("inf")
    theirs = wide(theirs)
    apart = wide(ours).to(theirs) - theirs
    size = theirs.square()
    for square in squares:
        size = size if square is None else size + square.to(size)
    size, apart = size.flatten(2), apart.flatten(2)
    typical = size.mean(-1, keepdim=True)
    typical = torch.maximum(typical, SMALL**2 * typical.median())
    size = torch.maximum(size, SMALL**2 * typical).clamp_min(torch.finfo(size.dtype).tiny)
    return float((apart.square() / size).mean(-1).sqrt().max())
