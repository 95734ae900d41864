"""What stands below a picture: what colours mean, what widths and labels say, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuit_trace.plan import PruneScores, is_circuit, n_not_zero
from circuit_trace.record import Record
from circuit_trace.visualize.colors import (
    APPEARED,
    BETWEEN,
    CURRENT,
    GREW,
    NEGATIVE,
    PATCHED,
    POSITIVE,
    SHRANK,
    TURNED,
    VANISHED,
    ZERO,
)
from circuit_trace.visualize.diagram import Legend
from circuit_trace.visualize.edges import MOST_SHORT_LABELS, DrawnEdge
from circuit_trace.visualize.text import escape, mask_text
from circuit_trace.visualize.view import View

LIVE_LEGEND = (
    (PATCHED, "patched (mask 1)"),
    (BETWEEN, "another mask"),
    (CURRENT, "current (mask 0)"),
)
PROJECTION_LEGEND = (
    (POSITIVE, "the change adds along {direction}"),
    (NEGATIVE, "the change takes away along {direction}"),
    (ZERO, "no change along it"),
)
CURRENT_PROJECTION_LEGEND = (
    (POSITIVE, "points along {direction}"),
    (NEGATIVE, "points against {direction}"),
    (ZERO, "neither"),
)
SCORE_LEGEND = ((POSITIVE, "positive score"), (NEGATIVE, "negative score"), (ZERO, "zero"))
CIRCUIT_LEGEND = ((POSITIVE, "in the circuit"),)
DIFFERENCE_LEGEND = (
    (APPEARED, "appeared"),
    (GREW, "grew"),
    (CURRENT, "unchanged"),
    (SHRANK, "shrank"),
    (VANISHED, "vanished"),
    (TURNED, "changed sign"),
)

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


_WHERE: dict[Any, str] = {
    None: "at the position (@) of its largest change",
    "largest": "at the position (@) of its largest change",
    "last": "at the last position (@)",
}


def score_legend(scores: PruneScores | None) -> Legend:
    """What the colours of scores mean; what their signs do to the metric where they know it."""
    signs = getattr(scores, "signs", None)
    if signs is None:
        return SCORE_LEGEND
    return (POSITIVE, escape(signs[0])), (NEGATIVE, escape(signs[1])), (ZERO, "zero")


def live_legend(view: View) -> Legend:
    """What the colours of a traced pass mean."""
    if view.width != "projection":
        return LIVE_LEGEND
    assert view.direction is not None
    direction = escape(view.direction.name)
    legend = CURRENT_PROJECTION_LEGEND if view.pair is None else PROJECTION_LEGEND
    return tuple((color, said.format(direction=direction)) for color, said in legend)


def live_note(view: View, drawn: Sequence[DrawnEdge], threshold: float) -> str:
    """What the widths and labels of a traced pass say."""
    trace = view.trace
    if not drawn:
        said = f"No edge has |mask| ≥ {mask_text(threshold)}."
        if not trace.edges:
            said += (
                " Nothing was patched in this pass; score_threshold=0 and width='received' draw it."
            )
        return outcome_note(trace) + said
    width = "1 − mask" if trace.keeps and view.width == "mask" else widths_say(view)
    if all(one.weight == 0 for one in drawn):
        width += " is 0 on every edge, so all are drawn as thin as can be"
    note = f"{outcome_note(trace)}Width: {width}."
    if isinstance(view.label, str):
        note += f" On {_which(drawn, ', of equals those that change most')}: {labels_say(view)}."
    if view.direction is not None and "projection" not in (view.label, view.width):
        note += f" Projections: on {escape(view.direction.name)}."
    if trace.keeps:
        note += f" These {len(trace.edges):,} edges are kept, all others patched."
    return note + batch_note(view)


def score_note(drawn: Sequence[DrawnEdge], threshold: float, scores: PruneScores) -> str:
    """What the widths and labels of scores say."""
    if not drawn:
        return f"No edge has |score| ≥ {mask_text(threshold)}."
    if is_circuit(scores):
        return f"A circuit of {n_not_zero(scores):,} edges."
    said = f"Width: |score|. On {_which(drawn, '')}: its score."
    if getattr(scores, "signs", None) is None:
        said += " These scores do not say what they measure."
    return said


def beside_note(view: View) -> str:
    """What is said of the pass that stands beside scores."""
    said = labels_say(view) if isinstance(view.label, str) else "its label"
    return f" Beside it: {said}.{batch_note(view)}"


def outcome_note(trace: Record) -> str:
    """What came of a pass, as a sentence of a caption; nothing where nothing was measured."""
    return "" if trace.outcome is None else f"{escape(str(trace.outcome))}. "


def batch_note(view: View) -> str:
    """Which prompt of several is shown."""
    if view.batch_idx == "mean":
        return f" Means over the batch of {view.trace.batch}."
    if view.trace.batch > 1:
        return f" Prompt {view.batch_idx} of the batch of {view.trace.batch} (counted from 0)."
    return ""


def widths_say(view: View) -> str:
    """What the widths of a traced pass stand for."""
    if view.width == "projection" and view.pair is None:
        return _filled("|current along {direction}|", view)
    return _filled(WHAT_WIDTHS_SAY[view.width], view)


def labels_say(view: View) -> str:
    """What the labels of a traced pass say, by their name."""
    said = _filled(
        (WHAT_LONE_LABELS_SAY if view.pair is None else WHAT_LABELS_SAY)[view.label], view
    )
    if view.trace.graph.seq_len is None:
        said += f", {_WHERE.get(view.at, f'at position {view.at}')}"
    masks = view.trace.masks.values()
    is_mixed = any(bool(((mask != 0) & (mask != 1)).any()) for mask in masks)
    return said + ("; its mask in brackets" if is_mixed else "")


def _filled(said: str, view: View) -> str:
    before, after = view.pair or ("", "current")
    direction = "" if view.direction is None else escape(view.direction.name)
    return said.format(before=before, after=after, direction=direction)


def _which(drawn: Sequence[DrawnEdge], of_equals: str) -> str:
    if len(drawn) <= MOST_SHORT_LABELS:
        return "each edge"
    return f"the {MOST_SHORT_LABELS} widest{of_equals}"
