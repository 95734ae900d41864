"""`draw_seq_graph` and `net_viz`: a trace or scores in, a figure out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import plotly.graph_objects as go
import torch

from circuit_trace.engine import Engine
from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import PruneScores
from circuit_trace.record import BatchIdx, Record
from circuit_trace.visualize.colors import ThemeName
from circuit_trace.visualize.diagram import Orientation
from circuit_trace.visualize.edges import live_edges, scored_edges
from circuit_trace.visualize.panels import lone_panel
from circuit_trace.visualize.picture import live_picture, score_picture
from circuit_trace.visualize.present import present
from circuit_trace.visualize.sankey import Domain, sankey
from circuit_trace.visualize.source import (
    check_side_by_side,
    chosen_position,
    position_titles,
    source,
)
from circuit_trace.visualize.style import MAX_EDGES, Style, check_size, interval
from circuit_trace.visualize.view import Label, Width, view_of
from circuit_trace.visualize.write import File

PANEL_SIZE = (700.0, 300.0)
"""Pixels that `net_viz` lays a diagram out for where the caller does not say."""


def draw_seq_graph(
    model: Engine | Record | Graph,
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
    compare: Sequence[str] | None = None,
    at: int | Literal["last", "largest"] | None = None,
    max_edges: int | None = MAX_EDGES,
    table: bool = False,
    theme: ThemeName = "light",
    include_plotlyjs: bool | Literal["cdn"] = True,
    page_width: float | None = None,
    side_by_side: bool = False,
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
        model: A wrapped model, whose last trace is drawn, or a `Trace`; for scores a `Graph` will do.
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
        label: What is written on an edge of a traced pass: "norms" (of the two that are compared, and
            Δ, the norm of their difference), "cosine" (of the two), "projection" (on `direction`),
            "tokens" (whose logits the change raises and lowers most, through the final norm of that
            pass and `W_U`), "values" (the first ones), or a function of its `EdgeFlow`. When
            omitted, norms, or what the width shows if that is a projection.
        width: What the width of an edge of a traced pass stands for: "mask" (1 − mask where all but
            these edges was patched), "delta" (‖Δ‖), "received" (‖received‖), or "projection": what
            the change adds along `direction`, blue where positive and red where negative.
        direction: What outputs are projected on: a vector of `d_model` numbers (a dot product), or
            two tokens, `(" Mary", " John")` or their ids, for what an output adds to the first's
            logit less the second's, through the final norm of that pass and `W_U`. When omitted, the
            answers that the pass was traced with.
        compare: As in `Trace.table`: two of clean, current, patched and received; when omitted clean
            and received where the pass knows both.
        at: As in `Trace.table`: the position that numbers are taken at in a model without positions.
        max_edges: At most so many edges are drawn, the widest, and of equally wide ones those that
            change most; the others are counted beside the diagrams. None draws all.
        table: List every drawn edge with its numbers below the diagrams.
        theme: "light" or "dark".
        include_plotlyjs: Whether an .html file holds plotly.js, nearly 5 MB, and works offline; "cdn"
            fetches it when the page opens.
        page_width: Inches that a .pdf or .svg file is wide, such as 3.25 for a column of a paper;
            when omitted, 1/96 inch a pixel.
        side_by_side: With `prune_scores`, draw beside them the same edges as the last traced pass has
            them: as wide as their scores, coloured by their masks, labelled as `label` says.

    Raises:
        NoTraceError: Nothing was traced yet, and no scores were given or a pass is to stand beside them.
        MaskError: The scores do not fit the model.
        FigureError: An option is out of range, or the file cannot be written.
    """
    style = Style(score_threshold, show_all_seq_pos, layer_spacing, orientation, max_edges, theme)
    file = File.asked_for(file_path, include_plotlyjs, page_width)
    graph, trace = source(model, prune_scores)
    if side_by_side:
        check_side_by_side(trace, prune_scores, width)
    asked = {"label": label, "width": width, "direction": direction, "compare": compare, "at": at}
    view = view_of(trace, None if side_by_side else prune_scores, batch_idx, asked)
    titles = position_titles(graph, trace, seq_labels, batch_idx)
    if prune_scores is not None:
        picture = score_picture(graph, prune_scores, style, titles, has_table=table, beside=view)
    else:
        assert view is not None
        picture = live_picture(view, style, titles, has_table=table)
    return present(picture, style, display_ipython, file)


def net_viz(
    model: Engine | Record | Graph,
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
    compare: Sequence[str] | None = None,
    at: int | Literal["last", "largest"] | None = None,
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
        model: A wrapped model, whose last trace is drawn, or a `Trace`; for scores a `Graph` will do.
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
        compare: As in `draw_seq_graph`.
        at: As in `draw_seq_graph`.
        max_edges: As in `draw_seq_graph`; the others are left out.
        theme: As in `draw_seq_graph`.

    Returns:
        The Sankey, and how many layers it shows (a block counts as attention and MLP).

    Raises:
        As `draw_seq_graph`.
    """
    style = Style(score_threshold, False, layer_spacing, orientation, max_edges, theme)
    bottom, top = interval(vert_interval)
    check_size(size)
    graph, trace = source(model, prune_scores)
    asked = {"label": label, "width": width, "direction": direction, "compare": compare, "at": at}
    view = view_of(trace, prune_scores, batch_idx, asked)
    wanted = {number for edge in seq_edges for number in graph.numbers(edge)}
    seq_idx = chosen_position(graph, wanted, seq_idx)
    per_position = graph.n_edges_per_position
    among = {number for number in wanted if number // per_position == (seq_idx or 0)}
    if prune_scores is not None:
        drawn = scored_edges(graph, prune_scores, score_threshold, max_edges, among)
    else:
        assert view is not None
        drawn = live_edges(view, score_threshold, max_edges, among)
    panel, pad = lone_panel(graph, drawn, seq_idx, size, style)
    domain = Domain((0.0, 1.0), (bottom, top), *size)
    return sankey(panel, orientation, style.colors, domain, pad=pad), panel.n_layers
