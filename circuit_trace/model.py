"""`wrap` a model, `patch` edges of its graph, `trace` what flowed along them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from circuit_trace import copies
from circuit_trace.anatomy import Anatomy, find_anatomy
from circuit_trace.engine import Engine
from circuit_trace.errors import (
    AnatomyError,
    CircuitTraceError,
    InputError,
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
    open_patches,
    verify,
)
from circuit_trace.plan import (
    AblationType,
    EdgesArg,
    HeadsArg,
    NodesArg,
    Plan,
    PruneScores,
    SourceOutputs,
    check_ablation,
    make_plan,
    warn_if_empty,
)
from circuit_trace.record.outcome import Patch
from circuit_trace.score.measure import Measure
from circuit_trace.trace import Trace

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


class PatchableModel(Engine[Trace]):
    """A model with its computation graph; call it like the model it wraps. Made by `wrap`.

    Attributes that it does not have itself (`tokenizer`, `to_tokens`, `to_str_tokens`,
    `generate`, `run_with_cache`, …) come from the wrapped model.
    """

    records = Trace
    seq_dim = SEQ_DIM

    def __init__(
        self,
        wrapped_model: nn.Module,
        anatomy: Anatomy,
        graph: Graph,
        slice_output: OutputSlice | None = None,
    ) -> None:
        super().__init__(wrapped_model, anatomy, graph)
        self.slice_output: OutputSlice | None = slice_output

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
    def dests(self) -> tuple[DestNode, ...]:
        """What reads the residual stream, in order."""
        return self.graph.dests

    @property
    def edges(self) -> Edges:
        """Every edge, lazily: positions first, then destinations, then sources."""
        return self.graph.edges

    @property
    def out_slice(self) -> tuple[Any, ...]:
        """The index of the logits that a task looks at, `model(tokens)[model.out_slice]`."""
        return _SLICES[self.slice_output]

    def edge(self, name: EdgeSpec, seq_idx: int | None = None) -> Edge:
        """Look an edge up by its name, such as `A5.2->A7.1.Q`, or by `(seq_idx, name)`.

        Raises:
            EdgeError: The graph has no such edge; the message gives the nearest names.
        """
        return self.graph.edge(name, seq_idx)

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
                patched = self.patched_for(pairs, ablation, is_asked=names_edges)
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
                plain = self.run_plain(prompts, needs_logits=measure is not None)
            logits: dict[str, Tensor | None] = {}
            if measure is not None and patched is not None:
                logits["corrupt"] = (
                    self.run_plain(other).logits
                    if other is not None and ablation is AblationType.RESAMPLE
                    else self.run_patched(_everything(plan), prompts).trace_of(self).logits
                )
            for name in plans if complement else ():
                if name != patch:
                    logits[name] = self.run_patched(plans[name], prompts).trace_of(self).logits
            known = self.outputs_of(plain) if plain is not None and clean else None
            recorded = self.run_patched(replace(plans[patch], clean=known), prompts)
        trace = recorded.trace_of(self)
        if measure is not None:
            logits["clean"] = trace.logits if plain is None else plain.logits
            if trace.is_patched:
                logits[patch] = trace.logits
            outcome = measure.outcome(logits, patch if trace.is_patched else None)
            trace = replace(trace, outcome=outcome)
        return recorded.keep(trace)

    def __repr__(self) -> str:
        positions = "" if self.seq_len is None else f" at {self.seq_len} positions"
        return (
            f"<PatchableModel: {type(self.wrapped_model).__name__}, {len(self.srcs)} sources, "
            f"{len(self.dests)} destinations, {self.n_edges:,} edges{positions}>"
        )


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
