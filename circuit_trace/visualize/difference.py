"""`draw_difference`: two passes, or two sets of scores, in one picture or side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
import torch

from circuit_trace.engine import Engine
from circuit_trace.errors import FigureError, FormatError, InputError
from circuit_trace.graph import Edge, Graph, graph_for
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.record import BatchIdx, Record, RecordDiff, Rows, check_same_graph
from circuit_trace.visualize.caption import (
    DIFFERENCE_LEGEND,
    WHAT_WIDTHS_SAY,
    outcome_note,
    widths_say,
)
from circuit_trace.visualize.colors import (
    APPEARED,
    CURRENT,
    GREW,
    SHRANK,
    TURNED,
    VANISHED,
    ThemeName,
)
from circuit_trace.visualize.diagram import Orientation
from circuit_trace.visualize.edges import (
    DrawnEdge,
    edge_tag,
    numbers_above,
    strongest,
    widths_of,
)
from circuit_trace.visualize.picture import Picture
from circuit_trace.visualize.present import present
from circuit_trace.visualize.source import position_titles
from circuit_trace.visualize.style import MAX_EDGES, Style
from circuit_trace.visualize.text import BREAK, escape, escape_name, mask_text, number
from circuit_trace.visualize.view import View, Width
from circuit_trace.visualize.write import File

SAME = 0.01
"""Sizes that differ by less than this share of the larger one count as unchanged."""


def draw_difference(
    before: Record | PruneScores,
    after: Record | PruneScores,
    *,
    model: Engine | Record | None = None,
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
    style = Style(score_threshold, show_all_seq_pos, layer_spacing, orientation, max_edges, theme)
    file = File.asked_for(file_path, include_plotlyjs, page_width)
    names = _names(names)
    graph = _graph(before, after, model)
    asked = {"width": width, "direction": direction, "compare": compare}
    if isinstance(before, Record) and isinstance(after, Record):
        titles = _titles(graph, (before, after), seq_labels, batch_idx)
        compared = _flows(before, after, batch_idx, asked)
    elif any(one is not None for one in asked.values()):
        raise FigureError(
            "width, direction and compare are for traces; scores are compared themselves."
        )
    else:
        titles = position_titles(graph, None, seq_labels, batch_idx)
        compared = _Compared.scores(graph, before, after, "|score|")
    reaching = compared.above(score_threshold)
    kept = reaching.most_changed(max_edges)
    sides = _sides(graph, kept, names, score_threshold, side_by_side)
    note = _note(kept, names, (before, after), style, batch_idx, side_by_side)
    n_left_out = len(reaching.numbers) - len(kept.numbers)
    if n_left_out:
        note += f" Not drawn: {n_left_out:,} edges that change less (max_edges={max_edges})."
    picture = Picture(graph, sides, titles, note, DIFFERENCE_LEGEND)
    return present(picture, style, display_ipython, file)


def _graph(before: Any, after: Any, model: Any) -> Graph:
    if isinstance(before, Record) != isinstance(after, Record):
        raise FigureError("Compare two traces, or two sets of scores; got one of each.")
    if isinstance(before, Record):
        try:
            check_same_graph(before, after)
        except InputError as error:
            raise FigureError(str(error)) from error
        return after.graph
    try:
        return graph_for(before, model)
    except (FormatError, InputError) as error:
        raise FigureError(
            "Scores that do not tell their model need it: draw_difference(before, after, model=model). "
            f"{error}"
        ) from error


def _titles(
    graph: Graph, traces: Sequence[Record], seq_labels: Sequence[str] | None, batch_idx: BatchIdx
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


@dataclass(frozen=True)
class _Compared:
    """Edges by their numbers, with the values of each in the first and the second, and what these
    are."""

    numbers: list[int]
    pairs: list[tuple[float, float]]
    what: str

    @classmethod
    def scores(cls, graph: Graph, before: Any, after: Any, what: str) -> _Compared:
        """Two sets of scores, at the edges that either has."""
        checked = [
            check_scores(graph, scores, f"The {which} scores")
            for which, scores in (("first", before), ("second", after))
        ]
        maps = [dict(zip(*numbers_above(graph, one, 0.0), strict=True)) for one in checked]
        found = sorted(n for n in maps[0].keys() | maps[1].keys() if any(m.get(n) for m in maps))
        return cls(found, [(maps[0].get(n, 0.0), maps[1].get(n, 0.0)) for n in found], what)

    def at(self, places: Iterable[int]) -> _Compared:
        """Some of them."""
        chosen = list(places)
        return _Compared(
            [self.numbers[n] for n in chosen], [self.pairs[n] for n in chosen], self.what
        )

    def above(self, threshold: float) -> _Compared:
        """Those that reach the threshold in either."""
        least = max(threshold, 1e-30)
        return self.at(n for n, pair in enumerate(self.pairs) if max(map(abs, pair)) >= least)

    def most_changed(self, most: int | None) -> _Compared:
        """At most so many, those that change most."""
        return self.at(strongest([_rank(pair) for pair in self.pairs], most))


def _flows(
    before: Record, after: Record, batch_idx: BatchIdx, asked: Mapping[str, Any]
) -> _Compared:
    """What flowed along the edges that either pass patched or named, or their masks."""
    masks = _Compared.scores(after.graph, before.masks, after.masks, WHAT_WIDTHS_SAY["mask"])
    width = asked["width"]
    if width is None:
        is_patched = before.patched is not None and after.patched is not None
        width = "delta" if is_patched else "received"
        width = "mask" if any(one != other for one, other in masks.pairs) else width
    if width == "mask":
        return masks
    found = sorted({n for trace in (before, after) for n in trace.edges.numbers})
    found = found or list(range(after.graph.n_edges))
    edges = [after.graph.edge_at(n) for n in found]
    where = RecordDiff(before, after).changed_most(Rows.of(after.graph, edges), batch_idx)
    values, what = [], ""
    is_change = width in ("delta", "projection") and (before.patched or after.patched)
    for which, trace in (("first", before), ("second", after)):
        if is_change and trace.patched is None:  # nothing was changed along any edge
            values.append([0.0] * len(edges))
            continue
        view = replace(View.of(trace, batch_idx, **{**asked, "width": width}), at=where)
        values.append(_finite_widths(view, edges, which))
        what = widths_say(view)
    if after.graph.seq_len is None:
        what += " at the position where what the edge carries changed most"
    return _Compared(found, list(zip(*values, strict=True)), what)


def _finite_widths(view: View, edges: Sequence[Edge], which: str) -> list[float]:
    widths = widths_of(view.numbers(edges), view).double()
    if not bool(widths.isfinite().all()):
        place = int(widths.isfinite().int().argmin())
        raise FigureError(
            f"Cannot compare {view.width!r}: in the {which} pass it is {float(widths[place])} for the "
            f"edge {str(edges[place])!r}."
        )
    return widths.tolist()


def _sides(
    graph: Graph,
    compared: _Compared,
    names: tuple[str, str],
    threshold: float,
    side_by_side: bool,
) -> dict[str, list[DrawnEdge]]:
    """What is drawn: each edge once with both values, or on each side where its value reaches the
    threshold."""
    pairs = compared.pairs
    union = [
        _drawn(graph, number, pair, threshold)
        for number, pair in zip(compared.numbers, pairs, strict=True)
    ]
    if not side_by_side:
        return {"": union}
    return {
        name: [
            replace(one, weight=pair[side], short=edge_tag(one.edge) + _text(pair[side]))
            for one, pair in zip(union, pairs, strict=True)
            if abs(pair[side]) >= threshold
        ]
        for side, name in enumerate(names)
    }


def _note(
    compared: _Compared,
    names: tuple[str, str],
    sides: Sequence[Any],
    style: Style,
    batch_idx: BatchIdx,
    side_by_side: bool,
) -> str:
    """What widths and labels say, and what came of each pass."""
    note = f"Width: {compared.what}"
    if not side_by_side:
        note += f", the larger of both. On each edge: {escape(names[0])}→{escape(names[1])}"
    note += "."
    after = sides[1]
    if isinstance(after, Record) and after.batch > 1:
        which = (
            "Means over the batch" if batch_idx == "mean" else f"Prompt {batch_idx} of the batch"
        )
        note += f" {which} of {after.batch}."
    if not compared.numbers:
        note = f"Nothing reaches {mask_text(style.score_threshold)} in either."
    for name, side in zip(names, sides, strict=True):
        if isinstance(side, Record) and side.outcome is not None:
            note += f" {escape(name)}: {outcome_note(side).strip()}"
    return note


def _rank(values: tuple[float, float]) -> float:
    """How much an edge changes, and by a hair how large it is."""
    before, after = values
    return abs(after - before) + 1e-9 * max(abs(before), abs(after))


def _drawn(graph: Graph, number: int, values: tuple[float, float], threshold: float) -> DrawnEdge:
    edge = graph.edge_at(number)
    change = f"{_text(values[0])}→{_text(values[1])}"
    color = _color(*values, threshold)
    said = f"{dict(DIFFERENCE_LEGEND)[color]}: {change}"
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
