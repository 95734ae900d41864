"""A table as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuit_trace.visualize.still.area import Area
from circuit_trace.visualize.still.words import block, block_height

PADDING = 8
"""Pixels between a cell's side and its text; Plotly's own."""


def table(trace: Mapping[str, Any], area: Area) -> str:
    """A table trace, its columns as wide as it says in proportion."""
    place = area.domain(trace.get("domain", {}))
    widths = trace["columnwidth"]
    header, cells = trace["header"], trace["cells"]
    shown, left = [], place.left
    for number, share in enumerate(widths):
        width = share / sum(widths) * place.width
        shown.append(_cell(header, header["values"][number], number, left, place.top, width))
        for row, text in enumerate(cells["values"][number]):
            top = place.top + header["height"] + row * cells["height"]
            shown.append(_cell(cells, text, number, left, top, width))
        left += width
    return "".join(shown)


def _cell(
    style: Mapping[str, Any], text: str, column: int, left: float, top: float, width: float
) -> str:
    font, height, align = style["font"], style["height"], style["align"][column]
    x = left + width - PADDING if align == "right" else left + PADDING
    middle = top + (height - block_height(1, font["size"])) / 2
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:g}" '
        f'fill="{style["fill"]["color"]}" stroke="{style["line"]["color"]}"/>'
        f"{block(str(text), x, middle, font['size'], align, font['color'])}"
    )
