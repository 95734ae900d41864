"""From the gradients at what heads compute back to the stream as each of them reads it.

All heads of a module read one and the same stream, but each has a gradient `g` of its own there:
through its weights and through the norm before them. For `y = gain · c / scale`, c being the stream
(less its mean for LayerNorm), the gradient of the stream is

    v − mean(v) − c (c · v) / (d_model · scale²)        with  v = gain · g W^T / scale

(no mean for RMSNorm). `c · v` is the product of `g` with what the head computed, less what it makes of
nothing, so no run needs a vector as wide as the stream for each head: `g / scale` is summed over runs
first and goes through the weights once, and what is left is a number for each head along `c`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

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

Norms = dict[tuple[int, int], LinearNorm | None]
"""The norms of one run, by the stream and the norm before a reader."""


class Overlap(NamedTuple):
    """What is to be taken from the gradients still: for each run, `weights` times a vector.

    `vectors` are streams, one for each run, the same list for all heads that read them; None stands for
    a vector of ones, which is the mean that LayerNorm subtracts.
    """

    vectors: Sequence[Float[Tensor, "batch seq d_model"]] | None
    weights: Sequence[Float[Tensor, "batch seq head"]]


class PullBack:
    """The sum over runs of the gradients with respect to the stream as each head reads it."""

    def __init__(self, dests: Sequence[DestSite]) -> None:
        self.n_runs = 0
        self._dests = dests
        self._gradients: dict[Reader, Float[Tensor, "batch seq head width"]] = {}
        self._norms: dict[Reader, LinearNorm] = {}
        self._weights: dict[Reader, Float[Tensor, "head width d_model"] | None] = {}
        self._streams: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self._along: dict[Reader, list[Float[Tensor, "batch seq head"]]] = defaultdict(list)
        self._others: dict[Reader, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    @torch.no_grad()
    def add(self, run: Gradients) -> None:
        """Add a run, of which little is kept: less than the model itself computed."""
        self.n_runs += 1
        norms: Norms = {}
        for dest in self._dests:
            for reader in dest.readers:
                gradient = _by_head(run.at_readers[reader], dest)
                if reader.norm is not None:
                    norm = self._norm(norms, run, dest, reader)
                    if norm is None:
                        self._others[reader].append((run.streams[dest], gradient))
                        continue
                    gradient = gradient.to(norm.scale) / norm.scale[..., None]
                    self._along[reader].append(_along(norm, run, dest, reader, gradient))
                    self._norms[reader] = norm
                before = self._gradients.get(reader)
                self._gradients[reader] = gradient if before is None else before + gradient

    @torch.no_grad()
    def into(
        self, number: int, positions: slice, out: Float[Tensor, "head seq batch d_model"]
    ) -> None:
        """Write those of the destination module with that number, at some positions, into `out`,
        less the `overlaps`; those of several readers add up."""
        for place, reader in enumerate(self._dests[number].readers):
            device = self._device_of(reader)
            is_there = place == 0 and device == out.device
            found = out if is_there else torch.empty_like(out, device=device)
            self._write(reader, positions, found.flatten(1, 2))
            if place > 0:
                out.add_(found.to(out.device))
            elif not is_there:
                out.copy_(found)

    @torch.no_grad()
    def overlaps(self, number: int) -> list[Overlap]:
        """What is to be taken from the gradients of the destination module with that number."""
        dest, found = self._dests[number], []
        for reader in dest.readers:
            norm = self._norms.get(reader)
            if norm is not None:
                found.append(Overlap(self._streams[_key(dest, reader)], self._along[reader]))
            if norm is not None and norm.is_centred:
                found.append(Overlap(None, [self._mean(reader, norm)]))
        return found

    def _norm(
        self, norms: Norms, run: Gradients, dest: DestSite, reader: Reader
    ) -> LinearNorm | None:
        """The norm before a reader, once for all that share it; None if it is none, or of another
        kind than LayerNorm and RMSNorm."""
        key = _key(dest, reader)
        if key not in norms:
            assert reader.norm is not None
            stream = run.streams[dest]
            norm = LinearNorm.of(reader.norm, stream)
            is_right = norm.grows and bool(norm.of_change.max() <= tolerance_of(stream.dtype))
            norms[key] = norm if is_right else None
            if is_right:
                self._streams[key].append(norm.centred)
        return norms[key]

    def _mean(self, reader: Reader, norm: LinearNorm) -> Float[Tensor, "batch seq head"]:
        """The mean of v over d_model."""
        weight = self._weight(reader, norm)
        mean = norm.gain[None] / len(norm.gain) if weight is None else weight.mean(-1)
        return torch.einsum("bshw,hw->bsh", self._gradients[reader], mean)

    def _device_of(self, reader: Reader) -> torch.device:
        given = self._gradients.get(reader)
        return self._others[reader][0][1].device if given is None else given.device

    def _write(
        self, reader: Reader, positions: slice, out: Float[Tensor, "head row d_model"]
    ) -> None:
        given = self._gradients.get(reader)
        if given is None:
            out.zero_()
        else:
            self._through_weight(reader, _rows(given, positions).transpose(0, 1), out)
        for stream, gradient in self._others.get(reader, ()):
            by_head = _rows(gradient, positions).transpose(0, 1)
            _add_by_autograd(reader, _rows(stream, positions), by_head, out)

    def _through_weight(
        self,
        reader: Reader,
        gradient: Float[Tensor, "head row width"],
        out: Float[Tensor, "head row d_model"],
    ) -> None:
        norm = self._norms.get(reader)
        weight = None if norm is None else self._weight(reader, norm)
        for heads in _parts(out):
            if weight is not None:
                torch.bmm(gradient[heads], weight[heads], out=out[heads])
            elif norm is not None:
                torch.mul(gradient[heads], norm.gain, out=out[heads])
            else:
                out[heads] = gradient[heads]

    def _weight(
        self, reader: Reader, norm: LinearNorm
    ) -> Float[Tensor, "head width d_model"] | None:
        """The norm's gain and the weights in one, for all positions."""
        if reader not in self._weights:  # some models make their weights anew each time
            weight = reader.weight()
            folded = None if weight is None else weight.mT.to(norm.gain) * norm.gain
            self._weights[reader] = folded
        return self._weights[reader]


