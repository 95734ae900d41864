"""Check an anatomy against the model itself: one tiny pass, and every tensor computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, DestSite, Point, Reader
from circuit_trace.errors import AnatomyError
from circuit_trace.hooks.attach import attach, unflattened
from circuit_trace.hooks.record import PassRecord
from circuit_trace.hooks.replay import replay, unseen_readers
from circuit_trace.hooks.rounding import difference, one_rounding, wide
from circuit_trace.hooks.rounding import tolerance_of as tolerance_of
from circuit_trace.hooks.session import Session
from circuit_trace.plan import SiteOutput


@dataclass(frozen=True, eq=False)
class _Difference:
    what: str
    relative: float
    dtype: torch.dtype


@torch.no_grad()
def verify(model: nn.Module, anatomy: Anatomy) -> None:
    """Run the anatomy's example and compare its arithmetic with the model's own tensors.

    At every destination the stream must be what the destination before it read and what the sources
    and biases between them add, and what the destination computes from the stream must equal what
    the model computed. In a pass on another input, where every destination is given what it read in
    the first one, every source must write what it wrote then: a layer that reads the stream where
    the anatomy knows of no destination does not.

    Each step is compared on its own, so what is allowed is one rounding of the model's own type.

    Raises:
        AnatomyError: Something differs: which tensor of which layer, and by how much.
    """
    example = anatomy.example()
    seen = _run(model, anatomy, example)
    for found in chain(seen.all_differences(), _unseen_readers(model, seen, example)):
        allowed = one_rounding(found.dtype)
        if found.relative <= allowed:  # a NaN must fail too
            continue
        raise AnatomyError(
            f"The anatomy found for this {type(model).__name__} does not reproduce it: {found.what} "
            f"differs by {found.relative:.2g} relative to its size (allowed for {found.dtype}: "
            f"{allowed:.2g}). Patching it would give wrong results, so it is refused. If hooks on "
            "the model change these tensors, wrap it before they are added; wrap(model, "
            "verify=False) skips this check."
        )


class _Seen:
    """The tensors of one pass: what sources wrote, what passed the streams and the readers."""

    def __init__(
        self, anatomy: Anatomy, record: PassRecord, tensors: dict[int, Tensor], output: object
    ) -> None:
        self.anatomy = anatomy
        self.record = record
        self.tensors = tensors
        self.output = output

    def all_differences(self) -> Iterator[_Difference]:
        """In the order of the flow, so that the first is where a difference comes from."""
        streams: dict[int, Tensor] = {}
        for dest in self.anatomy.dests:
            stream = self._tensor(dest.stream, dest)
            yield self._step(streams, dest, stream)
            streams[dest.n_sources] = stream
            for reader in dest.readers:
                if reader.norm is not None:
                    yield self._computed(dest, reader, stream)
        raw, output = self.tensors.get(id(self.anatomy.logits)), self.output
        logits = None if raw is None else self.anatomy.finish_logits(raw)
        if logits is None or not isinstance(output, Tensor) or output.shape != logits.shape:
            return  # the model gave something else, such as its loss
        yield _Difference("the logits", difference(logits, output), output.dtype)

    def _step(self, streams: dict[int, Tensor], dest: DestSite, stream: Tensor) -> _Difference:
        """From the last stream that was seen, by its number of sources, to what `dest` reads."""
        begin = max((n for n in streams if n <= dest.n_sources), default=0)
        total = streams.get(begin, torch.zeros((), dtype=stream.dtype))
        dtypes, squares, end = [stream.dtype], wide(total).square(), 0
        for site, bias in zip(self.record.outputs, self.record.biases, strict=True):
            end += site.code.shape[2]
            if not begin < end <= dest.n_sources:
                continue
            dtypes.append(site.code.dtype)
            written, square = _written(site, bias)
            # In the model's own type: what is too small to be added there is lost here too.
            total = total.to(written.device) + written.to(stream.dtype)
            squares = squares.to(written.device) + square
        where = f"the residual stream that {dest.names[0]} reads"
        return _Difference(where, difference(total, stream, squares), _coarsest(dtypes))

    def _computed(self, dest: DestSite, reader: Reader, stream: Tensor) -> _Difference:
        """What a destination computes from the stream."""
        heads = range(len(dest.names))
        own = self._tensor(reader.point, dest).reshape(*stream.shape[:2], len(heads), -1)
        copies = stream.expand(len(heads), *stream.shape)
        ours = reader.project(copies, heads).permute(1, 2, 0, 3)
        names = " … ".join(dict.fromkeys((dest.names[0], dest.names[-1])))
        what = f"what {names} computes from the residual stream"
        if ours.shape != own.shape:
            raise AnatomyError(
                f"The anatomy expects that {what} is {list(ours.shape)} (batch, seq, heads, width), "
                f"but {list(own.shape)} passed there. A model of this layout cannot be traced."
            )
        dtype = _coarsest([own.dtype, stream.dtype])
        return _Difference(what, difference(ours, own, *_squares(reader, stream)), dtype)

    def _tensor(self, point: Point, dest: DestSite) -> Tensor:
        if id(point) not in self.tensors:
            raise AnatomyError(
                f"The anatomy expects {dest.names[0]} to read a tensor at the {point.side} of a "
                f"{type(point.module).__name__}, but nothing passed there in a forward pass."
            )
        tensor = self.tensors[id(point)]
        shape = self.record.outputs[0].code.shape[:2]
        tensor = unflattened(tensor, (shape[0], shape[1]))
        if tensor.shape[:2] != shape:
            raise AnatomyError(
                f"The tensor that {dest.names[0]} reads has the shape {tuple(tensor.shape)}: expected "
                f"it to begin with [batch, seq] = {list(shape)}. A model of this layout cannot be "
                "traced."
            )
        return tensor


def _unseen_readers(model: nn.Module, seen: _Seen, example: Tensor) -> Iterator[_Difference]:
    """How far each source is from what it wrote, when all that it reads is what it read then."""
    anatomy = seen.anatomy
    now = replay(
        model, anatomy, seen.tensors, lambda: _pass(model, anatomy, example.roll(1, dims=1))
    )
    for what, relative in unseen_readers(anatomy, seen.record, now):
        what += (
            " when all that it reads is replayed (it reads the residual stream in a way that the "
            "anatomy does not know)"
        )
        yield _Difference(what, relative, seen.record.outputs[0].code.dtype)


def _written(site: SiteOutput, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a site adds to the stream, hardly rounded, and the sum of the squares that made it."""
    exact = replace(
        site,
        code=wide(site.code),
        weight=None if site.weight is None else wide(site.weight),
        gain=None if site.gain is None else wide(site.gain),
    )
    squared = replace(
        exact,
        code=exact.code.square(),
        weight=None if exact.weight is None else exact.weight.square(),
        gain=None if exact.gain is None else exact.gain.square(),
    )
    every = range(site.code.shape[2])
    written, squares = exact.project(every).sum(0), squared.project(every).sum(0)
    if bias is not None:
        written, squares = written + bias, squares + wide(bias).square()
    return written, squares + written.square()


