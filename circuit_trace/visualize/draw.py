"""`draw_seq_graph` and `net_viz`: a trace or scores in, a figure out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from circuit_trace.errors import FigureError, NoTraceError
from circuit_trace.graph import Edge, Graph, whole_number
from circuit_trace.plan import PruneScores
from circuit_trace.trace import Trace
from circuit_trace.visualize.edges import (
    LIVE_LEGEND,
    SCORE_LEGEND,
    DrawnEdge,
    live_edges,
    score_edges,
)
from circuit_trace.visualize.sankey import figure, sankey
from circuit_trace.visualize.spec import MOST_SHORT_LABELS, Orientation, build_diagram, lone_panel
from circuit_trace.visualize.text import mask_text
from circuit_trace.visualize.write import check_path, show_in_ipython, write

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

PANEL_SIZE = (700.0, 300.0)
"""Pixels that `net_viz` lays a diagram out for where the caller does not say."""


def draw_seq_graph(
    model: PatchableModel | Trace,
    prune_scores: PruneScores | None = None,
    score_threshold: float = 0.01,
    show_all_seq_pos: bool = False,
    seq_labels: Sequence[str] | None = None,
    layer_spacing: bool = False,
    orientation: Orientation = "h",
    display_ipython: bool = True,
    file_path: str | Path | None = None,
    *,
    batch_idx: int = 0,
) -> go.Figure:
    """Draw a circuit as Sankey diagrams, one per token position.

    Without `prune_scores` it draws the last patched pass: the edges whose |mask| reaches the
    threshold, as wide as their mask, labelled with what flowed along them. With `prune_scores` it
    draws the scores alone, blue where positive and red where negative.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> drawn = ct.draw_seq_graph(model)
    >>> drawn.data[0].link.label[0].split("<br>")[0], drawn.data[0].link.value
    ('A1.0->Resid End', (1.0,))

    Args:
        model: A wrapped model, whose last trace is drawn, or a `Trace`.
        prune_scores: Scores to draw instead of the trace's masks.
        score_threshold: The smallest |mask| or |score| that is shown.
        show_all_seq_pos: Show positions without an edge too.
        seq_labels: A label for each position; when omitted, the traced tokens if there are any.
        layer_spacing: Put every node at its layer's place, rather than closing up empty layers.
        orientation: "h" from left to right, "v" from top to bottom.
        display_ipython: Show the figure if this runs inside IPython.
        file_path: Write the figure too; .html, .json, .png, .svg, .pdf, .jpg or .webp by extension.
        batch_idx: The element of the batch whose activations are shown.

    Raises:
        NoTraceError: Nothing was traced yet and no scores were given.
        MaskError: The scores do not fit the model.
        FigureError: An option is out of range, or the file cannot be written.
    """
    _check_options(score_threshold, orientation)
    path = None if file_path is None else check_path(file_path)
    graph, trace = _source(model, prune_scores)
    if prune_scores is None:
        assert trace is not None
        trace.check_batch_idx(batch_idx)
        drawn = live_edges(trace, score_threshold, batch_idx)
        note, legend = _live_note(trace, drawn, score_threshold), LIVE_LEGEND
    else:
        drawn = score_edges(graph, prune_scores, score_threshold)
        note, legend = _score_note(drawn, score_threshold), SCORE_LEGEND
    diagram = build_diagram(
        graph,
        drawn,
        titles=_titles(graph, trace, seq_labels, batch_idx),
        show_all_seq_pos=show_all_seq_pos,
        layer_spacing=layer_spacing,
        orientation=orientation,
        note=note,
        legend=legend,
    )
    drawn_figure = figure(diagram)
    if display_ipython:
        show_in_ipython(drawn_figure)
    if path is not None:
        write(drawn_figure, path)
    return drawn_figure


def net_viz(
    model: PatchableModel | Trace,
    seq_edges: Iterable[Edge],
    prune_scores: PruneScores | None,
    vert_interval: tuple[float, float],
    seq_idx: int | None = None,
    score_threshold: float = 0.01,
    layer_spacing: bool = False,
    orientation: Orientation = "h",
    *,
    batch_idx: int = 0,
    size: tuple[float, float] = PANEL_SIZE,
) -> tuple[go.Sankey, int]:
    """Draw some edges of one position as a Sankey trace to put into a figure of your own.

    >>> import torch, circuit_trace as ct
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> scores = {"blocks.1.hook_resid_post": torch.ones(11)}
    >>> diagram, n_layers = net_viz(model, model.edges, scores, (0.5, 1.0))
    >>> len(diagram.link.source), n_layers
    (11, 6)

    Args:
        model: A wrapped model, whose last trace is drawn, or a `Trace`.
        seq_edges: The edges to choose from; those of another position are left out.
        prune_scores: As in `draw_seq_graph`; None draws the last patched pass.
        vert_interval: The diagram's place in the figure's height, bottom and top, from 0 to 1.
        seq_idx: The position, None for a model wrapped without `seq_len`.
        score_threshold: As in `draw_seq_graph`.
        layer_spacing: As in `draw_seq_graph`.
        orientation: As in `draw_seq_graph`.
        batch_idx: As in `draw_seq_graph`.
        size: Width and height in pixels that the diagram will have in the figure.

    Returns:
        The Sankey, and how many layers it shows (a block counts as attention and MLP).

    Raises:
        As `draw_seq_graph`.
    """
    _check_options(score_threshold, orientation)
    bottom, top = _interval(vert_interval)
    _check_size(size)
    graph, trace = _source(model, prune_scores)
    if prune_scores is None:
        assert trace is not None
        trace.check_batch_idx(batch_idx)
        drawn = live_edges(trace, score_threshold, batch_idx)
    else:
        drawn = score_edges(graph, prune_scores, score_threshold)
    wanted = {number for edge in seq_edges for number in graph.numbers(edge)}
    seq_idx = _position(graph, wanted, seq_idx)
    chosen = [
        one for one in drawn if graph.number(one.edge) in wanted and one.edge.seq_idx == seq_idx
    ]
    panel = lone_panel(
        graph,
        chosen,
        seq_idx=seq_idx,
        interval=(bottom, top),
        size=size,
        layer_spacing=layer_spacing,
        orientation=orientation,
    )
    return sankey(panel, orientation), panel.n_layers


def _position(graph: Graph, numbers: set[int], seq_idx: Any) -> int | None:
    """The position to draw: the one given, or the only one that the edges are at."""
    if graph.seq_len is None:
        if seq_idx is None:
            return None
        raise FigureError(f"seq_idx={seq_idx!r}, but the model was wrapped without positions.")
    found = {number // graph.n_edges_per_position for number in numbers}
    if seq_idx is None and len(found) <= 1:
        return next(iter(found), None)
    position = whole_number(seq_idx)
    if position is None or not 0 <= position < graph.seq_len:
        raise FigureError(
            f"seq_idx must say which position to draw, from 0 to {graph.seq_len - 1}; got "
            f"{seq_idx!r}."
        )
    return position


def _interval(given: Any) -> tuple[float, float]:
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if (
        is_pair
        and all(isinstance(end, int | float) for end in given)
        and 0 <= given[0] < given[1] <= 1
    ):
        return float(given[0]), float(given[1])
    raise FigureError(
        f"vert_interval must be (bottom, top) with 0 ≤ bottom < top ≤ 1; got {given!r}."
    )


def _check_size(size: Any) -> None:
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    if not is_pair or not all(isinstance(n, int | float) and 0 < n < 1e5 for n in size):
        raise FigureError(f"size must be (width, height) in pixels, both above 0; got {size!r}.")


def _check_options(score_threshold: float, orientation: str) -> None:
    if orientation not in ("h", "v"):
        raise FigureError(
            f"orientation must be 'h' (left to right) or 'v' (top to bottom); got {orientation!r}."
        )
    if (
        isinstance(score_threshold, bool)
        or not isinstance(score_threshold, int | float)
        or not (score_threshold >= 0)
    ):
        raise FigureError(f"score_threshold must be a number, 0 or more; got {score_threshold!r}.")


def _source(
    model: PatchableModel | Trace, prune_scores: PruneScores | None
) -> tuple[Graph, Trace | None]:
    """The graph to draw on and, where there is one, the trace."""
    if isinstance(model, Trace):
        return model.graph, model
    if not isinstance(getattr(model, "graph", None), Graph):
        raise FigureError(
            f"Expected a wrapped model (ct.wrap) or a Trace to draw; got {type(model).__name__}."
        )
    try:
        return model.graph, model.last_trace
    except NoTraceError:
        if prune_scores is None:
            raise
        return model.graph, None


def _titles(
    graph: Graph, trace: Trace | None, seq_labels: Sequence[str] | None, batch_idx: int
) -> Sequence[str] | None:
    """The labels of the positions: those given, else the traced tokens."""
    if seq_labels is not None:
        if not isinstance(seq_labels, Iterable):
            raise FigureError(f"seq_labels must be a list of strings; got {seq_labels!r}.")
        labels = [seq_labels] if isinstance(seq_labels, str) else list(seq_labels)
        if graph.seq_len is not None and len(labels) != graph.seq_len:
            raise FigureError(
                f"seq_labels must label every position: expected {graph.seq_len} labels, got "
                f"{len(labels)}."
            )
        return [str(label) for label in labels]
    if graph.seq_len is None or trace is None or batch_idx >= trace.batch:
        return None
    strings = trace.token_strings(batch_idx)
    return strings if strings is not None and len(strings) == graph.seq_len else None


def _live_note(trace: Trace, drawn: list[DrawnEdge], threshold: float) -> str:
    if not drawn:
        why = "" if trace.edges else " Nothing was patched in this pass."
        return f"No edge has |mask| ≥ {mask_text(threshold)}.{why}"
    what = "‖current‖→‖patched‖" if trace.patched else "‖current‖"
    masks = trace.masks.values()
    if any(bool(((mask != 0) & (mask != 1)).any()) for mask in masks):
        what += " (mask)"
    on_edges = f" On each edge: {what} of what its source wrote."
    return "Width: |mask|." + (on_edges if len(drawn) <= MOST_SHORT_LABELS else "")


def _score_note(drawn: list[DrawnEdge], threshold: float) -> str:
    if not drawn:
        return f"No edge has |score| ≥ {mask_text(threshold)}."
    return "Width: |score|." + (
        " On each edge: its score." if len(drawn) <= MOST_SHORT_LABELS else ""
    )
