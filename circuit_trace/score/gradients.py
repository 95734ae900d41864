"""One forward and one backward pass: the gradient of a metric where each destination reads the stream.

Nothing of the model learns here: the embedding's output is the leaf of the graph, gradients are asked
for at the readers alone (`torch.autograd.grad`), and the hooks are gone before the backward pass runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from circuit_trace.anatomy import Anatomy, DestSite, Point, Reader
from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.hooks import Session
from circuit_trace.hooks.attach import attach, unflattened
from circuit_trace.hooks.check import PassCheck, did_not_run
from circuit_trace.hooks.scope import Scope
from circuit_trace.hooks.sums import warn_of_gap
from circuit_trace.plan import PromptPairs, SiteOutput
from circuit_trace.score.metrics import PerPrompt

Change = tuple[Point, Callable[[Tensor], Tensor]]
"""A tensor that passes in the model, and what shall pass in its place."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one pass leaves: the sources' outputs, the logits, and the gradients of the metric, summed
    over prompts, with respect to what each reader computed or read.

    Of readers behind a norm also the stream before it and, where it still is as it was, what they
    computed from it.
    """

    outputs: tuple[SiteOutput, ...]
    logits: Tensor
    streams: Mapping[DestSite, Tensor]
    computed: Mapping[Reader, Tensor]
    at_readers: Mapping[Reader, Tensor]


def gradients(
    model: Engine,
    batch: PromptPairs,
    metric: PerPrompt,
    *,
    clean_logits: Tensor | None = None,
    change: Change | None = None,
) -> Gradients:
    """Run a batch's clean prompts forward and backward; `change` replaces a tensor on its way.

    Raises:
        InputError: The pass stopped early, or the metric is not finite or has no gradient.
        AnatomyError: The model computes something else than the anatomy says.
    """
    taps = _Taps(model.anatomy, change)
    session = Session(model.wrapped_model, model.anatomy, reads=change is None)

    def run() -> Any:
        taps.attach(session.scope)
        session.attach()
        prompts = batch.clean_prompts
        return model.wrapped_model(prompts.tokens, **prompts.forward)

    logits = logits_of(session.scope.during(run))
    if session.record is None:
        raise InputError(
            "The pass did not reach the end of the residual stream, so nothing can be scored."
        )
    taps.check_all_read()
    if change is None:  # a moved source does not write what it computed
        warn_of_gap(model.graph, session.record)
    total = summed(metric(logits, batch, clean_logits))
    edges = [tap.edge for tap in taps.read.values()]
    found = torch.autograd.grad(total, edges, allow_unused=True)
    check_any(found)
    outputs = tuple(session.record.outputs)
    batch_and_seq = outputs[0].code.shape[0], outputs[0].code.shape[1]
    at_readers = {
        reader: unflattened(
            logits.new_zeros(tap.shape) if gradient is None else gradient, batch_and_seq
        )
        for (reader, tap), gradient in zip(taps.read.items(), found, strict=True)
    }
    return Gradients(outputs, logits.detach(), taps.streams, taps.computed, at_readers)


def logits_of(output: Any) -> Tensor:
    """The logits that a model returned.

    Raises:
        InputError: It returned something else.
    """
    if isinstance(output, Tensor) and output.ndim >= 2:
        return output
    got = f"one of the shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
    raise InputError(
        f"A metric needs the model's logits as a tensor [batch, seq, ...], but the model returned "
        f"{got}. Leave options such as return_type out of forward=."
    )


def summed(values: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The sum of a metric over its prompts, checked.

    Raises:
        InputError: It is not finite for a prompt, or has no gradient.
    """
    wrong = (~values.detach().isfinite()).nonzero()
    if len(wrong):
        prompt = int(wrong[0])
        raise InputError(
            f"The metric of prompt {prompt} is {values[prompt].item()}: expected a finite number."
        )
    if not values.requires_grad:
        raise InputError(
            "The metric has no gradient: it must be computed from the logits by torch, without "
            ".item(), .detach(), argmax or no_grad."
        )
    return values.sum()


def check_any(gradients: Sequence[Tensor | None]) -> None:
    """Check that a metric depends on the model's pass at all.

    Raises:
        InputError: It depends on none of what gradients were asked for.
    """
    if all(gradient is None for gradient in gradients):
        raise InputError(
            "The metric has no gradient: it does not depend on what the model computed from these "
            "prompts."
        )


class _Tap(NamedTuple):
    """Where in the graph of gradients a reader's tensor is, and its shape."""

    edge: GradientEdge
    shape: torch.Size


class _Taps:
    """The hooks that make the graph of gradients start at the stream and give each reader's tensor
    a name of its own, so that its gradient is that of this reader alone."""

    def __init__(self, anatomy: Anatomy, change: Change | None) -> None:
        self.read: dict[Reader, _Tap] = {}
        self.streams: dict[DestSite, Tensor] = {}
        self._copies: dict[Reader, tuple[Tensor, int]] = {}
        self._anatomy = anatomy
        self._change = change
        self._check = PassCheck(anatomy.verified)
        self._shape = (0, 0)

    def attach(self, scope: Scope) -> None:
        for dest, reader in _readers(self._anatomy):
            # Before all other hooks, where a patch would go: those see what is really used.
            attach(scope, reader.point, partial(self._tap, dest, reader), first=True)
        if self._change is not None:
            attach(scope, *self._change)
        attach(scope, self._anatomy.sources[0].point, self._start)
        for dest, reader in _readers(self._anatomy):
            if reader.norm is not None:
                attach(scope, dest.stream, partial(self._pass, dest))

    def _start(self, tensor: Tensor) -> Tensor:
        self._shape = (tensor.shape[0], tensor.shape[1])
        # A copy, since nothing may write into a leaf.
        return tensor.detach().requires_grad_().clone()

    def _pass(self, dest: DestSite, tensor: Tensor) -> None:
        self.streams[dest] = unflattened(tensor.detach(), self._shape)

    def _tap(self, dest: DestSite, reader: Reader, tensor: Tensor) -> Tensor:
        if reader.norm is not None and dest in self.streams:
            whole = unflattened(tensor, self._shape)
            self._check.read(dest, reader, range(len(dest.names)), self.streams[dest], whole)
        # A hook may have put something in the stream's place that has no history.
        copy = (tensor if tensor.requires_grad else tensor.detach().requires_grad_()).clone()
        # Not the copy itself: a hook behind this one may write into it.
        self.read[reader] = _Tap(get_gradient_edge(copy), copy.shape)
        if reader.norm is not None:
            # Where attention's own gradient needs the copy, this takes no memory.
            self._copies[reader] = copy.detach(), copy._version
        return copy

    def check_all_read(self) -> None:
        """Check that every reader ran, and computed what the anatomy says.

        Raises:
            InputError: A reader did not run.
            AnatomyError: One computes something else.
        """
        for dest, reader in _readers(self._anatomy):
            if reader not in self.read or (reader.norm is not None and dest not in self.streams):
                raise did_not_run(dest.names[0], "scored")
        self._check.settle()

    @property
    def computed(self) -> dict[Reader, Tensor]:
        """What readers computed, unless a hook or the model itself wrote into it since."""
        return {
            reader: unflattened(copy, self._shape)
            for reader, (copy, version) in self._copies.items()
            if copy._version == version
        }


def _readers(anatomy: Anatomy) -> Iterator[tuple[DestSite, Reader]]:
    return ((dest, reader) for dest in anatomy.dests for reader in dest.readers)