def _along(
    norm: LinearNorm,
    run: Gradients,
    dest: DestSite,
    reader: Reader,
    gradient: Float[Tensor, "batch seq head width"],
) -> Float[Tensor, "batch seq head"]:
    """(c · v) / (d_model · scale²): `c · v` is `g / scale` times what a head computed times `scale`."""
    stream, computed = run.streams[dest], run.computed.get(reader)
    heads = range(gradient.shape[2])
    if computed is None:
        read = stream.expand(len(heads), *stream.shape)
        computed = reader.project(read, heads).movedim(0, 2)
    nothing = reader.project(stream.new_zeros(len(heads), 1, 1, stream.shape[-1]), heads)
    computed = _by_head(computed, dest).to(gradient) - nothing[:, 0, 0].to(gradient)
    overlap = torch.einsum("bshw,bshw->bsh", computed, gradient)
    return overlap / (stream.shape[-1] * norm.scale)


def _add_by_autograd(
    reader: Reader,
    stream: Float[Tensor, "row d_model"],
    gradient: Float[Tensor, "head row width"],
    out: Float[Tensor, "head row d_model"],
) -> None:
    """The whole gradient of one run, for whatever stands before the weights."""
    for heads in _parts(out):
        index = range(len(out))[heads]
        with torch.enable_grad(), torch.autocast(stream.device.type, enabled=False):
            read = stream.expand(len(index), 1, *stream.shape).requires_grad_()
            computed = reader.project(read, index)
            given = gradient[heads, None].to(computed)
            out[heads] += torch.autograd.grad(computed, read, given)[0][:, 0]


def _key(dest: DestSite, reader: Reader) -> tuple[int, int]:
    return id(dest.stream), id(reader.norm)


def _by_head(tensor: Tensor, dest: DestSite) -> Float[Tensor, "batch seq head width"]:
    return tensor.reshape(*tensor.shape[:2], len(dest.names), -1)


def _rows(tensor: Float[Tensor, "batch seq *rest"], positions: slice) -> Tensor:
    """Some positions of all prompts, the prompts of one position together: `[row, *rest]`."""
    return tensor[:, positions].transpose(0, 1).flatten(0, 1)


def _parts(out: Tensor) -> list[slice]:
    """Some heads after the other."""
    most = AT_ONCE.get(out.device.type, max(AT_ONCE.values()))
    step = max(1, most // out[0].nbytes)
    return [slice(start, start + step) for start in range(0, len(out), step)]
