"""What a picture shows, before any of it has a place: a traced pass, scores, or both side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from circuit_trace.graph import Graph
from circuit_trace.plan import PruneScores, is_circuit, n_not_zero
from circuit_trace.visualize.caption import (
    CIRCUIT_LEGEND,
    LIVE_LEGEND,
    beside_note,
    live_legend,
    live_note,
    outcome_note,
    score_legend,
    score_note,
)
from circuit_trace.visualize.companion import Table, live_table, score_table
from circuit_trace.visualize.diagram import Legend
from circuit_trace.visualize.edges import (
    DrawnEdge,
    beside_scores,
    hidden_counts,
    live_edges,
    live_numbers,
    score_numbers,
    scored_edges,
)
from circuit_trace.visualize.style import Style
from circuit_trace.visualize.text import mask_text
from circuit_trace.visualize.view import View

Titles = Sequence[str] | None
"""The labels of the positions."""


@dataclass(frozen=True)
class Picture:
    """The edges that a figure draws and the words around them.

    `sides` are drawn side by side, each below its heading; one alone has none, "". `hidden` counts
    the edges left out at each position.
    """

    graph: Graph
    sides: Mapping[str, Sequence[DrawnEdge]]
    titles: Titles
    note: str
    legend: Legend
    hidden: Mapping[int | None, int] = field(default_factory=dict)
    table: Table | None = None


def live_picture(view: View, style: Style, titles: Titles, *, has_table: bool) -> Picture:
    """The edges of a traced pass."""
    trace, threshold = view.trace, style.score_threshold
    drawn = live_edges(view, threshold, style.max_edges)
    n_patched = 0 if trace.keeps else len(trace.edges)
    hidden, left_out = _left_out(
        trace.graph, drawn, lambda: live_numbers(trace, threshold), style, n_patched, "patched"
    )
    return Picture(
        trace.graph,
        {"": drawn},
        titles,
        live_note(view, drawn, threshold) + left_out,
        live_legend(view),
        hidden,
        live_table(view, drawn, titles) if has_table and drawn else None,
    )


def score_picture(
    graph: Graph,
    scores: PruneScores,
    style: Style,
    titles: Titles,
    *,
    has_table: bool,
    beside: View | None = None,
) -> Picture:
    """The edges of scores; with a traced pass, `beside` them the same edges as it has them."""
    threshold = style.score_threshold
    drawn = scored_edges(graph, scores, threshold, style.max_edges)
    n_scored = n_not_zero(scores)
    hidden, left_out = _left_out(
        graph, drawn, lambda: score_numbers(graph, scores, threshold), style, n_scored, "scored"
    )
    note = score_note(drawn, threshold, scores)
    legend = CIRCUIT_LEGEND if is_circuit(scores) else score_legend(scores)
    sides, table = {"": drawn}, None
    if beside is not None and drawn:
        sides = {"score": drawn, "live": beside_scores(beside, drawn)}
        note = outcome_note(beside.trace) + note + beside_note(beside)
        legend += LIVE_LEGEND
        table = live_table(beside, drawn, titles, are_scores=True) if has_table else None
    elif has_table and drawn:
        table = score_table(drawn, titles)
    return Picture(graph, sides, titles, note + left_out, legend, hidden, table)


def _left_out(
    graph: Graph,
    drawn: Sequence[DrawnEdge],
    found: Callable[[], Sequence[int]],
    style: Style,
    n_weighted: int,
    kind: str,
) -> tuple[dict[int | None, int], str]:
    """How many of the `found` edges are not drawn at each position, and what is said of these and of
    those below the threshold, out of `n_weighted` in all."""
    hidden, said = {}, ""
    if len(drawn) == style.max_edges:
        hidden = hidden_counts(graph, found(), drawn)
    n_hidden = sum(hidden.values())
    if n_hidden:
        said = f" Not drawn: {n_hidden:,} edges that rank lower (max_edges={style.max_edges})."
    n_below = n_weighted - len(drawn) - n_hidden
    if n_below > 0:
        said += (
            f" Below the threshold of {mask_text(style.score_threshold)}: {n_below:,} {kind} "
            f"{'edge' if n_below == 1 else 'edges'}."
        )
    return hidden, said
