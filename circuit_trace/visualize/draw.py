"""`draw_seq_graph` and `net_viz`: a trace or scores in, a figure out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go
import torch

from circuit_trace.errors import FigureError, InputError, NoTraceError
from circuit_trace.graph import Edge, Graph, whole_number
from circuit_trace.plan import PruneScores
from circuit_trace.trace import BatchIdx, Direction, Lens, Trace
from circuit_trace.visualize.companion import live_table, score_table
from circuit_trace.visualize.edges import (
    LIVE_LEGEND,
    PLAIN,
    PROJECTION_LEGEND,
    SCORE_LEGEND,
    DrawnEdge,
    Label,
    LiveStyle,
    Width,
    hidden_counts,
    live_edges,
    score_edges,
)
from circuit_trace.visualize.sankey import THEMES, Theme, figure, sankey
from circuit_trace.visualize.spec import MOST_SHORT_LABELS, Orientation, build_diagram, lone_panel
from circuit_trace.visualize.text import escape, mask_text
from circuit_trace.visualize.write import check_path, show_in_ipython, write

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

ThemeName = Literal["light", "dark"]

MAX_EDGES = 500
"""How many edges a figure shows unless more are asked for: enough for a circuit, few enough for a
browser."""

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
    batch_idx: BatchIdx = 0,
    label: Label | None = None,
    width: Width | None = None,
    direction: torch.Tensor | Sequence[float] | Sequence[str] | None = None,
    max_edges: int | None = MAX_EDGES,
    table: bool = False,
    theme: ThemeName = "light",
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
        file_path: Write the figure too; .html, .json, .png, .svg, .pdf, .jpg or .webp by
            extension, or its graph as text, .mmd (Mermaid) or .dot (Graphviz).
        batch_idx: The element of the batch whose activations are shown; "mean" for means of their
            numbers over the batch.
        label: What is written on an edge of a traced pass: "norms" (current → patched, and Δ, the
            norm of their difference), "cosine" (of current and patched), "projection" (on
            `direction`), "tokens" (whose logits the source's Δ raises and lowers most, through the
            final norm of that pass and `W_U`), "values" (the first ones), or a function of its
            `EdgeFlow`.
        width: What the width of an edge of a traced pass stands for: "mask", "delta" (‖Δ‖),
            "received" (‖received‖), or "projection": what patching the edge adds along
            `direction`, blue where positive and red where negative.
        direction: What outputs are projected on: a vector of `d_model` numbers (a dot product), or
            two tokens, `(" Mary", " John")` or their ids, for what an output adds to the first's
            logit less the second's, through the final norm of that pass and `W_U`.
        max_edges: At most so many edges are drawn, the widest, and of equally wide ones those that
            change most; the others are counted beside the diagrams. None draws all.
        table: List every drawn edge with its numbers below the diagrams.
        theme: "light" or "dark".

    Raises:
        NoTraceError: Nothing was traced yet and no scores were given.
        MaskError: The scores do not fit the model.
        FigureError: An option is out of range, or the file cannot be written.
    """
    _check_options(score_threshold, orientation)
    path = None if file_path is None else check_path(file_path)
    graph, trace = _source(model, prune_scores)
    style = _style(trace, prune_scores, label, width, direction)
    colors = _theme(theme)
    drawn = _drawn(graph, trace, prune_scores, score_threshold, batch_idx, style, max_edges)
    titles = _titles(graph, trace, seq_labels, batch_idx)
    companion = None
    if prune_scores is None:
        assert trace is not None
        note = _live_note(trace, drawn, score_threshold, style, batch_idx)
        legend = PROJECTION_LEGEND if style.width == "projection" else LIVE_LEGEND
        weights = trace.masks
        if table and drawn:
            companion = live_table(trace, drawn, titles, batch_idx, style)
    else:
        note, legend = _score_note(drawn, score_threshold), SCORE_LEGEND
        weights = prune_scores
        if table and drawn:
            companion = score_table(drawn, titles)
    hidden = {}
    if len(drawn) == max_edges:
        hidden = hidden_counts(graph, weights, score_threshold, drawn)
    if hidden:
        note += f" Not drawn: {sum(hidden.values()):,} weaker edges (max_edges={max_edges})."
    diagram = build_diagram(
        graph,
        drawn,
        titles=titles,
        show_all_seq_pos=show_all_seq_pos,
        layer_spacing=layer_spacing,
        orientation=orientation,
        note=note,
        legend=legend,
        hidden=hidden,
        table=companion,
    )
    drawn_figure = figure(diagram, colors)
    if display_ipython:
        show_in_ipython(drawn_figure)
    if path is not None:
        write(drawn_figure, diagram, path)
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
    batch_idx: BatchIdx = 0,
    size: tuple[float, float] = PANEL_SIZE,
    label: Label | None = None,
    width: Width | None = None,
    direction: torch.Tensor | Sequence[float] | Sequence[str] | None = None,
    max_edges: int | None = MAX_EDGES,
    theme: ThemeName = "light",
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
        label: As in `draw_seq_graph`; Plotly shows it on hover.
        width: As in `draw_seq_graph`.
        direction: As in `draw_seq_graph`.
        max_edges: As in `draw_seq_graph`; the others are left out.
        theme: As in `draw_seq_graph`.

    Returns:
        The Sankey, and how many layers it shows (a block counts as attention and MLP).

    Raises:
        As `draw_seq_graph`.
    """
    _check_options(score_threshold, orientation)
    bottom, top = _interval(vert_interval)
    _check_size(size)
    graph, trace = _source(model, prune_scores)
    style = _style(trace, prune_scores, label, width, direction)
    wanted = {number for edge in seq_edges for number in graph.numbers(edge)}
    seq_idx = _position(graph, wanted, seq_idx)
    per_position = graph.n_edges_per_position
    wanted = {number for number in wanted if number // per_position == (seq_idx or 0)}
    drawn = _drawn(graph, trace, prune_scores, score_threshold, batch_idx, style, max_edges, wanted)
    panel = lone_panel(
        graph,
        drawn,
        seq_idx=seq_idx,
        interval=(bottom, top),
        size=size,
        layer_spacing=layer_spacing,
        orientation=orientation,
    )
    return sankey(panel, orientation, _theme(theme)), panel.n_layers


def _drawn(
    graph: Graph,
    trace: Trace | None,
    prune_scores: PruneScores | None,
    threshold: float,
    batch_idx: BatchIdx,
    style: LiveStyle,
    max_edges: int | None,
    among: Set[int] | None = None,
) -> list[DrawnEdge]:
    """The edges to draw: those of given scores, else those of the traced pass."""
    _check_max_edges(max_edges)
    if prune_scores is not None:
        return score_edges(graph, prune_scores, threshold, max_edges, among)
    assert trace is not None
    trace.check_batch_idx(batch_idx)
    return live_edges(trace, threshold, batch_idx, style, max_edges, among)


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
    graph: Graph, trace: Trace | None, seq_labels: Sequence[str] | None, batch_idx: BatchIdx
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
    if graph.seq_len is None or trace is None or batch_idx == "mean" or batch_idx >= trace.batch:
        return None
    strings = trace.token_strings(batch_idx)
    return strings if strings is not None and len(strings) == graph.seq_len else None


WHAT_LABELS_SAY: dict[Any, str] = {
    "norms": "‖current‖→‖patched‖ Δ‖patched − current‖{mask} of what its source wrote",
    "cosine": "the cosine of current and patched{mask}",
    "projection": "current→patched along {direction}{mask}",
    "tokens": "the tokens whose logits {what} raises and lowers most{mask}",
    "values": "the first values of what it carried{mask}",
}
WHAT_WIDTHS_SAY: dict[Any, str] = {
    "mask": "|mask|",
    "delta": "‖patched − current‖",
    "received": "‖received‖",
    "projection": "|what patching adds along {direction}|",
}


def _live_note(
    trace: Trace,
    drawn: list[DrawnEdge],
    threshold: float,
    style: LiveStyle,
    batch_idx: BatchIdx,
) -> str:
    if not drawn:
        why = "" if trace.edges else " Nothing was patched in this pass."
        return f"No edge has |mask| ≥ {mask_text(threshold)}.{why}"
    direction = escape(style.direction.name) if style.direction is not None else ""
    what = ""
    if isinstance(style.label, str):
        what = WHAT_LABELS_SAY[style.label]
        if style.label == "norms" and not trace.patched:
            what = "‖current‖ of what its source wrote"
        masks = trace.masks.values()
        is_mixed = any(bool(((mask != 0) & (mask != 1)).any()) for mask in masks)
        what = what.format(
            mask=" (mask)" if is_mixed else "",
            direction=direction,
            what="patched − current" if trace.patched else "what its source wrote",
        )
        what = f" On {_which(drawn)}: {what}."
    width = WHAT_WIDTHS_SAY[style.width].format(direction=direction)
    if style.width == "projection" and not trace.patched:
        width = f"|current along {direction}|"
    if direction and "projection" not in (style.label, style.width):
        what += f" Projections: on {direction}."
    mean = f" Means over the batch of {trace.batch}." if batch_idx == "mean" else ""
    return f"Width: {width}.{what}{mean}"


def _score_note(drawn: list[DrawnEdge], threshold: float) -> str:
    if not drawn:
        return f"No edge has |score| ≥ {mask_text(threshold)}."
    return f"Width: |score|. On {_which(drawn)}: its score."


def _which(drawn: list[DrawnEdge]) -> str:
    return "each edge" if len(drawn) <= MOST_SHORT_LABELS else f"the {MOST_SHORT_LABELS} widest"


def _style(
    trace: Trace | None,
    prune_scores: PruneScores | None,
    label: Any,
    width: Any,
    direction: Any,
) -> LiveStyle:
    """Check what a user asks for on the edges of a traced pass."""
    if prune_scores is not None and any(one is not None for one in (label, width, direction)):
        raise FigureError(
            "label, width and direction are for the activations of a traced pass; with prune_scores "
            "the scores alone are drawn. Leave either out."
        )
    style = LiveStyle(label or PLAIN.label, width or PLAIN.width)
    label, width = style.label, style.width
    if not callable(label) and not (isinstance(label, str) and label in WHAT_LABELS_SAY):
        raise FigureError(
            f"label must be one of {', '.join(WHAT_LABELS_SAY)}, or a function of an EdgeFlow; got "
            f"{label!r}."
        )
    if not (isinstance(width, str) and width in WHAT_WIDTHS_SAY):
        raise FigureError(f"width must be one of {', '.join(WHAT_WIDTHS_SAY)}; got {width!r}.")
    if trace is None or prune_scores is not None:
        return PLAIN
    needs = [
        f'{name}="projection"'
        for name, own in (("label", label), ("width", width))
        if own == "projection"
    ]
    if needs and direction is None:
        raise FigureError(
            f"{needs[0]} needs direction=: two tokens such as (' Mary', ' John'), or a vector of "
            "d_model numbers."
        )
    if trace.patched is None and (label == "cosine" or width == "delta"):
        raise FigureError(
            "Nothing was patched in this pass, so there is no change to show: label="
            f"{label!r}, width={width!r}. Trace it with corrupt= or patched=."
        )
    try:
        found = None if direction is None else Direction.read(trace, direction)
        if label == "tokens":
            Lens.of(trace, 0)  # refuse before anything is drawn
    except InputError as error:
        raise FigureError(str(error)) from error
    return replace(style, direction=found)


def _theme(name: Any) -> Theme:
    if not isinstance(name, str) or name not in THEMES:
        raise FigureError(f"theme must be one of {', '.join(THEMES)}; got {name!r}.")
    return THEMES[name]


def _check_max_edges(max_edges: Any) -> None:
    if max_edges is None:
        return
    number = whole_number(max_edges)
    if number is None or number < 1:
        raise FigureError(f"max_edges must be a whole number above 0, or None; got {max_edges!r}.")
