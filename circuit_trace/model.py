"""`wrap` a model, `patch` edges of its graph, `trace` what flowed along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, find_anatomy
from circuit_trace.errors import AnatomyError, CircuitTraceError, InputError, NoTraceError
from circuit_trace.graph import (
    DestNode,
    Edge,
    Edges,
    EdgeSpec,
    Graph,
    SrcNode,
    build_graph,
    whole_number,
)
from circuit_trace.hooks import PassRecord, Session, verify
from circuit_trace.plan import (
    AblationType,
    EdgesArg,
    HeadsArg,
    NodesArg,
    Plan,
    PruneScores,
    SourceOutputs,
    ablate_batch,
    make_plan,
    mean_outputs,
)
from circuit_trace.trace import About, Trace

OutputSlice = Literal["last_seq", "not_first_seq"]
"""Which positions of the logits a task looks at."""

SEQ_DIM = 1
"""Activations are `[batch, seq, d_model]`."""

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
        verify: Run one tiny forward pass and check that the anatomy reproduces its tensors.
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
    if hooked in _PATCHED_BY:
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
    wrapped = PatchableModel(hooked, fitting, build_graph(fitting, seq_len), slice_output)
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
        if check:
            verify(hooked, anatomy)
        return anatomy
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


_PATCHED_BY: WeakKeyDictionary[nn.Module, PatchableModel] = WeakKeyDictionary()
"""The wrapper that has a patch open on a model."""


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
        self._open: list[Plan] = []
        self._session: Session | None = None
        self._last_trace: Trace | None = None
        self._last_record: PassRecord | None = None
        self._anatomy_of: Callable[[nn.Module], Anatomy] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped model; inside `patch` the pass is patched and recorded."""
        return self.wrapped_model(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchableModel:
        """A wrapper of a copy of the model; open patches and the last trace are not copied."""
        if self._anatomy_of is None:
            raise AnatomyError(
                "A model wrapped with an anatomy of your own cannot be copied with it: copy "
                ".wrapped_model and wrap the copy with its own anatomy."
            )
        model = deepcopy(self.wrapped_model, memo)
        twin = PatchableModel(model, self._anatomy_of(model), self.graph, self.slice_output)
        twin._anatomy_of = self._anatomy_of
        return twin

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
        """Whether this wrapper of the model or another one has a patch open."""
        return self.wrapped_model in _PATCHED_BY

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
        forward: Mapping[str, Any] | None = None,
    ) -> SourceOutputs:
        """Run a prompt, a batch or a dataset and keep what is to be patched in for each source.

        >>> import circuit_trace as ct
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> model.source_outputs("When Mary and John went", ct.AblationType.ZERO)["MLP 0"].sum()
        tensor(0.)

        Args:
            data: Tokens `[batch, seq]`, a string or a list of strings. For the three means over a
                dataset, any iterable of such batches, or of pairs `(clean, corrupt)` of them, given
                as tuples, as mappings or as objects with those two names.
            ablation: What becomes of the outputs; see `AblationType`.
            forward: More arguments of the forward pass, such as `{"attention_mask": mask}` for
                padded prompts; in passes over a dataset it would be the same for all batches.

        Raises:
            InputError: Data of the wrong kind, empty, or batches of unequal length.
        """
        _check_ablation(ablation)
        if ablation.mean_over_dataset:
            sites, seq = mean_outputs(
                lambda batch: self._record(batch, forward, needs_logits=False).outputs,
                data,
                ablation,
            )
            return SourceOutputs(self.srcs, sites, 1, seq, ablation)
        record = self._record(data, forward, needs_logits=False)
        batch, seq = record.outputs[0].code.shape[:2]
        sites = tuple(
            replace(site, code=ablate_batch(site.code, ablation)) for site in record.outputs
        )
        return SourceOutputs(self.srcs, sites, batch, seq, ablation)

    def patch(
        self,
        patched: SourceOutputs | None = None,
        edges: EdgesArg | None = None,
        masks: PruneScores | None = None,
        *,
        nodes: NodesArg | None = None,
        heads: HeadsArg | None = None,
    ) -> Patching:
        """Patch edges in every forward pass of the model while the context is open, and record it.

        The hooks are the only thing that touches the model, and they go when the context closes,
        however it closes. Inside another `patch` of the same wrapper the edges add up; for an edge
        of both the inner one counts.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> with model.patch(model.source_outputs(CORRUPT), edges={"A1.0->Resid End": 0.5}):
        ...     logits = model(CLEAN)
        >>> model.last_trace
        <Trace: batch 1, seq 15, 11 sources, 1 edges patched>

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

        Raises:
            EdgeError, MaskError, InputError: What is asked for does not fit the model.
        """
        return Patching(self, make_plan(self.graph, patched, edges, masks, nodes, heads))

    def _enter(self, plan: Plan) -> None:
        self._check_alone()
        self._open.append(plan)
        _PATCHED_BY[self.wrapped_model] = self
        try:
            self._attach()
        except BaseException:
            self._leave(plan)
            raise

    def _leave(self, plan: Plan) -> None:
        # By identity: contexts of different threads or an ExitStack may close in any order.
        self._open = [one for one in self._open if one is not plan]
        if not self._open:
            _PATCHED_BY.pop(self.wrapped_model, None)
        self._attach()

    def _attach(self) -> None:
        """Put on the hooks of all open contexts together; for an edge of two the inner counts."""
        if self._session is not None:
            self._session.detach()
            self._session = None
        plans: list[Plan] = []
        for plan in self._open:
            plans = [*(one.without(plan) for one in plans), plan]
        if plans:
            session = Session(
                self.wrapped_model, self.anatomy, tuple(plans), on_record=self._recorded
            )
            session.attach()
            self._session = session

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
    ) -> Trace:
        """Run one patched forward pass without gradients and return its record.

        With neither `edges` nor `masks` nothing is patched: the pass is only recorded, together
        with what `corrupt` would have patched in where it is given.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
        >>> trace.table()[["edge", "mask"]].values.tolist()
        [['A1.0->Resid End', 1.0]]

        Args:
            tokens: The prompt to run: tokens `[batch, seq]`, a string or a list of strings.
            corrupt: The prompt to patch in, of the same shape; ablations that need none may go
                without.
            edges: As in `patch`.
            masks: As in `patch`.
            patched: What to patch in, instead of `corrupt`.
            ablation: What becomes of the corrupt prompt's outputs. The means over a dataset take
                `tokens` as the clean and `corrupt` as the corrupt prompts.
            nodes: As in `patch`.
            heads: As in `patch`.
            forward: More arguments of both passes, such as `{"attention_mask": mask}` for prompts
                that are padded alike.

        Raises:
            EdgeError, MaskError, InputError: What is asked for does not fit the model.
        """
        if patched is not None and corrupt is not None:
            raise InputError(
                "Give either corrupt= or patched=, not both: each says what is patched in."
            )
        _check_ablation(ablation)
        more = _checked_forward(forward)
        clean = self.tokens_of(tokens)
        with torch.no_grad():
            if patched is None:
                patched = self._patched_for(clean, corrupt, ablation, edges, masks, nodes, more)
            with self.patch(patched, edges=edges, masks=masks, nodes=nodes, heads=heads):
                self.wrapped_model(clean, **more)
        return self.last_trace

    @property
    def last_trace(self) -> Trace:
        """The record of the last pass that ran to its end inside `patch` or `trace`.

        Raises:
            NoTraceError: There is none yet.
        """
        if self._last_record is None:
            raise NoTraceError(
                "No pass has been recorded yet. Call model.trace(tokens, corrupt=..., edges=[...]), "
                "or run the model inside `with model.patch(...)`."
            )
        if self._last_trace is None:
            self._last_trace = self._trace_of(self._last_record)
        return self._last_trace

    def _patched_for(
        self,
        clean: Any,
        corrupt: Any,
        ablation: AblationType,
        edges: Any,
        masks: Any,
        nodes: Any,
        forward: Mapping[str, Any],
    ) -> SourceOutputs | None:
        if corrupt is not None:
            corrupt = self.tokens_of(corrupt)
            _check_same_shape(clean, corrupt)
        nothing_asked = edges is None and masks is None and nodes is None and corrupt is None
        needs_corrupt = ablation is AblationType.RESAMPLE or ablation.corrupt_dataset
        if nothing_asked or (needs_corrupt and corrupt is None):
            return None  # make_plan says what is missing, if anything is
        if ablation.mean_over_dataset:
            pairs = [(clean, clean if corrupt is None else corrupt)]
            return self.source_outputs(pairs, ablation, forward=forward)
        return self.source_outputs(clean if corrupt is None else corrupt, ablation, forward=forward)

    def tokens_of(self, tokens: Any) -> Any:
        """Token ids `[batch, seq]` of a prompt or more: a string, a list of strings, or ids, checked.

        Raises:
            InputError: They are none that this model can run.
        """
        is_text = isinstance(tokens, str) or (
            isinstance(tokens, list | tuple)
            and len(tokens) > 0
            and all(isinstance(one, str) for one in tokens)
        )
        if is_text:
            if self.anatomy.to_tokens is None:
                raise InputError(
                    "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
                )
            if isinstance(tokens, str):
                return self.anatomy.to_tokens(tokens)
            rows = [self.anatomy.to_tokens(text) for text in tokens]
            _check_equal_lengths([row.shape[1] for row in rows])
            return torch.cat(rows)
        if isinstance(tokens, Tensor):
            return self._checked(tokens)
        raise InputError(
            f"Expected token ids as a tensor [batch, seq], a string or a list of strings; got "
            f"{type(tokens).__name__}."
        )

    def _checked(self, tokens: Tensor) -> Tensor:
        """Token ids that this model can run; the input of a model without tokens as it is."""
        if tokens.numel() == 0:
            raise InputError(
                f"There is nothing to run: the tokens have the shape {tuple(tokens.shape)}."
            )
        if self.anatomy.tokens is None:
            return tokens
        if tokens.dtype not in (torch.int32, torch.int64) or tokens.ndim not in (1, 2):
            raise InputError(
                f"Expected token ids as whole numbers (int64) [batch, seq]; got {tokens.dtype} of "
                f"the shape {tuple(tokens.shape)}."
            )
        tokens = tokens if tokens.ndim == 2 else tokens[None]
        d_vocab = getattr(self.cfg, "d_vocab", None) or float("inf")
        n_ctx = getattr(self.cfg, "n_ctx", None) or float("inf")
        low, high = (int(end) for end in torch.aminmax(tokens))
        if low < 0 or high >= d_vocab:
            raise InputError(
                f"The token ids run from {low} to {high}; this model knows 0 to {d_vocab - 1}."
            )
        if tokens.shape[1] > n_ctx:
            raise InputError(
                f"The prompt has {tokens.shape[1]} tokens; this model's context is {n_ctx}."
            )
        return tokens

    def _record(
        self, data: Any, forward: Mapping[str, Any] | None = None, *, needs_logits: bool = True
    ) -> PassRecord:
        """Run one batch outside every open patch and return its record."""
        batch, more = self.tokens_of(data), _checked_forward(forward)
        if not needs_logits:
            more = {**self.anatomy.without_logits, **more}
        self._check_alone()
        session = Session(self.wrapped_model, self.anatomy, reads=False)
        if self._session is not None:
            self._session.detach()
        try:
            session.attach()
            with torch.no_grad():
                self.wrapped_model(batch, **more)
        finally:
            session.detach()
            if self._session is not None:
                self._session.attach()
        if session.record is None:
            raise InputError(
                "The pass did not reach the end of the residual stream; nothing to record."
            )
        return session.record

    def _recorded(self, record: PassRecord) -> None:
        """Take the record of a pass that has just ended; a trace is made when one is asked for."""
        self._last_record, self._last_trace = record, None

    def _trace_of(self, record: PassRecord) -> Trace:
        batch, seq = record.outputs[0].code.shape[:2]
        return Trace(
            graph=self.graph,
            current=SourceOutputs(self.srcs, tuple(record.outputs), batch, seq),
            plans=tuple(_fitted(plan, batch, seq) for plan in record.plans),
            tokens=record.tokens,
            recorded_logits=record.logits,
            logits_version=record.logits_version,
            reads=tuple(record.reads),
            biases=tuple(record.biases),
            to_strings=self.anatomy.to_strings,
            unembed=self.anatomy.unembed,
            head_tensors=record.heads,
            about=About.of(self.wrapped_model, self.cfg),
        )

    def _check_alone(self) -> None:
        """Two wrappers' patches of one destination cannot both be exact: refuse the second."""
        other = _PATCHED_BY.get(self.wrapped_model)
        if other is not None and other is not self:
            raise InputError(
                "Another wrapper of this model has a patch open. Close it first, or open both "
                "patches on the same wrapper: contexts of one wrapper add up."
            )

    def __repr__(self) -> str:
        positions = "" if self.seq_len is None else f" at {self.seq_len} positions"
        return (
            f"<PatchableModel: {type(self.wrapped_model).__name__}, {len(self.srcs)} sources, "
            f"{len(self.dests)} destinations, {self.n_edges:,} edges{positions}>"
        )


