"""From the gradient at what heads compute back to the stream as each of them reads it.

All heads of a module read one and the same stream, but each has a gradient of its own there: through
its weights, `g W^T`, and through the norm before them. For `y = gain · c / scale`, c being the stream
(less its mean for LayerNorm), the gradient of the stream is `v - c (c · v) / (d_model · scale²)` with
`v = gain · g W^T / scale` (less its mean).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.anatomy import DestSite, Reader
from circuit_trace.hooks.norms import LinearNorm
from circuit_trace.hooks.verify import tolerance_of
from circuit_trace.score.gradients import Gradients

AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
"""Bytes of the stream as heads read it that are worked on at a time: what a processor's cache holds, and
on a GPU enough to keep it busy."""


@dataclass(frozen=True, eq=False)
class PullBack:
    """The gradients of one run with respect to the stream as each head reads it."""

    run: Gradients
    _norms: dict[tuple[int, int], LinearNorm | None] = field(default_factory=dict)

    def into(
        self, dest: DestSite, positions: slice, out: Float[Tensor, "head seq batch d_model"]
    ) -> None:
        """Write those of a module's heads at some positions into `out`; those of several readers add
        up."""
        for number, reader in enumerate(dest.readers):
            gradient = _rows(self.run.at_readers[reader], positions)
            is_there = number == 0 and gradient.device == out.device
            found = out if is_there else torch.empty_like(out, device=gradient.device)
            if reader.norm is None:
                found.flatten(1, 2).copy_(gradient)
            else:
                by_head = gradient.reshape(len(gradient), len(out), -1).transpose(0, 1)
                self._pull_back(dest, reader, positions, by_head, found.flatten(1, 2))
            if number > 0:
                out.add_(found.to(out.device))
            elif not is_there:
                out.copy_(found)

    def _pull_back(
        self,
        dest: DestSite,
        reader: Reader,
        positions: slice,
        gradient: Float[Tensor, "head row width"],
        out: Float[Tensor, "head row d_model"],
    ) -> None:
        norm = self._norm(dest, reader)
        if norm is not None:
            gradient = gradient.to(out) / _rows(norm.scale, positions)
        for heads in _parts(out):
            if norm is None:
                stream = _rows(self.run.streams[dest], positions)
                out[heads] = _by_autograd(reader, stream, gradient[heads], range(len(out))[heads])
            else:
                _through_weight(reader, gradient[heads], heads, out[heads])
                _through_norm(norm, positions, out[heads])

    def _norm(self, dest: DestSite, reader: Reader) -> LinearNorm | None:
        """The norm before a reader, once for all that share it; None if it is none, or of another
        kind than LayerNorm and RMSNorm."""
        key = id(dest.stream), id(reader.norm)
        if key not in self._norms:
            assert reader.norm is not None
            stream = self.run.streams[dest]
            norm = LinearNorm.of(reader.norm, stream)
            is_right = norm.grows and bool(norm.relative.max() <= tolerance_of(stream.dtype))
            self._norms[key] = norm if is_right else None
        return self._norms[key]


def _rows(tensor: Float[Tensor, "batch seq *rest"], positions: slice) -> Tensor:
    """Some positions of all prompts, the prompts of one position together: `[row, *rest]`."""
    return tensor[:, positions].transpose(0, 1).flatten(0, 1)


def _parts(out: Tensor) -> list[slice]:
    """Some heads after the other."""
    most = AT_ONCE.get(out.device.type, max(AT_ONCE.values()))
    step = max(1, most // out[0].nbytes)
    return [slice(start, start + step) for start in range(0, len(out), step)]


def _through_weight(reader: Reader, gradient: Tensor, heads: slice, out: Tensor) -> None:
    weight = reader.weight()
    if weight is None:
        out.copy_(gradient)
    else:
        torch.bmm(gradient, weight.detach()[heads].mT.to(out), out=out)


def _through_norm(norm: LinearNorm, positions: slice, out: Tensor) -> None:
    """`out` holds `g W^T / scale`."""
    centred, scale = _rows(norm.centred, positions), _rows(norm.scale, positions)
    # Both sums over d_model in one product, which reads `out` once.
    along = centred / (-out.shape[-1] * scale.square())
    mean = torch.full_like(centred, 1 / out.shape[-1])
    sums = torch.bmm(norm.gain * torch.stack([along, mean], dim=1), out.permute(1, 2, 0))
    overlap, mean = sums.permute(1, 2, 0)[..., None]
    out.mul_(norm.gain).addcmul_(centred, overlap)
    if norm.is_centred:
        out.sub_(mean)


def _by_autograd(reader: Reader, stream: Tensor, gradient: Tensor, heads: range) -> Tensor:
    """The same for whatever stands before the weights."""
    with torch.enable_grad(), torch.autocast(stream.device.type, enabled=False):
        read = stream.expand(len(heads), 1, *stream.shape).requires_grad_()
        computed = reader.project(read, heads)
        return torch.autograd.grad(computed, read, gradient[:, None].to(computed))[0][:, 0]
