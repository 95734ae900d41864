"""What a user asks of a picture, checked; every wrong option is refused with what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from circuit_trace.errors import FigureError, InputError, NoTraceError
from circuit_trace.graph import Graph, whole_number
from circuit_trace.plan import PruneScores
from circuit_trace.record import BatchIdx, Direction, lens_of, pair_of, read_at
from circuit_trace.trace import Trace
from circuit_trace.visualize.edges import PLAIN, LiveStyle
from circuit_trace.visualize.sankey import THEMES, Theme

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

ThemeName = Literal["light", "dark"]

MAX_EDGES = 500
"""How many edges a figure shows unless more are asked for: enough for a circuit, few enough for a
browser."""


def chosen_position(graph: Graph, numbers: set[int], seq_idx: Any) -> int | None:
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


def interval(given: Any) -> tuple[float, float]:
    """The diagram's place in a figure's height."""
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


def check_size(size: Any) -> None:
    """Raise FigureError where this is no size in pixels."""
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    if not is_pair or not all(isinstance(n, int | float) and 0 < n < 1e5 for n in size):
        raise FigureError(f"size must be (width, height) in pixels, both above 0; got {size!r}.")


def check_options(score_threshold: float, orientation: str) -> None:
    """Raise FigureError where the threshold or orientation is out of range."""
    if orientation not in ("h", "v"):
        raise FigureError(
            f"orientation must be 'h' (left to right) or 'v' (top to bottom); got {orientation!r}."
        )
    if (
        isinstance(score_threshold, bool)
        or not isinstance(score_threshold, Real)
        or not (score_threshold >= 0)
    ):
        raise FigureError(f"score_threshold must be a number, 0 or more; got {score_threshold!r}.")


def source(
    model: PatchableModel | Trace | Graph, prune_scores: PruneScores | None
) -> tuple[Graph, Trace | None]:
    """The graph to draw on and, where there is one, the trace."""
    if isinstance(model, Trace):
        return model.graph, model
    if isinstance(model, Graph):
        if prune_scores is None:
            raise FigureError("A graph alone has nothing to draw: give prune_scores, or a Trace.")
        return model, None
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


def position_titles(
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
    if trace is not None:
        trace.check_batch_idx(batch_idx)
    if graph.seq_len is None or trace is None or batch_idx == "mean":
        return None
    strings = trace.token_strings(batch_idx)
    return strings if strings is not None and len(strings) == graph.seq_len else None


WHAT_LABELS_SAY: dict[Any, str] = {
    "norms": "‖{before}‖→‖{after}‖ Δ‖{after} − {before}‖",
    "cosine": "the cosine of {before} and {after}",
    "projection": "{before}→{after} along {direction}",
    "tokens": "the tokens whose logits {after} − {before} raises and lowers most",
    "values": "the first values of what it carried",
}
WHAT_LONE_LABELS_SAY: dict[Any, str] = {
    "norms": "‖current‖ of what its source wrote",
    "projection": "current along {direction}",
    "tokens": "the tokens whose logits what its source wrote raises and lowers most",
    "values": "the first values of what it carried",
}
"""Where there is nothing to compare with."""
WHAT_WIDTHS_SAY: dict[Any, str] = {
    "mask": "|mask|",
    "delta": "‖{after} − {before}‖",
    "received": "‖received‖",
    "projection": "|{after} − {before}| along {direction}",
}


def live_style(
    trace: Trace | None,
    prune_scores: PruneScores | None,
    label: Any,
    width: Any,
    direction: Any,
    compare: Any = None,
    at: Any = None,
) -> LiveStyle:
    """Check what a user asks for on the edges of a traced pass."""
    asked = (label, width, direction, compare, at)
    if prune_scores is not None and any(one is not None for one in asked):
        raise FigureError(
            "label, width, direction, compare and at are for the activations of a traced pass; with "
            "prune_scores the scores alone are drawn. Leave either out."
        )
    if label is None and width == "projection":
        label = "projection"  # an edge says what its width shows
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
        for name, own in (("width", width), ("label", label))
        if own == "projection"
    ]
    if needs and direction is None and trace.outcome is not None:
        direction = trace.outcome.answers
    if needs and direction is None:
        raise FigureError(
            f"{needs[0]} needs direction=: two tokens such as (' Mary', ' John'), or a vector of "
            "d_model numbers."
        )
    try:
        pair = pair_of(trace, compare)
        found = None if direction is None else Direction.read(trace, direction)
        if label == "tokens":
            lens_of(trace, 0)  # refuse before anything is drawn
        where = read_at(at, trace.seq, trace.graph.seq_len)
    except InputError as error:
        raise FigureError(str(error)) from error
    if pair is None and (label == "cosine" or width == "delta"):
        raise FigureError(
            "Nothing was patched in this pass, so there is no change to show: label="
            f"{label!r}, width={width!r}. Trace it with corrupt= or patched=."
        )
    if at is None and where is not None and (found is not None or label == "tokens"):
        where = "last"  # where the answer is read
    return replace(style, direction=found, pair=pair, at=where)


def check_side_by_side(trace: Trace | None, prune_scores: PruneScores | None, width: Any) -> None:
    """Raise where there are no two things to stand side by side."""
    if prune_scores is None:
        raise FigureError(
            "side_by_side draws scores and, beside them, the traced pass: give prune_scores, or leave "
            "it out."
        )
    if trace is None:
        raise NoTraceError(
            "Nothing was traced yet, so no pass can stand beside the scores. Run one, such as "
            "model.trace(clean, corrupt=corrupt, masks=ct.circuit(scores, n_edges=20)), or leave "
            "side_by_side out."
        )
    if width is not None:
        raise FigureError("Side by side, edges are as wide as their scores: leave width out.")


def theme_named(name: Any) -> Theme:
    """The theme of this name."""
    if not isinstance(name, str) or name not in THEMES:
        raise FigureError(f"theme must be one of {', '.join(THEMES)}; got {name!r}.")
    return THEMES[name]


def check_max_edges(max_edges: Any) -> None:
    """Raise FigureError where this is no number of edges."""
    if max_edges is None:
        return
    number = whole_number(max_edges)
    if number is None or number < 1:
        raise FigureError(f"max_edges must be a whole number above 0, or None; got {max_edges!r}.")
