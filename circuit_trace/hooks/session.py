"""The hooks of one open context: they patch first and record last, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, DestSite, Point, Reader, SourceSite
from circuit_trace.errors import InputError
from circuit_trace.hooks.attach import OnTensor, attach, unflattened
from circuit_trace.hooks.check import PassCheck, did_not_run
from circuit_trace.hooks.delta import (
    Delta,
    PassDeltas,
    PlanDeltas,
    Scratch,
    add_delta,
    combine,
    replace_heads,
)
from circuit_trace.hooks.heads import HeadTaker, head_takers
from circuit_trace.hooks.postnorm import take_apart
from circuit_trace.hooks.record import PassRecord, Read, sketch
from circuit_trace.hooks.scope import Hook, Scope, move_last
from circuit_trace.plan import MASK, Plan, SiteOutput

T = TypeVar("T")

Key = tuple[int, str]
"""A point's identity: the module's and the side."""


class _Pass:
    """A forward pass under way: its record so far, and what the patches still need of it."""

    def __init__(
        self,
        tokens: Tensor | None,
        shape: tuple[int, int],
        plans: tuple[Plan, ...],
        ready: list[PlanDeltas],
        check: PassCheck,
    ) -> None:
        self.shape = shape
        self.check = check
        self.record = PassRecord(tokens, tuple(plan.snapshot() for plan in plans))
        self.record.heads.update({name: {} for plan in plans for name in plan.heads})
        self.deltas = [PassDeltas(plan) for plan in ready]
        self.streams: dict[Key, Tensor] = {}
        self.ready: dict[str, Delta | None] = {}
        self.patched: set[Key] = set()
        self.codes: dict[int, Tensor] = {}
        self.before_norm: dict[int, Tensor] = {}
        self.scratch = Scratch()

    def shaped(self, tensor: Tensor) -> Tensor:
        """The tensor as `[batch, seq, ...]`."""
        return unflattened(tensor, self.shape)


class Session:
    """Hooks on one model for as long as a context is open.

    `plans` are applied together, their edges being distinct. Where they touch a destination the
    patch goes first, so that a user's own hook at the same point sees, and may change, what is
    really used; records are taken last, so that they hold what was really used. `record` is the
    last pass that ran to the end of the stream. A session is attached once; `scope` is what its
    hooks ask before they do anything.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        plans: tuple[Plan, ...] = (),
        *,
        reads: bool = True,
        on_record: Callable[[PassRecord], None] = lambda record: None,
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.plans = plans
        self.record: PassRecord | None = None
        self.scope = Scope()
        self._deltas = [PlanDeltas(plan) for plan in plans if plan.masks]
        self._touched = {name for plan in self._deltas for name in plan.masks}
        self._head_takers = head_takers(anatomy, {name for plan in plans for name in plan.heads})
        self._keep_reads = reads
        self._on_record = on_record
        self._recorders: dict[Key, tuple[Point, list[OnTensor]]] = {}
        self._record_hooks: list[Hook] = []
        self._tokens: Tensor | None = None
        self._mask: Tensor | None = None
        self._whole: PassRecord | None = None
        self._unreturned: PassRecord | None = None
        self._pass: _Pass | None = None
        self._plan_recorders()

    def attach(self, thread: int | None = None) -> None:
        """Put the hooks on the model; last of all let them act, in this thread or another.

        Whatever happens on the way, `scope.close()` takes off what is there.
        """
        for dest in self.anatomy.dests:
            if dest.module_name in self._touched:
                for reader in dest.readers:
                    on_tensor = partial(self._patch, dest, reader)
                    attach(self.scope, reader.point, on_tensor, first=True)
        for taker in self._head_takers:
            on_tensor = partial(self._take_used, taker)
            attach(self.scope, taker.shown.point, on_tensor, first=True)
        self._record_hooks = [
            attach(self.scope, point, _each(callbacks))
            for point, callbacks in self._recorders.values()
        ]
        if self.anatomy.tokens is not None:
            attach(self.scope, self.anatomy.tokens, self._tokens_came)
        attach(self.scope, self.anatomy.logits, self._logits_came)
        self.scope.before(self.model, self._model_called)
        self.scope.after(self.model, self._model_returned)
        self.scope.open(thread)

    def during(self, run: Callable[[], T]) -> T:
        """What `run` returns with the hooks on the model; they go however it ends."""

        def attached() -> T:
            self.attach()
            return run()

        return self.scope.during(attached)

    def _plan_recorders(self) -> None:
        for number, source in enumerate(self.anatomy.sources):
            if source.norm is None:
                self._add_recorder(source.point, partial(self._source_wrote, number))
            else:
                self._add_recorder(source.point, partial(self._code_came, number))
                self._add_recorder(source.norm.before, partial(self._norm_comes, number))
                self._add_recorder(source.norm.after, partial(self._normed, number))
            if source.total is not None:
                self._add_recorder(source.total, partial(self._summed, source))
        by_stream: dict[Key, list[int]] = {}
        points: dict[Key, Point] = {}
        for number, dest in enumerate(self.anatomy.dests):
            by_stream.setdefault(_key(dest.stream), []).append(number)
            points[_key(dest.stream)] = dest.stream
        for key, numbers in by_stream.items():
            self._add_recorder(points[key], partial(self._stream_passed, key, tuple(numbers)))
        for taker in self._head_takers:
            self._add_recorder(taker.shown.point, partial(self._take, taker))

    def _add_recorder(self, point: Point, on_tensor: OnTensor) -> None:
        self._recorders.setdefault(_key(point), (point, []))[1].append(on_tensor)

    def _model_called(self, _args: tuple, given: dict[str, Any]) -> None:
        mask = given.get(MASK)
        self._mask = mask.detach().clone() if isinstance(mask, Tensor) else None

    def _tokens_came(self, tokens: Tensor) -> None:
        self._tokens = tokens.detach().clone()
        # What is left of a pass that failed after its stream had ended.
        self._whole = self._unreturned = None
        move_last(self._record_hooks)  # behind hooks that were put on since

    def _source_wrote(self, number: int, tensor: Tensor) -> None:
        """A source site's code came by, and no norm stands before the stream."""
        if number == 0:
            if tensor.is_meta:
                raise InputError(
                    "The model is on the meta device, where nothing is computed. Move it to another one "
                    "with its weights, and run it there."
                )
            shape = (tensor.shape[0], tensor.shape[1])
            for plan in self.plans:
                _check_fits(plan, *shape, tensor.shape[-1])
            check = PassCheck(self.anatomy.verified)
            self._pass = _Pass(self._tokens, shape, self.plans, self._deltas, check)
            self._pass.record.attention_mask = self._mask
            self._tokens = self._mask = None
        bias = self.anatomy.sources[number].bias()
        self._write(number, self._code(number, tensor), None, bias)

    def _code_came(self, number: int, tensor: Tensor) -> None:
        if self._pass is not None:
            self._pass.codes[number] = self._code(number, tensor)

    def _norm_comes(self, number: int, tensor: Tensor) -> None:
        if self._pass is not None:
            self._pass.before_norm[number] = self._pass.shaped(tensor)

    def _normed(self, number: int, tensor: Tensor) -> None:
        """The norm after a source site ran; only now is known what reaches the stream."""
        if self._pass is None or number not in self._pass.codes:
            return
        site = self.anatomy.sources[number]
        assert site.norm is not None
        before = self._pass.before_norm.pop(number)
        parts = take_apart(site.norm, before, self._pass.shaped(tensor))
        code = self._pass.codes.pop(number)
        bias, shift = site.bias(), parts.shift
        if bias is not None:
            normed = bias * parts.gain * parts.factor
            shift = normed if shift is None else normed + shift
        code = code * parts.factor[..., None].to(code.dtype)
        self._write(number, code, parts.gain.to(code.dtype), shift)

    def _code(self, number: int, tensor: Tensor) -> Tensor:
        """What a site computed, `[batch, seq, node, width]`."""
        site = self.anatomy.sources[number]
        if self._pass is None or len(self._pass.record.outputs) != number:
            raise InputError(
                f"This pass reached {site.names[0]!r} without running every layer before it in "
                "order, so it cannot be traced. Run the whole model: no start_at_layer, no second "
                "pass inside a hook, and no backward pass that runs layers again (gradient "
                "checkpointing) while the context is open."
            )
        tensor = self._pass.shaped(tensor)
        code = tensor.reshape(*tensor.shape[:2], len(site.names), -1)
        self._pass.check.wrote(site, code)
        return code

    def _summed(self, site: SourceSite, tensor: Tensor) -> None:
        if self._pass is not None:
            self._pass.check.summed(site, self._pass.shaped(tensor))

    def _write(self, number: int, code: Tensor, gain: Tensor | None, bias: Tensor | None) -> None:
        """A source site has written to the stream: patches may need it, and the record keeps it."""
        assert self._pass is not None
        site = self.anatomy.sources[number]
        if site.scale != 1:
            code = code * site.scale
            bias = None if bias is None else bias * site.scale
        with self._pass.check.reading(f"{site.names[0]} writes"):
            live = SiteOutput(code, site.weight(), gain)
        for deltas in self._pass.deltas:
            deltas.source_wrote(number, live)
        record = self._pass.record
        record.outputs.append(live.detach())
        record.biases.append(None if bias is None else bias.detach().clone())

    def _stream_passed(self, key: Key, numbers: tuple[int, ...], tensor: Tensor) -> None:
        if self._pass is None:
            return
        tensor = self._pass.shaped(tensor)
        dests = [self.anatomy.dests[number] for number in numbers]
        if any(dest.module_name in self._touched for dest in dests):
            self._pass.streams[key] = tensor
        if self._keep_reads:
            is_changed = any(reader.norm is None for dest in dests for reader in dest.readers)
            self._pass.record.reads.append(Read(numbers, sketch(tensor), is_changed))
        if numbers[-1] == len(self.anatomy.dests) - 1:
            self._check(self._pass)
            self._whole, self._pass = self._pass.record, None

    def _take(self, taker: HeadTaker, tensor: Tensor) -> None:
        """A tensor of heads that were asked for came by."""
        if self._pass is not None:
            taker.take(tensor, self._pass.record.heads)

    def _take_used(self, taker: HeadTaker, tensor: Tensor) -> None:
        """The same before other hooks see it: some models show a pattern after they have used it
        (OPT, GPT-J), and what a hook makes of it then is not what the heads did."""
        one = self._pass
        if one is not None and (
            taker.site_idx < len(one.record.outputs) or taker.site_idx in one.codes
        ):
            self._take(taker, tensor)

    def _logits_came(self, tensor: Tensor) -> None:
        if self._whole is not None:
            self._whole.keep_logits(self.anatomy.finish_logits(tensor))
            self._unreturned = self._whole
            self._pass_ended()

    def _model_returned(self, _args: tuple, output: Any) -> None:
        if self._pass is not None:  # it stopped early: nothing to record
            stopped, self._pass = self._pass, None
            self._check(stopped)
        self._pass_ended()
        self._returned(output)

    def _returned(self, output: object) -> None:
        """The logits are what the model returned, where it returned them and not a loss."""
        record, self._unreturned = self._unreturned, None
        ours = None if record is None else record.logits
        if record is None or ours is None or not isinstance(output, Tensor):
            return
        if output.shape == ours.shape:
            record.keep_logits(output)

    def _pass_ended(self) -> None:
        """A record counts when the stream has ended and nothing failed after it."""
        if self._whole is not None:
            record, self._whole = self._whole, None
            self.record = record
            self._on_record(record)

    def _check(self, one: _Pass) -> None:
        """Refuse a pass in which something was not patched, or not as the model would compute it."""
        one.check.settle()
        for dest in self.anatomy.dests:
            points = {_key(reader.point) for reader in dest.readers}
            if dest.module_name in self._touched and not points <= one.patched:
                raise did_not_run(dest.names[0])

    def _patch(self, dest: DestSite, reader: Reader, tensor: Tensor) -> Tensor | None:
        if self._pass is None:
            return None
        whole = self._pass.shaped(tensor)
        delta = self._delta(dest, whole)
        if delta is None:
            return None
        self._pass.patched.add(_key(reader.point))
        if reader.norm is None:
            self._keep_read(dest, whole)
            return add_delta(whole, delta).view_as(tensor)
        stream = self._pass.streams.get(_key(dest.stream))
        if stream is None:
            raise did_not_run(dest.names[0])
        self._pass.check.read(dest, reader, delta.heads, stream, whole)
        read = delta.on(stream, self._pass.scratch)
        if self._keep_reads:
            number = self.anatomy.dests.index(dest)
            self._pass.record.reads.append(
                Read((number,), sketch(read), True, delta.heads, delta.positions)
            )
        new = reader.project(read, delta.heads)
        return replace_heads(whole, len(dest.names), delta, new).view_as(tensor)

    def _keep_read(self, dest: DestSite, stream: Tensor) -> None:
        """Keep the stream as it was before a patch: what its sources must add up to."""
        if self._pass is not None and self._keep_reads:
            number = self.anatomy.dests.index(dest)
            self._pass.record.reads.append(Read((number,), sketch(stream), False))

    def _delta(self, dest: DestSite, tensor: Tensor) -> Delta | None:
        assert self._pass is not None
        name = dest.module_name
        if name not in self._pass.ready:
            found = [delta for deltas in self._pass.deltas if (delta := deltas.at(name))]
            self._pass.ready[name] = combine(found, tensor.shape[1]) if found else None
        return self._pass.ready[name]


def _key(point: Point) -> Key:
    return id(point.module), point.side


def _each(callbacks: list[OnTensor]) -> Callable[[Tensor], None]:
    def on_tensor(tensor: Tensor) -> None:
        for callback in callbacks:
            callback(tensor)

    return on_tensor


def _check_fits(plan: Plan, batch: int, seq: int, d_model: int) -> None:
    if plan.graph.seq_len not in (None, seq):
        raise InputError(
            f"The model was wrapped with seq_len={plan.graph.seq_len}, but this pass has {seq} "
            f"positions. Wrap the model again with seq_len={seq}, or without positions."
        )
    for what, outputs in (("patched", plan.patched), ("clean", plan.clean)):
        if outputs is None:
            continue
        outputs.fitted(batch, seq, what=what)
        width = outputs.sites[0].d_model
        if width != d_model:
            raise InputError(
                f"The {what} outputs come from another model: its stream is {width} wide (d_model), "
                f"this one's {d_model}."
            )
