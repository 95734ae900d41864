"""The table that may stand below a picture: a row of numbers for every edge that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from circuit_trace.record import arrow, edge_table
from circuit_trace.visualize.edges import N_TOKENS, DrawnEdge
from circuit_trace.visualize.text import (
    escape,
    escape_name,
    mask_text,
    number,
    text_size,
    token_label,
)
from circuit_trace.visualize.view import View

FONT_SIZE = 11
ROW_HEIGHT, HEADER_HEIGHT = 30.0, 30.0
"""Pixels; Plotly makes rows less than 8 pixels above and below their text taller by itself."""
GAP = 12
"""Pixels that a column is wider than its longest cell."""


@dataclass(frozen=True)
class Table:
    """Cells as text, column by column, with the pixels that each column needs."""

    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    are_numbers: tuple[bool, ...]

    @property
    def widths(self) -> tuple[float, ...]:
        """Pixels of each column."""
        return tuple(
            GAP + max(text_size(cell, FONT_SIZE)[0] for cell in (name, *cells))
            for name, cells in zip(self.names, self.columns, strict=True)
        )

    @property
    def height(self) -> float:
        """Pixels of all rows and the header."""
        return HEADER_HEIGHT + ROW_HEIGHT * len(self.columns[0]) + 2


def score_table(drawn: Sequence[DrawnEdge], titles: Sequence[str] | None) -> Table:
    """The drawn edges of given scores."""
    scores = [mask_text(one.weight) for one in drawn]
    return _table(drawn, titles, {"score": scores})


_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "at": ("at", str),
    "mask": ("mask", mask_text),
    "clean_norm": ("‖clean‖", number),
    "current_norm": ("‖current‖", number),
    "patched_norm": ("‖patched‖", number),
    "received_norm": ("‖received‖", number),
    "delta_norm": ("‖Δ‖", number),
    "cosine": ("cosine", number),
    **{
        f"{which}_projection": (f"{which} projection", number)
        for which in ("clean", "current", "patched", "received")
    },
    "promotes": ("promotes", lambda tokens: " · ".join(map(token_label, tokens))),
    "suppresses": ("suppresses", lambda tokens: " · ".join(map(token_label, tokens))),
}
"""The columns of `Trace.table` that are shown: their name here, and how a cell is written."""

_NUMBERS = {"score", *(name for name, write in _FORMATS.values() if write in (mask_text, number))}


def live_table(
    view: View,
    drawn: Sequence[DrawnEdge],
    titles: Sequence[str] | None,
    *,
    are_scores: bool = False,
) -> Table:
    """The drawn edges of a traced pass, with their scores where they are drawn for these."""
    numbers = edge_table(
        view.trace,
        [one.edge for one in drawn],
        view.batch_idx,
        direction=view.direction,
        n_tokens=N_TOKENS if view.label == "tokens" else 0,
        compare=view.pair,
        at=view.at,
    )
    if view.trace.graph.seq_len is not None:
        del numbers["at"]  # it is the edge's position
    names = {"delta_norm": f"‖Δ‖ {arrow(view.pair)}"} if view.pair else {}
    if callable(view.label):
        numbers["label"] = [one.short for one in drawn]
    scores = {"score": [mask_text(one.weight) for one in drawn]} if are_scores else {}
    return _table(drawn, titles, scores | _cells(numbers, names))


def _cells(numbers: pd.DataFrame, names: dict[str, str]) -> dict[str, list[str]]:
    columns = {}
    for column, (name, write) in _FORMATS.items():
        if column in numbers and not numbers[column].isna().all():
            columns[names.get(column, name)] = [write(cell) for cell in numbers[column]]
    if "label" in numbers:
        columns["label"] = list(numbers["label"])
    return columns


def _table(
    drawn: Sequence[DrawnEdge], titles: Sequence[str] | None, cells: dict[str, list[str]]
) -> Table:
    columns: dict[str, list[str]] = {}
    if any(one.edge.seq_idx is not None for one in drawn):
        columns["position"] = [_position(one.edge.seq_idx, titles) for one in drawn]
    columns["edge"] = [escape_name(one.edge.name) for one in drawn]
    columns |= cells
    return Table(
        tuple(map(escape, columns)),
        tuple(tuple(column) for column in columns.values()),
        tuple(name in _NUMBERS or name.startswith("‖") for name in columns),
    )


def _position(at: int | None, titles: Sequence[str] | None) -> str:
    if at is None:
        return ""
    return f"{at}" if titles is None else f"{at} {token_label(titles[at])}"
