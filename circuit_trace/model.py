"""`wrap` a model, `patch` edges of its graph, `trace` what flowed along them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, Literal, get_args
from weakref import finalize

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuit_trace import copies
from circuit_trace.anatomy import Anatomy, Places, find_anatomy
from circuit_trace.errors import (
    AnatomyError,
    CircuitTraceError,
    DataWarning,
    InputError,
    NoTraceError,
)
from circuit_trace.graph import (
    DestNode,
    Edge,
    Edges,
    EdgeSpec,
    Graph,
    SrcNode,
    whole_number,
)
from circuit_trace.hooks import (
    OpenPatch,
    PassRecord,
    Session,
    check_alone,
    open_patches,
    same_every_time,
    unpatched,
    verify,
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
    warn_if_empty,
)
from circuit_trace.score.measure import Measure
from circuit_trace.trace import About, Trace
from circuit_trace.trace.outcome import Patch

OutputSlice = Literal["last_seq", "not_first_seq"]
"""Which positions of the logits a task looks at."""

SEQ_DIM = 1
"""Activations are `[batch, seq, d_model]`."""

NOT_TO_THE_END = "The pass did not reach the end of the residual stream; nothing to record."

_SLICES: dict[str | None, tuple[Any, ...]] = {
    None: (slice(None),),
    "last_seq": (slice(None), -1),
    "not_first_seq": (slice(None), slice(1, None)),
}


def wrap(
    hooked: nn.Module,
    *,
    separate_qkv: bool = True,
    seq_len: int | None = None,
    slice_output: OutputSlice | None = None,
    verify: bool = True,
    anatomy: Anatomy | None = None,
) -> PatchableModel:
    """Make a model's computation graph patchable and traceable, without changing the model.

    >>> import circuit_trace as ct
    >>> model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    >>> model.n_edges, model.edges[0].name
    (1650, 'Resid Start->A0.0.Q')

    Args:
        hooked: A TransformerLens HookedTransformer or TransformerBridge, or any module with an
            anatomy (see `circuit_trace.anatomy`).
        separate_qkv: Tell a head's query, key and value inputs apart (`A7.1.Q`), or not (`A7.1`).
        seq_len: Tell this many token positions apart; None patches all positions at once.
        slice_output: The part of the logits that `out_slice` selects: None for all of them,
            "last_seq" for the last position, "not_first_seq" for all but the first.
        verify: Run one tiny forward pass and check that the anatomy reproduces its tensors; later
            passes are then checked at one position each, since the model may have been changed.
        anatomy: The model's anatomy, where no installed package registers one.

    Raises:
        AnatomyError: No anatomy fits the model, or the one that does fails the check.
        InputError: An option is out of range.
    """
    if isinstance(hooked, PatchableModel):
        raise AnatomyError(
            "This model is wrapped already; wrap its .wrapped_model to wrap it anew."
        )
    if not isinstance(hooked, nn.Module):
        raise AnatomyError(
            f"Expected a model (a torch.nn.Module such as a HookedTransformer), got "
            f"{type(hooked).__name__}."
        )
    if type(hooked).__name__ == "OptimizedModule":
        raise AnatomyError(
            "This is what torch.compile(model) returns. Wrap the model itself, "
            "ct.wrap(compiled._orig_mod): while a patch is open both of them run patched, not compiled."
        )
    if open_patches(hooked):
        raise InputError(
            "A patch is open on this model, so it cannot be wrapped now. Close the patch first."
        )
    if anatomy is not None and not isinstance(anatomy, Anatomy):
        raise AnatomyError(f"anatomy must be a circuit_trace.Anatomy; got {anatomy!r}.")
    if seq_len is not None:
        n_tokens = whole_number(seq_len)
        if n_tokens is None or n_tokens < 1:
            raise InputError(
                f"seq_len must be a whole number of tokens, 1 or more, or None; got {seq_len!r}."
            )
        seq_len = n_tokens
    if slice_output not in (None, "last_seq", "not_first_seq"):
        raise InputError(
            f"slice_output must be None, 'last_seq' or 'not_first_seq'; got {slice_output!r}."
        )
    fitting = _fitting_anatomy(hooked, anatomy, separate_qkv, check=verify)
    wrapped = PatchableModel(hooked, fitting, fitting.graph(seq_len), slice_output)
    if anatomy is None:
        wrapped._anatomy_of = partial(find_anatomy, separate_qkv=separate_qkv)
    return wrapped


def _fitting_anatomy(
    hooked: nn.Module, anatomy: Anatomy | None, separate_qkv: bool, *, check: bool
) -> Anatomy:
    """The anatomy that was given or is found, checked on the model.

    Raises:
        AnatomyError: There is none, or it does not fit, or the model itself fails.
    """
    try:
        if anatomy is None:
            anatomy = find_anatomy(hooked, separate_qkv=separate_qkv)
        return _verified(hooked, anatomy) if check else anatomy
    except Exception as error:  # somebody else's model runs here, and may raise anything
        caveats = () if anatomy is None else anatomy.caveats
        raise AnatomyError(" ".join((_why_not(hooked, anatomy, error), *caveats))) from error


def _why_not(hooked: nn.Module, anatomy: Anatomy | None, error: Exception) -> str:
    if isinstance(error, AnatomyError):
        return str(error)
    said = str(error).strip()
    if not isinstance(error, CircuitTraceError):
        step = "looking for its anatomy"
        if anatomy is not None:
            on = "" if anatomy.tokens is None else ", on example tokens,"
            step = f"the pass that checks its anatomy{on}"
        first = said.partition("\n")[0].rstrip(".")
        said = f"{step} failed with {type(error).__name__}: {first}."
    return f"This {type(hooked).__name__} cannot be traced: {said}"


def _verified(model: nn.Module, anatomy: Anatomy) -> Anatomy:
    verify(model, replace(anatomy, verified=False))
    return replace(anatomy, verified=True)


class PatchableModel:
    """A model with its computation graph; call it like the model it wraps. Made by `wrap`.

    Attributes that it does not have itself (`tokenizer`, `to_tokens`, `to_str_tokens`,
    `generate`, `run_with_cache`, …) come from the wrapped model.
    """

    seq_dim = SEQ_DIM

    def __init__(
        self,
        wrapped_model: nn.Module,
        anatomy: Anatomy,
        graph: Graph,
        slice_output: OutputSlice | None = None,
    ) -> None:
        self.wrapped_model = wrapped_model
        self.anatomy = anatomy
        self.graph = graph
        self.slice_output: OutputSlice | None = slice_output
        self._last: _Recorded | None = None
        self._anatomy_of: Callable[[nn.Module], Anatomy] | None = None
        self._places = Places.of(wrapped_model, anatomy)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped model; inside `patch` the pass is patched and recorded."""
        return self.wrapped_model(*args, **kwargs)

    def __copy__(self) -> PatchableModel:
        """Another wrapper of the same model."""
        return copies.of(self, self.wrapped_model, self.anatomy)

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchableModel:
        """A wrapper of a copy of the model; open patches and the last trace are not copied."""
        copies.check(self)
        return copies.of(self, deepcopy(self.wrapped_model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model, and how it was wrapped; the last trace is not kept."""
        return copies.pickled(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "wrapped_model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.wrapped_model, name)

    @property
    def nodes(self) -> tuple[SrcNode | DestNode, ...]:
        """Every source, then every destination."""
        return self.graph.nodes

    @property
    def srcs(self) -> tuple[SrcNode, ...]:
        """What writes to the residual stream, in order."""
        return self.graph.srcs

    @property
    def dests(self) -> tuple[DestNode, ...]:
        """What reads the residual stream, in order."""
        return self.graph.dests

    @property
    def edges(self) -> Edges:
        """Every edge, lazily: positions first, then destinations, then sources."""
        return self.graph.edges

    @property
    def n_edges(self) -> int:
        """How many edges there are, each position counted where positions are told apart."""
        return self.graph.n_edges

    @property
    def seq_len(self) -> int | None:
        """How many positions are told apart; None where they are not."""
        return self.graph.seq_len

    @property
    def out_slice(self) -> tuple[Any, ...]:
        """The index of the logits that a task looks at, `model(tokens)[model.out_slice]`."""
        return _SLICES[self.slice_output]

    @property
    def cfg(self) -> Any:
        """The wrapped model's configuration."""
        return self.anatomy.cfg

    @property
    def has_open_patch(self) -> bool:
        """Whether this wrapper of the model or another one has a patch open in this thread."""
        return bool(open_patches(self.wrapped_model))

    def edge(self, name: EdgeSpec, seq_idx: int | None = None) -> Edge:
        """Look an edge up by its name, such as `A5.2->A7.1.Q`, or by `(seq_idx, name)`.

        Raises:
            EdgeError: The graph has no such edge; the message gives the nearest names.
        """
        return self.graph.edge(name, seq_idx)

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
        return self._record(prompts, needs_logits=False).outputs

    def patch(
        self,
        patched: SourceOutputs | None = None,
        edges: EdgesArg | None = None,
        masks: PruneScores | None = None,
        *,
        nodes: NodesArg | None = None,
        heads: HeadsArg | None = None,
        clean: SourceOutputs | None = None,
    ) -> Patching:
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

    def _renew(self) -> None:
        """See the model as it now is, before it runs: its modules may have been replaced."""
        if self._places.hold(self.wrapped_model, self.anatomy):
            return
        if open_patches(self.wrapped_model):
            raise InputError(f"{CHANGED}, while a patch is open. Close the patch first.")
        self.anatomy = remade(self.wrapped_model, self.anatomy, self._anatomy_of)
        self._places = Places.of(self.wrapped_model, self.anatomy)

    def trace(
        self,
        tokens: Any,
        *,
        corrupt: Any = None,
        edges: EdgesArg | None = None,
        masks: PruneScores | None = None,
        patched: SourceOutputs | None = None,
        ablation: AblationType = AblationType.RESAMPLE,
        nodes: NodesArg | None = None,
        heads: HeadsArg | None = None,
        forward: Mapping[str, Any] | None = None,
        clean: bool = True,
        answers: Any = None,
        metric: Any = None,
        patch: Patch = "circuit",
        complement: bool = False,
    ) -> Trace:
        """Run one patched forward pass without gradients and return its record.

        With neither `edges` nor `masks` nothing is patched: the pass is only recorded, together
        with what `corrupt` would have patched in where it is given. Where something is, a plain pass
        of the same prompt goes before it: what an edge is compared with is what it carries unpatched.
        A warning says so where the edges asked for come to none.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
        >>> trace.table()[["edge", "mask"]].values.tolist()
        [['A1.0->Resid End', 1.0]]
        >>> edges = ["A1.0->Resid End", "MLP 0->A1.0.Q"]
        >>> told = model.trace(
        ...     CLEAN, corrupt=CORRUPT, edges=edges, answers=("Mary", "John"), complement=True
        ... )
        >>> print(round(told.outcome.explained, 2), round(told.outcome.faithfulness, 2))
        0.35 0.0

        Args:
            tokens: The prompt to run: tokens `[batch, seq]`, a string or a list of strings. Texts of
                unequal length are padded at the left and masked, so that clean and corrupt prompts
                are aligned from the end; nothing is patched where either has padding.
            corrupt: The prompt to patch in, of the same shape; ablations that need none may go
                without.
            edges: As in `patch`.
            masks: As in `patch`.
            patched: What to patch in, instead of `corrupt`.
            ablation: What becomes of the corrupt prompt's outputs. The means over a dataset take
                `tokens` as the clean and `corrupt` as the corrupt prompts.
            nodes: As in `patch`.
            heads: As in `patch`.
            forward: More arguments of both passes, such as `{"attention_mask": mask}` for tokens
                that are padded alike, on either side.
            clean: Record what the sources write unpatched too, by a plain pass; False saves it.
            answers: What should follow and what should not, `(" Mary", " John")`, each a token's text
                or id or a list of these: `trace.outcome` then holds the difference of their logits in
                this pass, in the clean one, and with every edge patched.
            metric: Another metric, or one that needs no answers, as in `score_edges`.
            patch: "circuit" patches the edges asked for; "complement" keeps these and patches all
                others.
            complement: With `answers` or `metric`, measure the other of the two as well, by one more
                pass: the evidence for a circuit is what the metric does with all else patched.

        Raises:
            EdgeError, MaskError, InputError: What is asked for does not fit the model.
        """
        if patched is not None and corrupt is not None:
            raise InputError(
                "Give either corrupt= or patched=, not both: each says what is patched in."
            )
        check_ablation(ablation)
        names_edges = not (edges is None and masks is None and nodes is None)
        _check_patch(patch, complement, names_edges, answers is not None or metric is not None)
        pairs = self.pair_of(tokens, corrupt, forward)
        prompts, other = pairs.clean_prompts, pairs.corrupt_prompts
        with torch.no_grad():
            if patched is None:
                patched = self._patched_for(pairs, ablation, is_asked=names_edges)
            elif isinstance(patched, SourceOutputs):
                patched = patched.within(pairs.attention_mask)
            plan = make_plan(self.graph, patched, edges, masks, nodes, heads)
            warn_if_empty(plan)
            measure = Measure.read(self.anatomy, pairs, answers, metric)
            plans = {"circuit": plan}
            if patch == "complement" or complement:
                plans["complement"] = plan.complement()
            plain = None
            if plans[patch].masks and (clean or measure is not None):
                plain = self._record(prompts, needs_logits=measure is not None)
            logits: dict[str, Tensor | None] = {}
            if measure is not None and patched is not None:
                logits["corrupt"] = (
                    self._record(other).logits
                    if other is not None and ablation is AblationType.RESAMPLE
                    else self._run(_everything(plan), prompts).trace_of(self).logits
                )
            for name in plans if complement else ():
                if name != patch:
                    logits[name] = self._run(plans[name], prompts).trace_of(self).logits
            known = self._outputs_of(plain) if plain is not None and clean else None
            recorded = self._run(replace(plans[patch], clean=known), prompts)
        trace = recorded.trace_of(self)
        if measure is not None:
            logits["clean"] = trace.logits if plain is None else plain.logits
            if trace.is_patched:
                logits[patch] = trace.logits
            outcome = measure.outcome(logits, patch if trace.is_patched else None)
            trace = replace(trace, outcome=outcome)
        return recorded.keep(trace)

    def _run(self, plan: Plan, prompts: Prompts) -> _Recorded:
        """One patched pass; another thread may set `last_trace` after it."""
        patching = Patching(self, plan)
        with patching, same_every_time(self.wrapped_model):
            self.wrapped_model(prompts.tokens, **prompts.forward)
        if not patching.recorded:
            raise InputError(NOT_TO_THE_END)
        return patching.recorded[-1]

    def _outputs_of(self, record: PassRecord) -> SourceOutputs:
        batch, seq = record.outputs[0].code.shape[:2]
        return SourceOutputs(self.srcs, tuple(record.outputs), batch, seq)

    @property
    def last_trace(self) -> Trace:
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

    def _patched_for(
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

    def _record(self, prompts: Prompts, *, needs_logits: bool = True) -> PassRecord:
        """Run one batch outside every open patch and return its record."""
        self._check_takes(prompts)
        more = prompts.forward
        if not needs_logits:
            more = {**self.anatomy.without_logits, **more}
        check_alone(self.wrapped_model, self)
        self._renew()
        session = Session(self.wrapped_model, self.anatomy)
        run = partial(session.during, lambda: self.wrapped_model(prompts.tokens, **more))
        with torch.no_grad(), same_every_time(self.wrapped_model):
            unpatched(self.wrapped_model, run)
        if session.record is None:
            raise InputError(NOT_TO_THE_END)
        warn_of_gap(self.graph, session.record)
        return session.record

    def _trace_of(self, record: PassRecord) -> Trace:
        current = self._outputs_of(record)
        return Trace(
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

    def __repr__(self) -> str:
        positions = "" if self.seq_len is None else f" at {self.seq_len} positions"
        return (
            f"<PatchableModel: {type(self.wrapped_model).__name__}, {len(self.srcs)} sources, "
            f"{len(self.dests)} destinations, {self.n_edges:,} edges{positions}>"
        )


class _Recorded:
    """The record of a pass that ran to its end, and its trace once somebody asks for it."""

    def __init__(self, record: PassRecord) -> None:
        self._record = record
        self._trace: Trace | None = None

    def trace_of(self, model: PatchableModel) -> Trace:
        """The trace, made by the model that ran."""
        if self._trace is None:
            warn_of_gap(model.graph, self._record)
            self._trace = model._trace_of(self._record)
        return self._trace

    def keep(self, trace: Trace) -> Trace:
        """Keep this trace of it instead, which says more."""
        self._trace = trace
        return trace


class Patching(AbstractContextManager[PatchableModel]):
    """A patch that is applied while its `with` block runs. Made by `PatchableModel.patch`.

    `recorded` holds the last pass that ran to its end in it, if any.
    """

    def __init__(self, model: PatchableModel, plan: Plan) -> None:
        self._model = model
        self._plan: Plan | None = plan
        self.recorded: list[_Recorded] = []

    def __enter__(self) -> PatchableModel:
        plan, self._plan = self._plan, None
        if plan is None:
            raise InputError(
                "This patch has been used; each `with` needs one of its own: call model.patch(...) "
                "again."
            )
        model = self._model
        check_alone(model.wrapped_model, model)
        model._renew()
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


def _keep(model: PatchableModel, recorded: list[_Recorded], record: PassRecord) -> None:
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


def _everything(plan: Plan) -> Plan:
    """The plan that patches every edge with what this one patches in."""
    masks = {name: torch.ones_like(mask) for name, mask in plan.full_masks().items()}
    return replace(plan, masks=masks, named=(), live={}, heads=())


def _check_patch(patch: Any, complement: Any, names_edges: bool, has_metric: bool) -> None:
    if patch not in get_args(Patch):
        raise InputError(
            f"patch must be 'circuit', to patch the edges asked for, or 'complement', to keep these and "
            f"patch all others; got {patch!r}."
        )
    if (patch == "complement" or complement) and not names_edges:
        raise InputError(
            "Everything but which edges is to be patched? Give the circuit as edges=, masks= or nodes=."
        )
    if complement and not has_metric:
        raise InputError(
            "complement=True measures a metric with everything else patched: give answers= or metric= "
            "too. To trace that pass itself, use patch='complement'."
        )
