"""Run a model on another prompt while every destination reads what it read before.

What a layer then writes must be what it wrote before, bit for bit but for the order in which a GPU
adds: nothing is computed anew, so neither rounding nor a router's choice between experts can differ.
Where it is not, the layer reads the residual stream where the anatomy knows of no destination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy
from circuit_trace.hooks.attach import attach
from circuit_trace.hooks.record import PassRecord
from circuit_trace.hooks.rounding import difference
from circuit_trace.hooks.session import Session


def replay(
    model: nn.Module, anatomy: Anatomy, read: Mapping[int, Tensor], run: Callable[[], object]
) -> PassRecord:
    """The record of a pass in which each reader's tensor is the one in `read`, by its point's id.

    The stream itself begins with something else, as large as it ever was: what the layers add, being
    the same, would else hide it from whatever reads it further down.
    """
    end = read[id(anatomy.dests[-1].stream)]
    session = Session(model, anatomy, reads=False)

    def replayed() -> object:
        attach(session.scope, anatomy.sources[0].point, partial(_with_another, end))
        for dest in anatomy.dests:
            for reader in dest.readers:
                attach(session.scope, reader.point, partial(_instead, read[id(reader.point)]))
        session.attach()  # behind them: the record holds what is replayed
        return run()

    session.scope.during(replayed)
    assert session.record is not None  # a pass as the one before
    return session.record


def unseen_readers(
    anatomy: Anatomy, before: PassRecord, now: PassRecord
) -> Iterator[tuple[str, float]]:
    """What each source site writes, and how far that is from what it wrote before."""
    for site, then, again in zip(anatomy.sources, before.outputs, now.outputs, strict=True):
        if site.kind == "embed":
            continue
        names = " … ".join(dict.fromkeys((site.names[0], site.names[-1])))
        yield f"what {names} writes", difference(again.code, then.code)
    if before.logits is not None and now.logits is not None:
        yield "the model's output", difference(now.logits, before.logits)


def _instead(recorded: Tensor, tensor: Tensor) -> Tensor:
    return recorded.clone().view_as(tensor)  # a model may go on to add to it in place


def _with_another(end: Tensor, start: Tensor) -> Tensor:
    return start + end.view_as(start).roll(1, dims=1).to(start)
