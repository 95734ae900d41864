"""Check an anatomy against the model itself: one tiny pass, and every tensor computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, DestSite, Point
from circuit_trace.errors import AnatomyError, CircuitTraceError
from circuit_trace.graph import build_graph
from circuit_trace.hooks.attach import attach, unflattened
from circuit_trace.hooks.record import PassRecord
from circuit_trace.hooks.session import Session
from circuit_trace.plan import Plan, SourceOutputs

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest relative difference that rounding explains. Float32 sums over layers in another order
differ by 1e-6 to 1e-5; a forgotten bias or norm weight by 1e-2 and more."""

SMALL = 0.01
"""Positions count as no smaller than this share of the middle one."""


def tolerance_of(dtype: torch.dtype) -> float:
    """The largest relative difference that rounding explains in numbers of this kind."""
    return TOLERANCE.get(dtype, max(TOLERANCE.values()))


@dataclass(frozen=True, eq=False)
class _Difference:
    what: str
    relative: float


@torch.no_grad()
def verify(model: nn.Module, anatomy: Anatomy) -> None:
    """Run the anatomy's example and compare its arithmetic with the model's own tensors.

    At every destination the stream must equal the sum of the sources before it and their biases,
    and what the destination computes from the stream must equal what the model computed. Another
    input with every edge patched from the first one must make every source write what it wrote
    then: a layer that reads the stream where the anatomy knows of no destination does not.

    Raises:
        AnatomyError: Something differs: which tensor of which layer, and by how much.
    """
    example = anatomy.example()
    try:
        seen = _run(model, anatomy, example)
    except CircuitTraceError:
        raise
    except ValueError as error:  # a weight that cannot be read head by head, for instance
        raise AnatomyError(
            f"This {type(model).__name__} cannot be traced: the pass that checks its anatomy failed "
            f"with {type(error).__name__}: {error}"
        ) from error
    tolerance = tolerance_of(seen.dtype)
    unseen = _unseen_readers(model, anatomy, example, seen.record)
    for found in chain(seen.all_differences(), unseen):
        if found.relative <= tolerance:  # a NaN must fail too
            continue
        raise AnatomyError(
            f"The anatomy found for this {type(model).__name__} does not reproduce it: {found.what} "
            f"differs by {found.relative:.2g} relative to its size (allowed for {seen.dtype}: "
            f"{tolerance:g}). Patching it would give wrong results, so it is refused. If hooks on "
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
        self._sums: dict[int, Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.record.outputs[0].code.dtype

    def all_differences(self) -> Iterator[_Difference]:
        """In the order of the flow, so that the first is where a difference comes from."""
        for dest in self.anatomy.dests:
            yield from self.differences(dest)
        raw, output = self.tensors.get(id(self.anatomy.logits)), self.output
        logits = None if raw is None else self.anatomy.finish_logits(raw)
        if logits is None or not isinstance(output, Tensor) or output.shape != logits.shape:
            return  # the model gave something else, such as its loss
        yield _Difference("the logits", _relative(logits, output))

    def differences(self, dest: DestSite) -> list[_Difference]:
        stream = self._tensor(dest.stream, dest)
        where = f"the residual stream that {dest.names[0]} reads"
        found = [_Difference(where, _relative(self.sum_before(dest.n_sources), stream))]
        heads = range(len(dest.names))
        for reader in dest.readers:
            if reader.norm is not None:
                own = self._tensor(reader.point, dest).reshape(*stream.shape[:2], len(heads), -1)
                copies = stream.expand(len(heads), *stream.shape)
                ours = reader.project(copies, heads).permute(1, 2, 0, 3)
                name = f"what {dest.names[0]} … {dest.names[-1]} computes from the residual stream"
                if len(heads) == 1:
                    name = f"what {dest.names[0]} computes from the residual stream"
                found.append(_Difference(name, _relative(ours, own)))
        return found

    def sum_before(self, n_sources: int) -> Tensor:
        """The sum of the first sources and of the biases of their sites."""
        if not self._sums:
            total, end = torch.zeros(()), 0
            for site, bias in zip(self.record.outputs, self.record.biases, strict=True):
                written = site.project(range(site.code.shape[2])).sum(0)
                written = written if bias is None else written + bias
                total = total.to(written.device) + written
                end += site.code.shape[2]
                self._sums[end] = total
        return self._sums[n_sources]

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


def _unseen_readers(
    model: nn.Module, anatomy: Anatomy, example: Tensor, record: PassRecord
) -> Iterator[_Difference]:
    """How far each source is from what it wrote, when every edge into it is patched from then."""
    graph = build_graph(anatomy, None)
    batch, seq = record.outputs[0].code.shape[:2]
    then = SourceOutputs(graph.srcs, tuple(record.outputs), batch, seq)
    every = {module.name: torch.ones(module.shape) for module in graph.modules}
    session = Session(model, anatomy, (Plan(graph, every, (), then),), reads=False)
    session.during(lambda: _pass(model, anatomy, example.roll(1, dims=1)))
    assert session.record is not None  # a pass as the one before
    for site, now, before in zip(
        anatomy.sources, session.record.outputs, record.outputs, strict=True
    ):
        if site.kind == "embed":
            continue
        names = " … ".join(dict.fromkeys((site.names[0], site.names[-1])))
        what = (
            f"what {names} writes when all that it reads is patched (it reads the residual stream in "
            "a way that the anatomy does not know)"
        )
        yield _Difference(what, _relative(now.code, before.code))


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
        tensors[number] = tensor

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


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference at any position: one huge position must not hide others."""
    if ours.shape != theirs.shape:
        return float("inf")
    expected = theirs.detach().float().flatten(2).norm(dim=-1)
    difference = (ours.detach().to(theirs.device).float() - theirs.detach().float()).flatten(2)
    least = SMALL * expected.median()  # what is almost nothing has no digits to compare
    tiny = torch.finfo(torch.float32).tiny
    return float((difference.norm(dim=-1) / torch.maximum(expected, least).clamp_min(tiny)).max())
