"""Runs a wrapped model's passes: patched and recorded, outside the patches that are open, or inside.

The engine knows graphs, plans, hooks and records; it knows no score and no picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, Generic, TypeVar
from weakref import finalize

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, Places
from circuit_trace.errors import DataWarning, InputError, NoTraceError
from circuit_trace.graph import Graph, SrcNode
from circuit_trace.hooks import (
    OpenPatch,
    PassRecord,
    Session,
    check_alone,
    open_patches,
    same_every_time,
    unpatched,
)
from circuit_trace.hooks.remake import CHANGED, remade
from circuit_trace.hooks.sums import warn_of_gap
from circuit_trace.plan import (
    AblationType,
    EdgesArg,
    ForwardArg,
    HeadsArg,
    NodesArg,
    Plan,
    PromptPairs,
    Prompts,
    PruneScores,
    SiteOutput,
    SourceOutputs,
    ablate_batch,
    check_ablation,
    make_plan,
    mean_outputs,
    pair_of,
    read_mask,
    read_pairs,
    read_prompt_sets,
    real_after,
)
from circuit_trace.record.about import About
from circuit_trace.record.record import Record

R = TypeVar("R", bound=Record)
E = TypeVar("E", bound="Engine")

NOT_TO_THE_END = "The pass did not reach the end of the residual stream; nothing to record."


class Engine(Generic[R]):
    """A model, its anatomy and its graph, and the passes that are run on them."""

    records: type[R]
    """What the record of a pass is handed out as."""

    def __init__(self, wrapped_model: nn.Module, anatomy: Anatomy, graph: Graph) -> None:
        self.wrapped_model = wrapped_model
        self.anatomy = anatomy
        self.graph = graph
        self._last: _Recorded[R] | None = None
        self._anatomy_of: Callable[[nn.Module], Anatomy] | None = None
        self._places = Places.of(wrapped_model, anatomy)

    @property
    def srcs(self) -> tuple[SrcNode, ...]:
        """What writes to the residual stream, in order."""
        return self.graph.srcs

    @property
    def n_edges(self) -> int:
        """How many edges there are, each position counted where positions are told apart."""
        return self.graph.n_edges

    @property
    def seq_len(self) -> int | None:
        """How many positions are told apart; None where they are not."""
        return self.graph.seq_len

    @property
    def cfg(self) -> Any:
        """The wrapped model's configuration."""
        return self.anatomy.cfg

    @property
    def has_open_patch(self) -> bool:
        """Whether this wrapper of the model or another one has a patch open in this thread."""
        return bool(open_patches(self.wrapped_model))

    def source_outputs(
        self,
        data: Any,
        ablation: AblationType = AblationType.RESAMPLE,
        *,
        forward: ForwardArg | None = None,
    ) -> SourceOutputs:
        """Run a prompt, a batch or a dataset and keep what is to be patched in for each source.

        >>> import circuit_trace as ct
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> model.source_outputs("When Mary and John went", ct.AblationType.ZERO)["MLP 0"].sum()
        tensor(0.)

        Args:
            data: Tokens `[batch, seq]`, a string or a list of strings; of unequal length, these are
                padded and masked. For the three means over a dataset, what `score_edges` takes: one
                batch `(clean, corrupt)`, with or without answers, or an iterable of batches; also of
                prompts without a pair, such as `[tokens, tokens]`. A tuple is one batch, so two
                prompts in it are a pair. A list holds batches, or texts, which are one batch of
                prompts; two tensors, or two lists of texts, in a list within the data are a pair, as
                a DataLoader makes it.
            ablation: What becomes of the outputs; see `AblationType`.
            forward: More arguments of the forward pass, such as `{"attention_mask": mask}` for
                padded tokens; or, for a dataset, a function of a batch that returns them.

        Raises:
            InputError: Data of the wrong kind, empty, or batches of unequal length.
        """
        check_ablation(ablation)
        if ablation.mean_over_dataset:
            sets = read_prompt_sets(self.anatomy, data, forward, ablation.averaged)
            sites, real = mean_outputs(self._written, sets, ablation)
            return SourceOutputs(self.srcs, sites, 1, sites[0].code.shape[1], ablation, real)
        prompts = self.prompts_of(data, forward)
        written = self._written(prompts)
        batch, seq = written[0].code.shape[:2]
        sites = tuple(
            replace(site, code=ablate_batch(site.code, ablation, prompts.real)) for site in written
        )
        real = real_after(ablation, prompts.real)
        return SourceOutputs(self.srcs, sites, batch, seq, ablation, real)

    def _written(self, prompts: Prompts) -> Sequence[SiteOutput]:
        """What every source writes on some prompts, outside every open patch."""
        return self.run_plain(prompts, needs_logits=False).outputs

    def patch(
        self: E,
        patched: SourceOutputs | None = None,
        edges: EdgesArg | None = None,
        masks: PruneScores | None = None,
        *,
        nodes: NodesArg | None = None,
        heads: HeadsArg | None = None,
        clean: SourceOutputs | None = None,
    ) -> Patching[E]:
        """Patch edges in every forward pass of the model while the context is open, and record it.

        The hooks are the only thing that touches the model, and they go when the context closes,
        however it closes. Inside another `patch` of the same wrapper the edges add up; for an edge
        of both the inner one counts. A patch acts in the thread that opened it: passes that other
        threads run meanwhile are as they are without it, and may be patched by their own.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> with model.patch(model.source_outputs(CORRUPT), edges={"A1.0->Resid End": 0.5}):
        ...     logits = model(CLEAN)
        >>> model.last_trace
        <Trace: batch 1, seq 15, 11 sources, 1 edge patched>

        Args:
            patched: What to patch in, from `source_outputs`.
            edges: Names, `Edge` objects or pairs `(seq_idx, name)`, or a mapping from them to mask
                values (0 = current, 1 = patched). A name alone means every position.
            masks: Mask values as `PruneScores` instead; modules that are left out are not patched.
            nodes: Sources all of whose edges are patched: names such as `A5.2`, pairs
                `(seq_idx, name)`, or a mapping from them to mask values. An edge that `edges` names
                too takes its mask from there.
            heads: Heads whose attention is recorded for `Trace.head`: names, or patterns such as
                `A5.*` and `*`. Contexts inside one another record the heads of all of them.
            clean: What the sources write where nothing is patched, `source_outputs` of the prompt that
                is run: then the record compares clean with received.

        Raises:
            EdgeError, MaskError, InputError: What is asked for does not fit the model.
            AnatomyError: The model was changed after it was wrapped and cannot be traced as it is now;
                what only a pass can tell (an adapter was switched on) is raised by the pass.
        """
        return Patching(self, make_plan(self.graph, patched, edges, masks, nodes, heads, clean))

    def renew(self) -> None:
        """See the model as it now is, before it runs: its modules may have been replaced."""
        if self._places.hold(self.wrapped_model, self.anatomy):
            return
        if open_patches(self.wrapped_model):
            raise InputError(f"{CHANGED}, while a patch is open. Close the patch first.")
        self.anatomy = remade(self.wrapped_model, self.anatomy, self._anatomy_of)
        self._places = Places.of(self.wrapped_model, self.anatomy)

    def run_patched(self, plan: Plan, prompts: Prompts) -> _Recorded[R]:
        """One patched pass; another thread may set `last_trace` after it."""
        patching = Patching(self, plan)
        with patching, same_every_time(self.wrapped_model):
            self.wrapped_model(prompts.tokens, **prompts.forward)
        if not patching.recorded:
            raise InputError(NOT_TO_THE_END)
        return patching.recorded[-1]

    def outputs_of(self, record: PassRecord) -> SourceOutputs:
        """What the sources wrote in a pass."""
        batch, seq = record.outputs[0].code.shape[:2]
        return SourceOutputs(self.srcs, tuple(record.outputs), batch, seq)

    @property
    def last_trace(self) -> R:
        """The record of the last pass that ran to its end inside `patch` or `trace`.

        Raises:
            NoTraceError: There is none yet.
        """
        if self._last is None:
            raise NoTraceError(
                "No pass has been recorded yet. Call model.trace(tokens, corrupt=..., edges=[...]), "
                "or run the model inside `with model.patch(...)`."
            )
        return self._last.trace_of(self)

    def patched_for(
        self, pairs: PromptPairs, ablation: AblationType, *, is_asked: bool
    ) -> SourceOutputs | None:
        """What is patched into the clean prompts: what an ablation makes of the corrupt ones."""
        needs_corrupt = ablation is AblationType.RESAMPLE or ablation.corrupt_dataset
        if pairs.corrupt is None and (needs_corrupt or not is_asked):
            return None  # make_plan says what is missing, if anything is
        if ablation is AblationType.RESAMPLE and len(pairs.same) == len(pairs):
            warnings.warn(
                "The corrupt prompts are the same as the clean ones, so patching changes nothing.",
                DataWarning,
                stacklevel=3,
            )
        data = pairs if ablation.mean_over_dataset else pairs.other_prompts
        return self.source_outputs(data, ablation).within(pairs.attention_mask)

    def prompts_of(self, prompts: Any, forward: ForwardArg | None = None) -> Prompts:
        """A prompt, or a batch of them, as the model runs it: token ids, arguments, and padding.

        >>> import circuit_trace as ct
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> prompts = model.prompts_of(["When Mary and John went", "When Mary"])
        >>> prompts.real.sum(1).tolist()
        [6, 3]
        >>> logits = model(prompts.tokens, **prompts.forward)

        Args:
            prompts: Token ids `[batch, seq]`, a string, or a list of strings; those of unequal length
                are padded at the left and masked.
            forward: More arguments of the forward pass. An `attention_mask` among them says where
                these tokens are padded, on either side.

        Raises:
            InputError: They are none that this model can run.
        """
        if isinstance(prompts, Prompts):
            return prompts
        return self._runnable(pair_of(self.anatomy, prompts, None, forward)).clean_prompts

    def pairs_of(
        self, data: Any, forward: ForwardArg | None = None, *, resampled: bool = False
    ) -> Iterator[PromptPairs]:
        """Read pairs of prompts batch by batch, as all that scores edges does.

        Args:
            data: One batch `(clean, corrupt)`, `(clean, corrupt, answers)` or `(clean, corrupt,
                answers, wrong_answers)`, or a mapping or object with these names, to which
                `attention_mask` and `corrupt_attention_mask` may be added; or an iterable of batches.
            forward: More arguments of the forward passes, or a function of a batch that returns them.
            resampled: Refuse data all of whose corrupt prompts are their clean ones.

        Raises:
            InputError: The data cannot be read; the number of the batch is named.
        """
        pairs = read_pairs(self.anatomy, data, forward, resampled=resampled)
        return map(self._runnable, pairs)

    def pair_of(
        self, clean: Any, corrupt: Any = None, forward: Mapping[str, Any] | None = None
    ) -> PromptPairs:
        """A clean prompt and a corrupt one (or batches of them) aligned for one pass.

        Raises:
            InputError: They are none that this model can run, or do not fit each other.
        """
        return self._runnable(pair_of(self.anatomy, clean, corrupt, forward))

    def _runnable(self, pairs: PromptPairs) -> PromptPairs:
        """A batch whose arguments the model's forward pass takes."""
        self._check_takes(pairs.clean_prompts)
        self._check_takes(pairs.other_prompts)
        return pairs

    def _check_takes(self, prompts: Prompts) -> None:
        takes = signature(self.wrapped_model.forward).parameters
        unknown = sorted(set(prompts.forward) - set(takes))
        if unknown and not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
            raise InputError(
                f"The forward pass of this {type(self.wrapped_model).__name__} takes no argument "
                f"{unknown[0]!r}; it takes {', '.join(takes)}. A model without attention_mask runs no "
                "padded prompts: give it prompts of one length."
            )

    def run_plain(self, prompts: Prompts, *, needs_logits: bool = True) -> PassRecord:
        """Run one batch outside every open patch and return its record."""
        self._check_takes(prompts)
        more = prompts.forward
        if not needs_logits:
            more = {**self.anatomy.without_logits, **more}
        check_alone(self.wrapped_model, self)
        self.renew()
        session = Session(self.wrapped_model, self.anatomy)
        run = partial(session.during, lambda: self.wrapped_model(prompts.tokens, **more))
        with torch.no_grad(), same_every_time(self.wrapped_model):
            unpatched(self.wrapped_model, run)
        if session.record is None:
            raise InputError(NOT_TO_THE_END)
        warn_of_gap(self.graph, session.record)
        return session.record

    def record_of(self, record: PassRecord) -> R:
        """A pass's record, handed out."""
        current = self.outputs_of(record)
        return self.records(
            graph=self.graph,
            current=current,
            plans=tuple(_fitted(plan, record.outputs) for plan in record.plans),
            tokens=record.tokens,
            real=_real(record),
            recorded_logits=record.logits,
            logits_version=record.logits_version,
            reads=tuple(record.reads),
            biases=tuple(record.biases),
            to_strings=self.anatomy.to_strings,
            unembed=self.anatomy.unembed,
            head_tensors=record.heads,
            about=About.of(self.wrapped_model, self.cfg),
        )


