"""A whole figure as SVG: its paper, its traces, and the words on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from circuit_trace.visualize.still.area import Area
from circuit_trace.visualize.still.axes import Axes
from circuit_trace.visualize.still.curves import curves
from circuit_trace.visualize.still.diagram import diagram
from circuit_trace.visualize.still.table import table
from circuit_trace.visualize.still.words import block, block_height, lines_of
from circuit_trace.visualize.text import text_size

_PLACES = {"left": 0, "center": 0.5, "right": 1}
"""Where in a text its anchor is."""

_DRAWN: dict[str, Callable[[Mapping[str, Any], Area], str]] = {"sankey": diagram, "table": table}


def still(figure: go.Figure) -> str | None:
    """Draw a figure of ours as SVG; None where it has parts that this cannot draw.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> picture = still(trace.draw())
    >>> picture[:4], picture.count('class="sankey-link"'), ">A1.0<" in picture
    ('<svg', 1, True)
    """
    spec = figure.to_plotly_json()
    try:
        return _drawn(spec["layout"], spec["data"])
    # Its owner may have made of it anything that Plotly takes.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _drawn(layout: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]) -> str | None:
    kinds = {trace["type"] for trace in traces}
    if not {"width", "height"} <= layout.keys() or not kinds <= {*_DRAWN, "scatter"}:
        return None
    width, height, area = layout["width"], layout["height"], Area.of(layout)
    axes = Axes.of(layout, traces, area) if "scatter" in kinds else None
    shown = [_DRAWN[trace["type"]](trace, area) for trace in traces if trace["type"] in _DRAWN]
    if axes is not None:
        shown.append(curves(traces, layout, axes))
    shown += [_annotation(one, layout, area, axes) for one in layout.get("annotations", ())]
    shown.append(_title(layout, area))
    font = layout.get("font", {}).get("family", "sans-serif")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{font}">'
        f'<rect width="100%" height="100%" fill="{layout.get("paper_bgcolor", "white")}"/>'
        f"{''.join(shown)}</svg>"
    )


def _title(layout: Mapping[str, Any], area: Area) -> str:
    """A title that its owner gave the figure, in the margin above."""
    title = layout.get("title", {})
    font = {"size": 17, "color": "#444", **layout.get("font", {}), **title.get("font", {})}
    text, x = title.get("text", ""), layout["width"] * title.get("x", 0.05)
    top = (area.top - block_height(len(lines_of(text)), font["size"])) / 2
    return block(text, x, top, font["size"], "left", font["color"]) if text else ""


def _annotation(
    one: Mapping[str, Any], layout: Mapping[str, Any], area: Area, axes: Axes | None
) -> str:
    """A text at a place of the plot, or of the data where there are axes."""
    font = {"size": 12, "color": "#444", **layout.get("font", {}), **one.get("font", {})}
    size, x, y = font["size"], one.get("x", 0.5), one.get("y", 0.5)
    lines = lines_of(one["text"])
    height = block_height(len(lines), size)
    on_paper = [one.get(ref, "paper") == "paper" for ref in ("xref", "yref")]
    left = area.x(x) if on_paper[0] or axes is None else axes.x.pixel(x)
    middle = area.y(y) if on_paper[1] or axes is None else axes.y.pixel(y)
    x_anchor = _anchor(one.get("xanchor", "auto"), x, ("left", "center", "right"))
    y_anchor = _anchor(one.get("yanchor", "auto"), y, ("bottom", "middle", "top"))
    pad, sides = one.get("borderpad", 1), {"top": 0, "middle": 0.5, "bottom": 1}
    top = middle - one.get("yshift", 0) - sides[y_anchor] * height
    top += pad * (1 - 2 * sides[y_anchor])
    left += one.get("xshift", 0) + pad * (1 - 2 * _PLACES[x_anchor])
    words = block(one["text"], left, top, size, x_anchor, font["color"])
    if "bgcolor" not in one:
        return words
    width = text_size(one["text"], size)[0] - 6
    start = left - _PLACES[x_anchor] * width
    return (
        f'<rect x="{start - pad:.1f}" y="{top - pad:.1f}" width="{width + 2 * pad:.1f}" '
        f'height="{height + 2 * pad:.1f}" fill="{one["bgcolor"]}"/>{words}'
    )


def _anchor(given: str, share: float, sides: tuple[str, str, str]) -> str:
    """Which side of a text is at its place; Plotly's own choice keeps it in the figure."""
    if given != "auto":
        return given
    return sides[0] if share <= 1 / 3 else sides[2] if share >= 2 / 3 else sides[1]
