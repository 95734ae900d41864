"""The record of one pass: what every source wrote, what was patched in, what was received."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuit_trace.anatomy import HeadTensor, Unembed
from circuit_trace.errors import CircuitTraceError, InputError
from circuit_trace.graph import DestNode, Edge, Edges, EdgeSpec, Graph
from circuit_trace.hooks import Read
from circuit_trace.plan import EdgesArg, Plan, PruneScores, SourceOutputs, select
from circuit_trace.trace.about import About
from circuit_trace.trace.diff import TraceDiff
from circuit_trace.trace.heads import HeadRecord, head_record
from circuit_trace.trace.inputs import input_of
from circuit_trace.trace.lens import SavedLenses
from circuit_trace.trace.numbers import BatchIdx
from circuit_trace.trace.outcome import Outcome
from circuit_trace.trace.reconstruct import reconstruction_error
from circuit_trace.trace.table import edge_table, top_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.table import Table

    from circuit_trace.visualize.explorer import Explorer


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """What flowed along every edge in one forward pass; it stays when the pass is over.

    `plans` are the patches of the contexts that were open, the innermost last; `reads` and
    `biases` are what `reconstruction_error` compares; `head_tensors` is what `head` shows. `about`
    says of which model it is, `real` which positions are no padding (None: all), and `outcome` how a
    metric came out, where `trace` was asked for one.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> flow = trace.edge("A1.0->Resid End")
    >>> flow.mask, tuple(flow.received.shape), bool((flow.received == flow.patched).all())
    (1.0, (1, 15, 64), True)
    """

    graph: Graph
    current: SourceOutputs
    plans: tuple[Plan, ...] = ()
    tokens: Tensor | None = None
    recorded_logits: Tensor | None = None
    logits_version: int | None = None
    reads: tuple[Read, ...] = ()
    biases: tuple[Tensor | None, ...] = ()
    to_strings: Callable[[Tensor], list[str]] | None = field(default=None)
    unembed: Unembed | SavedLenses | None = None
    head_tensors: Mapping[str, Mapping[HeadTensor, Tensor]] = field(default_factory=dict)
    about: About = field(default_factory=About)
    real: Bool[Tensor, "batch seq"] | None = None
    outcome: Outcome | None = None

    @property
    def batch(self) -> int:
        """How many prompts ran."""
        return self.current.batch

    @property
    def seq(self) -> int:
        """How many token positions ran."""
        return self.current.seq

    @property
    def logits(self) -> Tensor | None:
        """The pass's logits `[batch, seq, d_vocab]`, None where it stopped before them.

        They are the tensor that the model returned, not a copy of it.

        Raises:
            InputError: That tensor was changed in place after the pass.
        """
        logits = self.recorded_logits
        if logits is None or self.logits_version is None:
            return logits
        if logits._version != self.logits_version:
            raise InputError(
                "The logits that this pass returned were changed in place afterwards, and the "
                "trace shares their memory. Change a copy instead: logits.clone()."
            )
        return logits

    @property
    def patched(self) -> SourceOutputs | None:
        """What was patched in (by the innermost context), None where nothing was."""
        return next((plan.patched for plan in reversed(self.plans) if plan.patched), None)

    @property
    def is_patched(self) -> bool:
        """Whether any edge has a mask other than 0."""
        return any(bool(mask.any()) for plan in self.plans for mask in plan.masks.values())

    @property
    def clean(self) -> SourceOutputs | None:
        """What the sources write where nothing is patched: `trace` records it, `patch` is given it;
        None where neither was done. In a pass that patches nothing it is what is current."""
        if not self.is_patched:
            return self.current
        return next((plan.clean for plan in reversed(self.plans) if plan.clean), None)

    @property
    def real_positions(self) -> Bool[Tensor, "batch seq"]:
        """Which positions are no padding."""
        if self.real is None:
            return torch.ones(self.batch, self.seq, dtype=torch.bool)
        return self.real.cpu()

    @cached_property
    def masks(self) -> PruneScores:
        """The mask of every edge, 0 where it carried the current output, in `PruneScores` form."""
        total = Plan(self.graph, {}).full_masks()
        for plan in self.plans:
            total.update(
                {name: total[name] + mask.detach().cpu() for name, mask in plan.masks.items()}
            )
        return total

    @cached_property
    def edges(self) -> Edges:
        """The edges with a mask other than 0, and those named one by one, in the graph's order; where
        everything else was patched (`patch="complement"`), the edges that were kept."""
        numbers = {number for plan in self.plans for number in plan.edges().numbers}
        return Edges(self.graph, sorted(numbers))

    def edge(self, name: EdgeSpec, seq_idx: int | None = None) -> EdgeFlow:
        """What flowed along one edge, named as elsewhere: alone, or as `(seq_idx, name)`.

        Its tensors hold all positions, also of an edge at one of them: index `[:, seq_idx]`.

        Raises:
            EdgeError: As `Graph.edge`.
        """
        return EdgeFlow(self, self.graph.edge(name, seq_idx))

    def dest(self, name: str) -> DestFlow:
        """What a destination such as `A7.1.Q` received from each source before it, and read.

        Raises:
            EdgeError: There is no such destination.
        """
        return DestFlow(self, self.graph.dest(name))

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads whose attention was recorded, in the graph's order."""
        return tuple(src.name for src in self.graph.srcs if src.name in self.head_tensors)

    def head(self, name: str) -> HeadRecord:
        """How a head attended in this pass: its pattern, queries, keys and values.

        >>> import circuit_trace as ct
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> trace = model.trace("When Mary and John went", heads=["A1.*"])
        >>> trace.heads, tuple(trace.head("A1.2").pattern.shape)
        (('A1.0', 'A1.1', 'A1.2', 'A1.3'), (1, 6, 6))

        Raises:
            EdgeError: There is no such head.
            NoTraceError: The pass was not asked to record it.
        """
        return head_record(self.graph, self.head_tensors, name)

    def table(
        self,
        edges: EdgesArg | Edges | None = None,
        *,
        batch_idx: BatchIdx = 0,
        direction: Any = None,
        n_tokens: int = 0,
        scores: PruneScores | None = None,
        effects: PruneScores | None = None,
        by_position: bool = False,
        compare: Any = None,
        at: Any = None,
    ) -> pd.DataFrame:
        """One row per edge, and position where positions are told apart, in the graph's order.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
        >>> trace.table(n_tokens=1)[["edge", "promotes", "suppresses"]].values.tolist()
        [['A1.0->Resid End', ('John',), ('to',)]]
        >>> len(trace.table("A0.*->A1.0.*")), len(trace.table("*->*"))
        (12, 110)

        Columns: edge, src, dest; layer and head of the source, dest_layer and dest_head; seq_idx, at,
        token, mask, clean_norm (where it is known), current_norm, patched_norm, received_norm,
        delta_norm, cosine. Norms are L2 norms of the vector at position `at`, and delta_norm and
        cosine compare the two of `compare`, which also stand at the head of the columns
        (`table.columns.name`). With `batch_idx="mean"` every number is a mean over the batch.
        `table.attrs["outcome"]` says how the metric came out, where one was asked for.

        Args:
            edges: The edges to list: anything that `patch` takes, globs too ("*->*" for all). When
                omitted those that were patched or named, and all where nothing was patched.
            batch_idx: An element of the batch, or "mean".
            direction: Adds the projections of the two that are compared, such as clean_projection and
                received_projection: dot products with a vector of `d_model` numbers, or, for a pair
                of tokens, what the output adds to the first token's logit less the second's through
                the final norm of this pass and `W_U`.
            n_tokens: Adds promotes and suppresses: this many tokens whose logits the change raises
                and lowers most; none where it is exactly nothing.
            scores: Adds score, from `PruneScores` of this graph; 0 where they name none.
            effects: Adds effect, likewise.
            by_position: Give edges of all positions a row at each (for models wrapped without
                `seq_len`).
            compare: Two of clean, current, patched and received. When omitted clean and received; in
                a pass that patched nothing clean and patched, and where clean is not known current
                and patched.
            at: In a model wrapped without `seq_len`, the position that a row speaks of: a number,
                "last", or "largest", where that edge's change is largest (the first token, which may
                be an attention sink, only where nothing changes elsewhere; padding never). When
                omitted the last for projections and tokens, else the largest.

        Raises:
            EdgeError: There is no such edge.
            InputError: There is no such batch element or direction, or the model's outputs cannot
                be read as tokens.
            MaskError: The scores do not fit the graph.
        """
        chosen = self._listed if edges is None else select(self.graph, edges)
        return edge_table(
            self,
            chosen,
            batch_idx,
            direction=direction,
            n_tokens=n_tokens,
            scores=scores,
            effects=effects,
            by_position=by_position,
            compare=compare,
            at=at,
        )

    @property
    def _listed(self) -> Edges:
        """The edges that are listed unless others are asked for: where something was to be patched,
        none but those, even if it was an empty circuit."""
        is_asked = any(plan.is_asked for plan in self.plans)
        return self.edges if self.edges or is_asked else self.graph.edges

    def edges_into(self, node: str | tuple[int, str], **options: Any) -> pd.DataFrame:
        """The table of every edge into a destination ("A1.2.Q"), those that a glob matches
        ("A1.*.Q"), or all inputs of a node ("A1.2"); options as `table`.

        >>> import circuit_trace as ct
        >>> trace = ct.wrap(ct.load_model("bundled")).trace("When Mary and John")
        >>> trace.edges_into("A0.2")["edge"].tolist()
        ['Resid Start->A0.2.Q', 'Resid Start->A0.2.K', 'Resid Start->A0.2.V']

        Raises:
            EdgeError: There is no such destination.
        """
        return self.table(Edges(self.graph, self.graph.numbers_into(node)), **options)

    def edges_from(self, node: str | tuple[int, str], **options: Any) -> pd.DataFrame:
        """The table of every edge from a source ("A0.1"), or from those that a glob matches
        ("A0.*"); options as `table`.

        Raises:
            EdgeError: There is no such source.
        """
        return self.table(Edges(self.graph, self.graph.numbers_from(node)), **options)

    def top(
        self,
        n: int = 20,
        by: str = "delta_norm",
        *,
        edges: EdgesArg | Edges | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """The rows of `table` with the largest absolute values in one of its columns.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> trace = ct.wrap(ct.load_model("bundled")).trace(CLEAN, corrupt=CORRUPT)
        >>> trace.top(2, edges="*->Resid End")["src"].tolist()
        ['A1.0', 'MLP 1']

        Args:
            n: How many.
            by: A column of numbers, such as "delta_norm", "received_norm" or "score".
            edges: The edges to choose from, as in `table`.
            options: As in `table`.

        Raises:
            InputError: There is no such column, or `n` is no number of rows.
        """
        return top_rows(self.table(edges, **options), n, by)

    def diff(self, other: Trace) -> TraceDiff:
        """Compare this pass with a later one of the same model: another ablation, other edges,
        other prompts of the same shape. The difference is a table, and a view.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> plain = model.trace(CLEAN, corrupt=CORRUPT)
        >>> patched = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.0.Q"])
        >>> plain.diff(patched).top(2)["edge"].tolist()
        ['A0.1->A1.0.Q', 'A1.0->MLP 1']

        Raises:
            InputError: The passes are of different models or shapes.
        """
        return TraceDiff(self, other)

    def reconstruction_error(self) -> float:
        """How well the record adds up: the largest relative difference at any destination between
        the sum of what it received plus biases and the tensor it really read in that pass.

        Inputs are compared in a few fixed random directions, in which they were recorded
        (`circuit_trace.hooks.record`). Rounding alone gives about 1e-6 in float32.
        """
        return reconstruction_error(self)

    def draw(self, prune_scores: PruneScores | None = None, **options: Any) -> go.Figure:
        """Draw this pass with `draw_seq_graph`, which lists the options.

        The figure is returned and not displayed besides: as a cell's last line a notebook shows it.
        """
        from circuit_trace.visualize import draw_seq_graph

        return draw_seq_graph(self, prune_scores, **{"display_ipython": False, **options})

    def explore(self, **options: Any) -> Explorer:
        """Make a page to look through this pass; `circuit_trace.visualize.explore` lists the options."""
        from circuit_trace.visualize.explorer import explore

        return explore(self, **options)

    def save(
        self,
        path: str | Path,
        *,
        logits: bool = True,
        factored: bool | None = None,
        dtype: torch.dtype | None = None,
        unembed: bool = False,
    ) -> None:
        """Write this trace to a file, safetensors, that loads without the model.

        >>> import tempfile, circuit_trace as ct
        >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
        >>> path = tempfile.mkdtemp() + "/x.trace"
        >>> trace.save(path, unembed=True)
        >>> loaded = ct.Trace.load(path)
        >>> loaded.table(n_tokens=1)[["edge", "promotes", "suppresses"]].values.tolist()
        [['A1.0->Resid End', ('John',), ('to',)]]

        Args:
            path: The file; one that is there is replaced when all of the new one is written. Its
                folder is made.
            logits: Save the logits too.
            factored: Save what heads wrote as the model computes it, `d_head` wide, with `W_O`
                (True), or multiplied by `W_O`, `d_model` wide (False), which rounds as the model's
                dtype does. None takes what is smaller: few tokens are smaller without `W_O`.
            dtype: torch.float16 or torch.bfloat16 to save activations and weights in half the
                room. They load in the dtype that they had, as far as the narrow one can tell.
            unembed: Save what reads outputs as tokens too: `W_U`, the final norm of this pass and
                the vocabulary. Without it a loaded trace has no label="tokens", and no direction
                of two tokens.

        Raises:
            InputError: The model's weights or the logits were changed since the pass, a number
                overflows `dtype`, or the file cannot be written.
        """
        from circuit_trace.trace.saved import Options, save

        save(self, path, Options(logits, factored, dtype, unembed))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote; `about` says what it was taken from, and when.

        It is data alone: nothing in it is run, and neither its model nor TransformerLens is needed.

        Raises:
            FormatError: There is no such file, it is not a trace, of a later version, or damaged.
        """
        from circuit_trace.trace.saved import load

        return load(path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, or copy deeply, what `save(unembed=True)` keeps: plain data, no model. Where outputs
        cannot be read as tokens, what reads them is left out."""
        from circuit_trace.trace.saved import pickled

        return pickled(self)

    def __copy__(self) -> Trace:
        """This trace itself, which nothing changes."""
        return self

    def __rich__(self) -> Table:
        """What `rich.print` shows: a table of the edges."""
        from circuit_trace.visualize.terminal import terminal_table

        return terminal_table(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: the picture, in the way that Plotly has found to suit it."""
        try:
            picture = self.draw()._repr_mimebundle_(include, exclude)
        except CircuitTraceError:  # a record that cannot be drawn any more still has a name
            picture = {}
        return {**picture, "text/plain": repr(self)}

    def token_strings(self, batch_idx: int = 0) -> list[str] | None:
        """The traced prompt's tokens as text, None where the model has no tokenizer."""
        if self.to_strings is None or self.tokens is None or self.tokens.ndim != 2:
            return None
        return self.to_strings(self.tokens[batch_idx])

    def check_batch_idx(self, batch_idx: Any) -> None:
        """Raise InputError where the traced batch has no such element."""
        if isinstance(batch_idx, str) and batch_idx == "mean":
            return
        is_whole = isinstance(batch_idx, int) and not isinstance(batch_idx, bool)
        if not (is_whole and 0 <= int(batch_idx) < self.batch):
            raise InputError(
                f"batch_idx={batch_idx!r} is outside the traced batch: expected 0 to "
                f'{self.batch - 1}, or "mean".'
            )

    def plan_of(self, numbers: Sequence[int]) -> list[Plan | None]:
        """For each edge the plan that patches or names it, else the innermost with outputs."""
        owned = self._owned_edges
        default = owned[-1][0] if owned else None
        if len(owned) < 2:
            return [default] * len(numbers)
        return [next((plan for plan, own in owned if n in own), default) for n in numbers]

    @cached_property
    def _owned_edges(self) -> list[tuple[Plan, set[int]]]:
        """The plans that patch something in, the innermost last, and the edges of each."""
        return [(plan, plan.touched_numbers()) for plan in self.plans if plan.patched]

    @property
    def keeps(self) -> bool:
        """Whether everything but the edges asked for was patched."""
        return any(plan.keeps for plan in self.plans)

    def __repr__(self) -> str:
        patched = "nothing patched"
        if self.is_patched or self.edges:
            n = len(self.edges)
            patched = f"{n:,} {'edge' if n == 1 else 'edges'} patched"
            patched = f"all but {n:,} edges patched" if self.keeps else patched
        outcome = "" if self.outcome is None else f"; {self.outcome}"
        return (
            f"<Trace: batch {self.batch}, seq {self.seq}, {len(self.current)} sources, "
            f"{patched}{outcome}>"
        )


@dataclass(frozen=True, eq=False, repr=False)
class EdgeFlow:
    """What flowed along one edge: tensors of `[batch, seq, d_model]`, computed when asked for."""

    trace: Trace
    edge: Edge

    @property
    def clean(self) -> Float[Tensor, "batch seq d_model"] | None:
        """What the source writes where nothing is patched, None where that is not known."""
        clean = self.trace.clean
        return None if clean is None else clean[self.edge.src.name]

    @property
    def current(self) -> Float[Tensor, "batch seq d_model"]:
        """What the source wrote in this pass, after it felt the patches before it."""
        return self.trace.current[self.edge.src.name]

    @property
    def patched(self) -> Float[Tensor, "batch seq d_model"] | None:
        """What was patched in instead, None where nothing was."""
        plans = self.trace.plan_of(self.trace.graph.numbers(self.edge))
        values = {
            id(plan): plan.patched[self.edge.src.name]
            for plan in plans
            if plan is not None and plan.patched is not None
        }
        if len(values) < 2:
            return next(iter(values.values()), None)
        # Contexts inside one another patch this edge at different positions.
        return torch.stack([values[id(plan)][:, at] for at, plan in enumerate(plans)], dim=1)

    @property
    def delta(self) -> Float[Tensor, "batch seq d_model"] | None:
        """patched − current, None where nothing was patched."""
        patched = self.patched
        return None if patched is None else patched - self.current

    @property
    def effect(self) -> Float[Tensor, "batch seq d_model"] | None:
        """received − clean: what patching changed along this edge, None where clean is not known."""
        clean = self.clean
        return None if clean is None else self.received - clean

    @property
    def mask(self) -> float | Float[Tensor, " seq"]:
        """The edge's mask; one per position for an edge of all positions of a `seq_len` model."""
        mask = self._masks
        if self.edge.seq_idx is not None:
            return float(mask[self.edge.seq_idx])
        return float(mask) if mask.ndim == 0 else mask

    @property
    def received(self) -> Float[Tensor, "batch seq d_model"]:
        """What the destination received: (1 − mask) · current + mask · patched."""
        current, patched = self.current, self.patched
        if patched is None:
            return current
        mask = self._masks.to(current)
        mask = mask if mask.ndim == 0 else mask[None, :, None]
        return (1 - mask) * current + mask * patched

    @property
    def _masks(self) -> Tensor:
        dest = self.edge.dest
        scores = self.trace.masks[dest.module_name]
        rows = scores if dest.head is None else scores[..., dest.slot, :]
        return rows[..., self.edge.src.idx]

    def __repr__(self) -> str:
        return f"<EdgeFlow {self.edge}: mask {self.mask}>"


@dataclass(frozen=True, eq=False, repr=False)
class DestFlow:
    """What one destination received, tensors of `[n_sources, batch, seq, d_model]`, and read.

    >>> import circuit_trace as ct
    >>> trace = ct.wrap(ct.load_model("bundled")).trace("When Mary and John")
    >>> flow = trace.dest("A1.0.Q")
    >>> len(flow.sources), tuple(flow.received.shape), tuple(flow.input.shape)
    (6, (6, 1, 5, 64), (1, 5, 64))
    """

    trace: Trace
    dest: DestNode

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources before it, in order."""
        return tuple(src.name for src in self.trace.graph.srcs[: self.dest.n_sources])

    def __getitem__(self, source: str) -> EdgeFlow:
        return self.trace.edge(f"{source}->{self.dest.name}")

    @property
    def clean(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """What each source writes where nothing is patched, None where that is not known."""
        found = [self[source].clean for source in self.sources]
        return None if found[0] is None else torch.stack([one for one in found if one is not None])

    @property
    def current(self) -> Float[Tensor, "n_sources batch seq d_model"]:
        """What each source wrote in this pass, after it felt the patches before it."""
        return torch.stack([self[source].current for source in self.sources])

    @property
    def patched(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """What was patched in instead, None where nothing was."""
        found = [self[source].patched for source in self.sources]
        return None if found[0] is None else torch.stack([one for one in found if one is not None])

    @property
    def delta(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """patched − current, None where nothing was patched."""
        patched = self.patched
        return None if patched is None else patched - self.current

    @property
    def received(self) -> Float[Tensor, "n_sources batch seq d_model"]:
        """What it received from each: (1 − mask) · current + mask · patched."""
        return torch.stack([self[source].received for source in self.sources])

    @property
    def effect(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """received − clean of each, None where clean is not known."""
        clean = self.clean
        return None if clean is None else self.received - clean

    @property
    def input(self) -> Float[Tensor, "batch seq d_model"]:
        """The residual stream as it read it, before a norm that is its own (TransformerLens'
        `hook_q_input`, `hook_mlp_in`): what it received and the biases written before it.

        Raises:
            InputError: It read something else, as hooks changed the stream in that pass.
        """
        return input_of(self.trace, self.dest)

    @property
    def mask(self) -> Float[Tensor, "*seq n_sources"]:
        """The masks of its edges."""
        scores = self.trace.masks[self.dest.module_name]
        return scores if self.dest.head is None else scores[..., self.dest.slot, :]

    def __repr__(self) -> str:
        return f"<DestFlow {self.dest}: {self.dest.n_sources} sources>"
