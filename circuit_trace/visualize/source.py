"""What a picture is of: the graph, the trace where there is one, and the names of its positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from circuit_trace.engine import Engine
from circuit_trace.errors import FigureError, NoTraceError
from circuit_trace.graph import Graph, whole_number
from circuit_trace.plan import PruneScores
from circuit_trace.record import BatchIdx, Record


def source(
    model: Engine | Record | Graph, prune_scores: PruneScores | None
) -> tuple[Graph, Record | None]:
    """The graph to draw on and, where there is one, the trace."""
    if isinstance(model, Record):
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
    graph: Graph, trace: Record | None, seq_labels: Sequence[str] | None, batch_idx: BatchIdx
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


def check_side_by_side(trace: Record | None, prune_scores: PruneScores | None, width: Any) -> None:
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
