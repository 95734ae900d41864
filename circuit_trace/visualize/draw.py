"""`draw_seq_graph` and `net_viz`: a trace or scores in, a figure out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go
import torch

from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import PruneScores
from circuit_trace.trace import BatchIdx, Trace
from circuit_trace.visualize.companion import live_table, score_table
from circuit_trace.visualize.diagram import Diagram, Orientation
from circuit_trace.visualize.edges import (
    CIRCUIT_LEGEND,
    CURRENT_PROJECTION_LEGEND,
    LIVE_LEGEND,
    PROJECTION_LEGEND,
    DrawnEdge,
    Label,
    LiveStyle,
    Width,
    beside_scores,
    hidden_counts,
    is_circuit,
    live_edges,
    live_numbers,
    score_edges,
    score_legend,
    score_numbers,
)
from circuit_trace.visualize.notebook import show_in_ipython
from circuit_trace.visualize.options import (
    MAX_EDGES,
    WHAT_LABELS_SAY,
    WHAT_LONE_LABELS_SAY,
    WHAT_WIDTHS_SAY,
    ThemeName,
    check_max_edges,
    check_options,
    check_side_by_side,
    check_size,
    chosen_position,
    interval,
    live_style,
    position_titles,
    source,
    theme_named,
)
from circuit_trace.visualize.panels import MOST_SHORT_LABELS, Picture, build_diagram, lone_panel
from circuit_trace.visualize.sankey import Domain, Theme, figure, sankey
from circuit_trace.visualize.text import escape, mask_text
from circuit_trace.visualize.write import File, write

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

PANEL_SIZE = (700.0, 300.0)
"""Pixels that `net_viz` lays a diagram out for where the caller does not say."""


def draw_seq_graph(
    model: PatchableModel | Trace | Graph,
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
    check_options(score_threshold, orientation)
    file = File.asked_for(file_path, include_plotlyjs, page_width)
    graph, trace = source(model, prune_scores)
    if side_by_side:
        check_side_by_side(trace, prune_scores, width)
    scores_alone = None if side_by_side else prune_scores
    style = live_style(trace, scores_alone, label, width, direction, compare, at)
    colors = theme_named(theme)
    drawn = _drawn(graph, trace, prune_scores, score_threshold, batch_idx, style, max_edges)
    titles = position_titles(graph, trace, seq_labels, batch_idx)
    shown: dict[str, list[DrawnEdge]] = {"": drawn}
    companion = None
    if prune_scores is None:
        assert trace is not None
        note = _live_note(trace, drawn, score_threshold, style, batch_idx)
        legend = legend_of(style)
        if table and drawn:
            companion = live_table(trace, drawn, titles, batch_idx, style)
    else:
        note = _score_note(drawn, score_threshold, prune_scores)
        circuit = is_circuit([one.weight for one in drawn])
        legend = CIRCUIT_LEGEND if circuit else score_legend(prune_scores)
        if table and drawn:
            companion = score_table(drawn, titles)
    if side_by_side and trace is not None and drawn:
        shown = {"score": drawn, "live": beside_scores(trace, drawn, batch_idx, style)}
        note = f"{outcome_note(trace)}{note} Beside it: {_labels_say(trace, style)}."
        note += _batch_note(trace, batch_idx)
        legend += LIVE_LEGEND
        if table:
            companion = live_table(trace, drawn, titles, batch_idx, style, are_scores=True)
    hidden = {}
    if len(drawn) == max_edges:
        shown_numbers = (
            live_numbers(trace, score_threshold)
            if prune_scores is None and trace is not None
            else score_numbers(graph, prune_scores, score_threshold)
        )
        hidden = hidden_counts(graph, shown_numbers, drawn)
    if hidden:
        note += (
            f" Not drawn: {sum(hidden.values()):,} edges that rank lower (max_edges={max_edges})."
        )
    n_weighted = _n_weighted(trace, prune_scores)
    n_below = n_weighted - len(drawn) - sum(hidden.values())
    if n_below > 0:
        kind = "patched" if prune_scores is None else "scored"
        note += (
            f" Below the threshold of {mask_text(score_threshold)}: {n_below:,} {kind} "
            f"{'edge' if n_below == 1 else 'edges'}."
        )
    diagram = build_diagram(
        Picture(graph, shown, titles, note, legend, hidden, companion),
        show_all_seq_pos=show_all_seq_pos,
        layer_spacing=layer_spacing,
        orientation=orientation,
    )
    return present(diagram, colors, display_ipython, file)


def present(diagram: Diagram, colors: Theme, display_ipython: bool, file: File | None) -> go.Figure:
    """Render a diagram, show it where it can be shown, and write it where a file is asked for."""
    drawn_figure = figure(diagram, colors)
    if display_ipython:
        show_in_ipython(drawn_figure)
    if file is not None:
        write(drawn_figure, diagram, file)
    return drawn_figure


def net_viz(
    model: PatchableModel | Trace | Graph,
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
    check_options(score_threshold, orientation)
    bottom, top = interval(vert_interval)
    check_size(size)
    graph, trace = source(model, prune_scores)
    style = live_style(trace, prune_scores, label, width, direction, compare, at)
    wanted = {number for edge in seq_edges for number in graph.numbers(edge)}
    seq_idx = chosen_position(graph, wanted, seq_idx)
    per_position = graph.n_edges_per_position
    wanted = {number for number in wanted if number // per_position == (seq_idx or 0)}
    drawn = _drawn(graph, trace, prune_scores, score_threshold, batch_idx, style, max_edges, wanted)
    panel, pad = lone_panel(
        graph,
        drawn,
        seq_idx=seq_idx,
        size=size,
        layer_spacing=layer_spacing,
        orientation=orientation,
    )
    domain = Domain((0.0, 1.0), (bottom, top), *size)
    return sankey(panel, orientation, theme_named(theme), domain, pad=pad), panel.n_layers


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
    check_max_edges(max_edges)
    if prune_scores is not None:
        return score_edges(graph, prune_scores, threshold, max_edges, among)
    assert trace is not None
    trace.check_batch_idx(batch_idx)
    return live_edges(trace, threshold, batch_idx, style, max_edges, among)


def _live_note(
    trace: Trace,
    drawn: list[DrawnEdge],
    threshold: float,
    style: LiveStyle,
    batch_idx: BatchIdx,
) -> str:
    if not drawn:
        why = ""
        if not trace.edges:
            why = (
                " Nothing was patched in this pass; score_threshold=0 and width='received' draw it."
            )
        return outcome_note(trace) + f"No edge has |mask| ≥ {mask_text(threshold)}.{why}"
    direction = escape(style.direction.name) if style.direction is not None else ""
    what = ""
    if isinstance(style.label, str):
        of_equals = ", of equals those that change most"
        what = f" On {_which(drawn, of_equals)}: {_labels_say(trace, style)}."
    width = "1 − mask" if trace.keeps and style.width == "mask" else WHAT_WIDTHS_SAY[style.width]
    before, after = style.pair or ("", "current")
    if style.width == "projection" and style.pair is None:
        width = "|current along {direction}|"
    width = width.format(direction=direction, before=before, after=after)
    if all(one.weight == 0 for one in drawn):
        width += " is 0 on every edge, so all are drawn as thin as can be"
    if direction and "projection" not in (style.label, style.width):
        what += f" Projections: on {direction}."
    kept = ""
    if trace.keeps:
        kept = f" These {len(trace.edges):,} edges are kept, all others patched."
    return f"{outcome_note(trace)}Width: {width}.{what}{kept}{_batch_note(trace, batch_idx)}"


def outcome_note(trace: Trace) -> str:
    """What came of a pass, as a sentence of a caption; nothing where nothing was measured."""
    return "" if trace.outcome is None else f"{escape(str(trace.outcome))}. "


def legend_of(style: LiveStyle) -> tuple[tuple[str, str], ...]:
    """What the colours of a traced pass mean."""
    if style.width != "projection":
        return LIVE_LEGEND
    assert style.direction is not None
    direction = escape(style.direction.name)
    legend = CURRENT_PROJECTION_LEGEND if style.pair is None else PROJECTION_LEGEND
    return tuple((color, said.format(direction=direction)) for color, said in legend)


def _labels_say(trace: Trace, style: LiveStyle) -> str:
    if not isinstance(style.label, str):
        return "its label"
    names = WHAT_LONE_LABELS_SAY if style.pair is None else WHAT_LABELS_SAY
    before, after = style.pair or ("", "current")
    direction = "" if style.direction is None else escape(style.direction.name)
    said = names[style.label].format(before=before, after=after, direction=direction)
    if trace.graph.seq_len is None:
        said += f", {_WHERE.get(style.at, f'at position {style.at}')}"
    is_mixed = any(bool(((mask != 0) & (mask != 1)).any()) for mask in trace.masks.values())
    return said + ("; its mask in brackets" if is_mixed else "")


_WHERE: dict[Any, str] = {
    None: "at the position (@) of its largest change",
    "largest": "at the position (@) of its largest change",
    "last": "at the last position (@)",
}


def _batch_note(trace: Trace, batch_idx: BatchIdx) -> str:
    if batch_idx == "mean":
        return f" Means over the batch of {trace.batch}."
    if trace.batch > 1:
        return f" Prompt {batch_idx} of the batch of {trace.batch} (counted from 0)."
    return ""


def _n_weighted(trace: Trace | None, prune_scores: PruneScores | None) -> int:
    """How many edges might be drawn: those with a score, or those that were patched."""
    if prune_scores is not None:
        return sum(int(score.count_nonzero()) for score in prune_scores.values())
    return 0 if trace is None or trace.keeps else len(trace.edges)


def _score_note(drawn: list[DrawnEdge], threshold: float, scores: PruneScores) -> str:
    if not drawn:
        return f"No edge has |score| ≥ {mask_text(threshold)}."
    if is_circuit([one.weight for one in drawn]):
        return f"A circuit of {len(drawn):,} edges."
    said = f"Width: |score|. On {_which(drawn, '')}: its score."
    if getattr(scores, "signs", None) is None:
        said += " These scores do not say what they measure."
    return said


def _which(drawn: list[DrawnEdge], of_equals: str) -> str:
    if len(drawn) <= MOST_SHORT_LABELS:
        return "each edge"
    return f"the {MOST_SHORT_LABELS} widest{of_equals}"
