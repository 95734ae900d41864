"""How a traced pass is looked at: what a picture says about its edges, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuit_trace.errors import FigureError, InputError
from circuit_trace.graph import Edge
from circuit_trace.plan import PruneScores
from circuit_trace.record import (
    BatchIdx,
    Direction,
    EdgeFlow,
    EdgeNumbers,
    Pair,
    Record,
    edge_numbers,
    lens_of,
    pair_of,
    read_at,
)

LabelName = Literal["norms", "cosine", "projection", "tokens", "values"]
Label = LabelName | Callable[[EdgeFlow], str]
"""What the label of an edge of a traced pass says."""
Width = Literal["mask", "delta", "received", "projection"]
"""What the width of an edge of a traced pass stands for."""


@dataclass(frozen=True, eq=False)
class View:
    """A traced pass, and how its edges are looked at: which element of the batch, what their labels
    and widths say, what outputs are projected on, which two are compared, and at which position of a
    model without positions (see `edge_numbers`)."""

    trace: Record
    batch_idx: BatchIdx = 0
    label: Label = "norms"
    width: Width = "mask"
    direction: Direction | None = None
    pair: Pair | None = None
    at: Any = None

    @classmethod
    def of(
        cls,
        trace: Record,
        batch_idx: Any = 0,
        *,
        label: Any = None,
        width: Any = None,
        direction: Any = None,
        compare: Any = None,
        at: Any = None,
    ) -> View:
        """What a user asks for, checked.

        Raises:
            InputError: There is no such element of the batch.
            FigureError: There is no such label or width, or the pass cannot be looked at so.
        """
        trace.check_batch_idx(batch_idx)
        label, width = _said(label, width)
        if direction is None and trace.outcome is not None and "projection" in (label, width):
            direction = trace.outcome.answers
        _check_direction(label, width, direction)
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
        return cls(trace, batch_idx, label, width, found, pair, where)

    def numbers(self, edges: Sequence[Edge], n_values: int = 0) -> EdgeNumbers:
        """The numbers of some edges, looked at so."""
        return edge_numbers(
            self.trace, edges, self.batch_idx, n_values, self.direction, self.pair, self.at
        )


def view_of(
    trace: Record | None, scores: PruneScores | None, batch_idx: Any, asked: Mapping[str, Any]
) -> View | None:
    """How a traced pass is looked at; None where scores alone are drawn.

    Raises:
        FigureError: Something is asked of scores that only a pass can show, or as `View.of`.
    """
    if scores is None:
        return None if trace is None else View.of(trace, batch_idx, **asked)
    if any(one is not None for one in asked.values()):
        raise FigureError(
            "label, width, direction, compare and at are for the activations of a traced pass; with "
            "prune_scores the scores alone are drawn. Leave either out."
        )
    return None


def _said(label: Any, width: Any) -> tuple[Label, Width]:
    """What labels and widths say; where only the width is a projection, the label says it too."""
    if label is None:
        label = "projection" if width == "projection" else "norms"
    width = "mask" if width is None else width
    labels, widths = get_args(LabelName), get_args(Width)
    if not callable(label) and not (isinstance(label, str) and label in labels):
        raise FigureError(
            f"label must be one of {', '.join(labels)}, or a function of an EdgeFlow; got {label!r}."
        )
    if not (isinstance(width, str) and width in widths):
        raise FigureError(f"width must be one of {', '.join(widths)}; got {width!r}.")
    return label, width  # pyright: ignore[reportReturnType]


def _check_direction(label: Label, width: Width, direction: Any) -> None:
    """Raise where a projection is asked for and nothing says on what."""
    name = "width" if width == "projection" else "label" if label == "projection" else None
    if name is not None and direction is None:
        raise FigureError(
            f"{name}=\"projection\" needs direction=: two tokens such as (' Mary', ' John'), or a "
            "vector of d_model numbers."
        )