class _Recorded(Generic[R]):
    """The record of a pass that ran to its end, and its trace once somebody asks for it."""

    def __init__(self, record: PassRecord) -> None:
        self.taken = record
        self._trace: R | None = None

    def trace_of(self, model: Engine[R]) -> R:
        """The trace, made by the model that ran."""
        if self._trace is None:
            warn_of_gap(model.graph, self.taken)
            return self.keep(model.record_of(self.taken))
        return self._trace

    def keep(self, trace: R) -> R:
        """Keep this trace of it instead, which says more."""
        self._trace = trace
        return trace


class Patching(AbstractContextManager[E]):
    """A patch that is applied while its `with` block runs. Made by `Engine.patch`.

    `recorded` holds the last pass that ran to its end in it, if any.
    """

    def __init__(self, model: E, plan: Plan) -> None:
        self._model = model
        self._plan: Plan | None = plan
        self.recorded: list[_Recorded] = []

    def __enter__(self) -> E:
        plan, self._plan = self._plan, None
        if plan is None:
            raise InputError(
                "This patch has been used; each `with` needs one of its own: call model.patch(...) "
                "again."
            )
        model = self._model
        check_alone(model.wrapped_model, model)
        model.renew()
        keep = partial(_keep, model, self.recorded)
        self._open = OpenPatch(model.wrapped_model, model.anatomy, plan, model, keep)
        # An interrupt may come before the first line of `__exit__`: then nobody holds us any more.
        self._abandoned = finalize(self, self._open.leave)
        try:
            self._open.enter()
            return model
        except BaseException:
            self._close()
            raise

    def __exit__(self, *_error: object) -> None:
        try:
            self._close()
        except BaseException:
            self._close()  # an interrupt may have come before it or in it
            raise

    def _close(self) -> None:
        self._open.leave()
        self._abandoned.detach()


def _keep(model: Engine, recorded: list[_Recorded], record: PassRecord) -> None:
    """Take the record of a pass that has just ended; a trace is made when one is asked for."""
    recorded[:] = [_Recorded(record)]
    model._last = recorded[0]


def _real(record: PassRecord) -> Bool[Tensor, "batch seq"] | None:
    """Which positions of a pass hold tokens of the prompt, by the mask that the model was given; None
    for all, and where a mask says something else."""
    if record.attention_mask is None:
        return None
    try:
        return read_mask(record.attention_mask, record.outputs[0].code)
    except InputError:
        return None


def _fitted(plan: Plan, outputs: Sequence[SiteOutput]) -> Plan:
    """A plan for the record of a pass: what is patched has its shape, and is what the pass has where
    there is padding."""
    batch, seq = outputs[0].code.shape[:2]
    patched = plan.patched and plan.patched.fitted(batch, seq).filled(outputs)
    clean = plan.clean and plan.clean.fitted(batch, seq, what="clean")
    return replace(plan, patched=patched, clean=clean)
