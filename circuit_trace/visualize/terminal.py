"""A trace in the terminal: `rich.print(trace)`."""

from __future__ import annotations

import math

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from circuit_trace.record import Pair, Record, edge_table, pair_of
from circuit_trace.visualize.colors import BETWEEN, CURRENT, PATCHED
from circuit_trace.visualize.edges import strongest
from circuit_trace.visualize.text import mask_text, number, visible

MOST_ROWS = 40
"""Edges beyond these, those that change least, are only counted."""
BAR = 8
"""Characters of the longest bar."""


def terminal_table(trace: Record) -> Table:
    """The patched or named edges of a pass (the strongest where there are none), a row each.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> from rich.console import Console
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> Console(width=80).print(terminal_table(trace))  # doctest: +NORMALIZE_WHITESPACE
    <Trace: batch 1, seq 15, 11 sources, 1 edge patched>
    <BLANKLINE>
     position  edge             mask  clean  received  cosine  Δ
     ───────────────────────────────────────────────────────────────────────
     14 to     A1.0->Resid End  1.00   2.27      5.99  0.0229  6.36 ━━━━━━━━
    <BLANKLINE>
    L2 norms, Δ = received − clean, at each edge's largest change
    """
    pair = pair_of(trace)
    before, after = pair or ("", "current")
    numbers = edge_table(trace, trace.listed, 0)
    ranked = numbers["delta_norm" if pair else "current_norm"]
    kept = strongest(ranked.fillna(0).tolist(), MOST_ROWS)
    more = len(numbers) - len(kept)
    shown = numbers.iloc[kept]
    largest = ranked[ranked.notna() & (ranked < math.inf)].max() if len(kept) else 0.0
    table = Table(
        title=Text(repr(trace)),
        title_justify="left",
        title_style="bold",
        caption=_caption(trace, pair) + (f", and {more:,} edges that rank lower" if more else ""),
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("position", no_wrap=True)
    table.add_column("edge", no_wrap=True)
    for name in ("mask", before, after, "cosine") if pair else (after,):
        table.add_column(name, justify="right")
    table.add_column("Δ" if pair else "", no_wrap=True)
    for row, strength in zip(shown.to_dict("records"), ranked.iloc[kept], strict=True):
        color = PATCHED if row["mask"] == 1 else CURRENT if row["mask"] == 0 else BETWEEN
        cells = [Text(_position(row["at"], row["token"]))]
        cells.append(Text(row["edge"], style=f"bold {color}"))
        if pair:
            cells += [Text(mask_text(row["mask"])), Text(number(row[f"{before}_norm"]))]
        cells.append(Text(number(row[f"{after}_norm"])))
        if pair:
            cells.append(Text(number(row["cosine"])))
        length = round(BAR * strength / largest) if largest > 0 and math.isfinite(strength) else 0
        bar = Text(f"{number(strength)} " if pair else "")
        cells.append(bar.append("━" * length, style=color))
        table.add_row(*cells)
    return table


def _caption(trace: Record, pair: Pair | None) -> str:
    said = "L2 norms" if pair is None else f"L2 norms, Δ = {pair[1]} − {pair[0]}"
    if trace.graph.seq_len is not None:
        return said
    where = "at the last position" if pair is None else "at each edge's largest change"
    return f"{said}, {where}"


def _position(at: int, token: str | None) -> str:
    return f"{at}" if token is None else f"{at} {visible(token)}"
