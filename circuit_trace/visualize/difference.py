"""`draw_difference`: two passes, or two sets of scores, in one picture or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go
import torch

from circuit_trace.errors import FigureError, InputError
from circuit_trace.graph import Graph
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.trace import BatchIdx, Rows, Trace, check_same_graph
from circuit_trace.visualize.diagram import Orientation
from circuit_trace.visualize.draw import outcome_note, present
from circuit_trace.visualize.edges import (
    APPEARED,
    CURRENT,
    GREW,
    SHRANK,
    TURNED,
    VANISHED,
    DrawnEdge,
    LiveStyle,
    Width,
    edge_tag,
    numbers_above,
    strongest,
    widths_of,
)
from circuit_trace.visualize.options import (
    MAX_EDGES,
    WHAT_WIDTHS_SAY,
    ThemeName,
    check_max_edges,
    check_options,
    live_style,
    position_titles,
    theme_named,
)
from circuit_trace.visualize.panels import Picture, build_diagram
from circuit_trace.visualize.text import BREAK, escape, escape_name, mask_text, number
from circuit_trace.visualize.write import File

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

SAME = 0.01
"""Sizes that differ by less than this share of the larger one count as unchanged."""

LEGEND = (
    (APPEARED, "appeared"),
    (GREW, "grew"),
    (CURRENT, "unchanged"),
    (SHRANK, "shrank"),
    (VANISHED, "vanished"),
    (TURNED, "changed sign"),
)


def draw_difference(
    before: Trace | PruneScores,
    after: Trace | PruneScores,
    *,
    model: PatchableModel | Trace | None = None,
    side_by_side: bool = False,
    names: Sequence[str] = ("before", "after"),
    width: Width | None = None,
    direction: torch.Tensor | Sequence[float] | Sequence[str] | None = None,
    compare: Sequence[str] | None = None,
    score_threshold: float = 0.01,
    show_all_seq_pos: bool = False,
    seq_labels: Sequence[str] | None = None,
    layer_spacing: bool = False,
    orientation: Orientation = "h",
    batch_idx: BatchIdx = 0,
    max_edges: int | None = MAX_EDGES,
    theme: ThemeName = "light",
    display_ipython: bool = True,
    file_path: str | Path | None = None,
    include_plotlyjs: bool | Literal["cdn"] = True,
    page_width: float | None = None,
) -> go.Figure:
    """Draw what changed between two traced passes of one model, or between two sets of scores.

    An edge has two values, such as its masks or its scores. Colours tell whether it appeared (only
    the second value reaches the threshold), vanished, grew, shrank, changed its sign or stayed. In
    one diagram an edge is as wide as the larger value, labelled with both; side by side each
    diagram has its own values, in one scale.

    >>> import torch, circuit_trace as ct
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> few = {"blocks.1.hook_resid_post": torch.eye(11)[3]}
    >>> more = {"blocks.1.hook_resid_post": torch.eye(11)[3] * 2 + torch.eye(11)[4]}
    >>> figure = draw_difference(few, more, model=model)
    >>> [label.split("<br>")[1] for label in figure.data[0].link.label]
    ['grew: 1.00→2.00', 'appeared: 0.00→1.00']

    Args:
        before: The first `Trace`, or `PruneScores`.
        after: The second of the same kind and model.
        model: The model that scores belong to; traces need none.
        side_by_side: Draw two diagrams rather than one.
        names: What the two are called.
        width: For traces, what is compared, as in `draw_seq_graph`; None compares the masks where
            they differ, else ‖Δ‖, or ‖received‖ where nothing was patched. Anything but masks is
            compared on the edges that either pass patched or named, or on all where there are none;
            in a model without positions at the one where what the edge carries changed most.
        direction: As in `draw_seq_graph`.
        compare: As in `draw_seq_graph`, where ‖Δ‖ or projections are compared.
        score_threshold: The smallest |value| that is shown.
        show_all_seq_pos: As in `draw_seq_graph`, and so are all that follow.
        seq_labels: A label for each position.
        layer_spacing: Put every node at its layer's place.
        orientation: "h" from left to right, "v" from top to bottom.
        batch_idx: An element of the batch, or "mean".
        max_edges: At most so many edges are drawn: those that change most, and of those that change
            equally the widest.
        theme: "light" or "dark".
        display_ipython: Show the figure if this runs inside IPython.
        file_path: Write the figure too.
        include_plotlyjs: As in `draw_seq_graph`.
        page_width: As in `draw_seq_graph`.

    Raises:
        FigureError: The two cannot be compared, or as `draw_seq_graph`.
    """
    check_options(score_threshold, orientation)
    check_max_edges(max_edges)
    file = File.asked_for(file_path, include_plotlyjs, page_width)
    colors = theme_named(theme)
    names = _names(names)
    graph = _graph(before, after, model)
    titles = None
    if isinstance(before, Trace) and isinstance(after, Trace):
        titles = _titles(graph, (before, after), seq_labels, batch_idx)
        found, firsts, seconds, what = _flows(before, after, width, direction, compare, batch_idx)
    else:
        if any(one is not None for one in (width, direction, compare)):
            raise FigureError(
                "width, direction and compare are for traces; scores are compared themselves."
            )
        found, firsts, seconds = _scores(graph, before, after)
        what, titles = "|score|", position_titles(graph, None, seq_labels, batch_idx)
    pairs = list(zip(firsts, seconds, strict=True))
    reaching = [
        place
        for place, pair in enumerate(pairs)
        if max(map(abs, pair)) >= max(score_threshold, 1e-30)
    ]
    kept = [reaching[n] for n in strongest([_rank(pairs[p]) for p in reaching], max_edges)]
    union, sides = [], ([], [])
    for place in kept:
        pair = pairs[place]
        one = _drawn(graph, found[place], pair, score_threshold)
        union.append(one)
        for side, value in zip(sides, pair, strict=True):
            if abs(value) >= score_threshold:
                short = edge_tag(one.edge) + _text(value)
                side.append(replace(one, weight=value, short=short))
    shown = {names[0]: sides[0], names[1]: sides[1]} if side_by_side else {"": union}
    note = f"Width: {what}"
    if not side_by_side:
        note += f", the larger of both. On each edge: {escape(names[0])}→{escape(names[1])}"
    note += "."
    if isinstance(after, Trace) and after.batch > 1:
        which = (
            "Means over the batch" if batch_idx == "mean" else f"Prompt {batch_idx} of the batch"
        )
        note += f" {which} of {after.batch}."
    if not kept:
        note = f"Nothing reaches {mask_text(score_threshold)} in either."
    for name, side in zip(names, (before, after), strict=True):
        if isinstance(side, Trace) and side.outcome is not None:
            note += f" {escape(name)}: {outcome_note(side).strip()}"
    n_left_out = len(reaching) - len(kept)
    if n_left_out:
        note += f" Not drawn: {n_left_out:,} edges that change less (max_edges={max_edges})."
    diagram = build_diagram(
        Picture(graph, shown, titles, note, LEGEND),
        show_all_seq_pos=show_all_seq_pos,
        layer_spacing=layer_spacing,
        orientation=orientation,
    )
    return present(diagram, colors, display_ipython, file)


def _graph(before: Any, after: Any, model: Any) -> Graph:
    if isinstance(before, Trace) != isinstance(after, Trace):
        raise FigureError("Compare two traces, or two sets of scores; got one of each.")
    if isinstance(before, Trace):
        try:
            check_same_graph(before, after)
        except InputError as error:
            raise FigureError(str(error)) from error
        return after.graph
    graph = model if isinstance(model, Graph) else getattr(model, "graph", None)
    if not isinstance(graph, Graph):
        raise FigureError(
            "Scores need the model that they belong to: draw_difference(before, after, model=model)."
        )
    return graph


def _titles(
    graph: Graph, traces: Sequence[Trace], seq_labels: Sequence[str] | None, batch_idx: BatchIdx
) -> Sequence[str] | None:
    """The labels of the positions; where the two prompts differ, both tokens."""
    every = [position_titles(graph, trace, seq_labels, batch_idx) for trace in traces]
    first, second = every
    if first is None or second is None:
        return second
    pairs = zip(first, second, strict=True)
    return [one if one == other else f"{one.strip()} / {other.strip()}" for one, other in pairs]


def _names(names: Any) -> tuple[str, str]:
    listed = [str(name) for name in names] if isinstance(names, list | tuple) else []
    if len(listed) != 2 or listed[0] == listed[1] or not all(listed):
        raise FigureError(f"names must be two different names; got {names!r}.")
    return listed[0], listed[1]


Compared = tuple[list[int], list[float], list[float]]
"""Numbers of edges, and their values in the first and the second."""


def _scores(graph: Graph, before: Any, after: Any) -> Compared:
    checked = [
        check_scores(graph, scores, f"The {which} scores")
        for which, scores in (("first", before), ("second", after))
    ]
    maps = [dict(zip(*numbers_above(graph, one, 0.0), strict=True)) for one in checked]
    found = sorted(n for n in maps[0].keys() | maps[1].keys() if any(m.get(n) for m in maps))
    first, second = ([values.get(n, 0.0) for n in found] for values in maps)
    return found, first, second


def _flows(
    before: Trace, after: Trace, width: Any, direction: Any, compare: Any, batch_idx: BatchIdx
) -> tuple[list[int], list[float], list[float], str]:
    masks = _scores(after.graph, before.masks, after.masks)
    if width is None:
        is_patched = before.patched is not None and after.patched is not None
        width = "delta" if is_patched else "received"
        width = "mask" if masks[1] != masks[2] else width
    if width == "mask":
        return *masks, WHAT_WIDTHS_SAY["mask"]
    values: list[list[float]] = []
    is_change = width in ("delta", "projection") and (before.patched or after.patched)
    found = sorted({n for trace in (before, after) for n in trace.edges.numbers})
    found = found or list(range(after.graph.n_edges))
    edges = [after.graph.edge_at(n) for n in found]
    where = before.diff(after).changed_most(Rows.of(after.graph, edges), batch_idx)
    style = LiveStyle()
    for which, trace in (("first", before), ("second", after)):
        if is_change and trace.patched is None:  # nothing was changed along any edge
            values.append([0.0] * len(edges))
            continue
        style = replace(live_style(trace, None, None, width, direction, compare), at=where)
        widths = widths_of(style.numbers(trace, edges, batch_idx), style).double()
        if not bool(widths.isfinite().all()):
            place = int(widths.isfinite().int().argmin())
            raise FigureError(
                f"Cannot compare {width!r}: in the {which} pass it is {float(widths[place])} for the "
                f"edge {str(edges[place])!r}."
            )
        values.append(widths.tolist())
    name = "" if style.direction is None else style.direction.name
    first, second = style.pair or ("", "current")
    what = WHAT_WIDTHS_SAY[width].format(direction=name, before=first, after=second)
    if width == "projection" and style.pair is None:
        what = f"|current along {name}|"
    if after.graph.seq_len is None:
        what += " at the position where what the edge carries changed most"
    return found, values[0], values[1], what


def _rank(values: tuple[float, float]) -> float:
    """How much an edge changes, and by a hair how large it is."""
    before, after = values
    return abs(after - before) + 1e-9 * max(abs(before), abs(after))


def _drawn(graph: Graph, number: int, values: tuple[float, float], threshold: float) -> DrawnEdge:
    edge = graph.edge_at(number)
    change = f"{_text(values[0])}→{_text(values[1])}"
    color = _color(*values, threshold)
    said = f"{dict(LEGEND)[color]}: {change}"
    label = BREAK.join([escape_name(edge.name), said])
    short = edge_tag(edge) + change
    return DrawnEdge(edge, max(values, key=abs), label, short, color, _rank(values))


def _color(before: float, after: float, threshold: float) -> str:
    was, now = (value != 0 and abs(value) >= threshold for value in (before, after))
    if was != now:
        return APPEARED if now else VANISHED
    if before * after < 0:
        return TURNED
    if abs(abs(after) - abs(before)) <= SAME * max(abs(before), abs(after)):
        return CURRENT
    return GREW if abs(after) > abs(before) else SHRANK


def _text(value: float) -> str:
    return mask_text(value) if abs(value) < 10 else number(value)