class Patching(AbstractContextManager[PatchableModel]):
    """A patch that is applied while its `with` block runs. Made by `PatchableModel.patch`."""

    def __init__(self, model: PatchableModel, plan: Plan) -> None:
        self._model = model
        self._plan: Plan | None = plan

    def __enter__(self) -> PatchableModel:
        if self._plan is None:
            raise InputError(
                "This patch has been used; each `with` needs one of its own: call model.patch(...) "
                "again."
            )
        self._entered, self._plan = self._plan, None
        self._model._enter(self._entered)
        return self._model

    def __exit__(self, *_error: object) -> None:
        self._model._leave(self._entered)


def _fitted(plan: Plan, batch: int, seq: int) -> Plan:
    return replace(plan, patched=plan.patched.fitted(batch, seq)) if plan.patched else plan


def _checked_forward(forward: Any) -> Mapping[str, Any]:
    if forward is None:
        return {}
    if not isinstance(forward, Mapping) or not all(isinstance(name, str) for name in forward):
        raise InputError(
            "forward must map names of the model's forward arguments to values, such as "
            f'{{"attention_mask": mask}}; got {forward!r}.'
        )
    return forward


def _check_ablation(ablation: object) -> None:
    if not isinstance(ablation, AblationType):
        raise InputError(
            f"ablation must be an AblationType ({', '.join(a.name for a in AblationType)}); "
            f"got {ablation!r}."
        )


def _check_equal_lengths(lengths: list[int]) -> None:
    if len(set(lengths)) > 1:
        raise InputError(
            f"The prompts of a batch must have the same number of tokens, got {lengths}: padding "
            "would be patched like text. Run prompts of one length at a time, or tokenize and pad "
            'them yourself and say where: forward={"attention_mask": mask}, in source_outputs too.'
        )


def _check_same_shape(clean: Any, corrupt: Any) -> None:
    if clean.shape[:2] != corrupt.shape[:2]:
        raise InputError(
            f"Clean and corrupt prompts must have the same number of prompts and of tokens, got "
            f"{tuple(clean.shape[:2])} and {tuple(corrupt.shape[:2])} ([batch, seq])."
        )