def _squares(reader: Reader, stream: Tensor) -> list[Tensor | None]:
    """The squares of what a reader adds up for each entry, `[batch, seq, head, width]`."""
    weight, bias = reader.weight(), reader.bias()
    if weight is None:
        return []
    assert reader.norm is not None
    normed = wide(reader.norm(stream)).square()
    products = torch.einsum("bpd,hdw->bphw", normed, wide(weight).square())
    return [products, None if bias is None else wide(bias).square()]


def _coarsest(dtypes: list[torch.dtype]) -> torch.dtype:
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _pass(model: nn.Module, anatomy: Anatomy, example: Tensor) -> object:
    """Run the model; dropout of a model in training mode neither moves the user's random numbers
    nor differs from one run to the next."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return model(example, **anatomy.without_logits)


def _run(model: nn.Module, anatomy: Anatomy, example: Tensor) -> _Seen:
    tensors: dict[int, Tensor] = {}
    points = {
        id(point): point
        for dest in anatomy.dests
        for point in (dest.stream, *(reader.point for reader in dest.readers))
    } | {id(anatomy.logits): anatomy.logits}
    session = Session(model, anatomy, reads=False)

    def keep(number: int, tensor: Tensor) -> None:
        tensors[number] = tensor.clone()  # a model may go on to add to it in place

    def run() -> object:
        for number, point in points.items():
            attach(session.scope, point, partial(keep, number))
        return _pass(model, anatomy, example)

    output = session.during(run)
    if session.record is None:
        silent = [dest.names[0] for dest in anatomy.dests if id(dest.stream) not in tensors]
        what = f"nothing passed where {silent[0]} reads it" if silent else "its end came too early"
        raise AnatomyError(
            f"A forward pass of this {type(model).__name__} did not run through the residual stream "
            f"as the anatomy expects: {what}. The model cannot be traced."
        )
    return _Seen(anatomy, session.record, tensors, output)
