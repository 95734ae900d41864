"""The record of one pass: what every source wrote, what was patched in, what was received."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from circuit_trace.errors import CircuitTraceError
from circuit_trace.graph import Edges, EdgeSpec
from circuit_trace.plan import EdgesArg, PruneScores, select
from circuit_trace.record.diff import RecordDiff
from circuit_trace.record.flows import DestFlow, EdgeFlow
from circuit_trace.record.heads import HeadRecord, head_record
from circuit_trace.record.numbers import BatchIdx
from circuit_trace.record.reconstruct import reconstruction_error
from circuit_trace.record.record import Record
from circuit_trace.record.saved import Content, Options, kept_of, load, save, trace_of
from circuit_trace.record.table import edge_table, top_rows
from circuit_trace.score.scores import EdgeScores

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.table import Table

    from circuit_trace.visualize.explorer import Explorer


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Record):
    """What flowed along every edge in one forward pass; it stays when the pass is over.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> flow = trace.edge("A1.0->Resid End")
    >>> flow.mask, tuple(flow.received.shape), bool((flow.received == flow.patched).all())
    (1.0, (1, 15, 64), True)
    """

    @cached_property
    def masks(self) -> EdgeScores:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The mask of every edge, 0 where it carried the current output, in `PruneScores` form."""
        return EdgeScores(super().masks, graph=self.graph)

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
        chosen = self.listed if edges is None else select(self.graph, edges)
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
        save(self, path, Options(logits, factored, dtype, unembed))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote; `about` says what it was taken from, and when.

        It is data alone: nothing in it is run, and neither its model nor TransformerLens is needed.

        Raises:
            FormatError: There is no such file, it is not a trace, of a later version, or damaged.
        """
        return cls.of(load(path))

    @classmethod
    def of(cls, record: Record) -> Trace:
        """The trace of a record."""
        return cls(**{field.name: getattr(record, field.name) for field in fields(Record)})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, or copy deeply, what `save(unembed=True)` keeps: plain data, no model. Where outputs
        cannot be read as tokens, what reads them is left out."""
        return _unpickled, (type(self), kept_of(self))

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


def _unpickled(kind: type[Trace], content: Content) -> Trace:
    return kind.of(trace_of(content))


@dataclass(frozen=True, eq=False, repr=False)
class TraceDiff(RecordDiff):
    """What changed from one traced pass to another. Made by `Trace.diff`.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> half = model.trace(CLEAN, corrupt=CORRUPT, edges={"A1.0->Resid End": 0.5})
    >>> whole = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> half.diff(whole).table()[["edge", "mask", "other_mask"]].values.tolist()
    [['A1.0->Resid End', 0.5, 1.0]]
    """

    trace: Trace
    other: Trace

    def draw(self, **options: Any) -> go.Figure:
        """Draw both passes with `draw_difference`, which lists the options; not displayed besides."""
        from circuit_trace.visualize import draw_difference

        return draw_difference(self.trace, self.other, **{"display_ipython": False, **options})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: what changed, as a picture."""
        try:
            picture = self.draw()._repr_mimebundle_(include, exclude)
        except CircuitTraceError:  # records that cannot be drawn any more still have a name
            picture = {}
        return {**picture, "text/plain": repr(self)}
