"""Curves over axes as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuit_trace.visualize.still.area import Area
from circuit_trace.visualize.still.axes import Axes, Axis
from circuit_trace.visualize.still.words import block, block_height, lines_of

TICK, TICK_GAP = 5, 3
SAMPLE = 30
"""Pixels of a line in the legend."""
DASHES = {"dash": "9 9", "dot": "3 3", "dashdot": "9 3 3 3"}


def curves(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], axes: Axes) -> str:
    """The axes, the lines across them, every curve and the legend."""
    font = {"size": 12, "color": "#444", **layout.get("font", {})}
    shown = [_shape(one, axes) for one in layout.get("shapes", ()) if one.get("type") == "line"]
    lines = [one for one in traces if one["type"] == "scatter"]
    shown += [_curve(one, axes) for one in lines]
    for axis, drawn in ((axes.x, _across), (axes.y, _upwards)):
        if axis.style.get("visible", True):
            shown.append(drawn(axes, font))
    if layout.get("showlegend", len(lines) > 1):
        shown.append(_legend(lines, layout, axes.area, font))
    return "".join(shown)


def _curve(trace: Mapping[str, Any], axes: Axes) -> str:
    points = [
        (axes.x.pixel(float(x)), axes.y.pixel(float(y)))
        for x, y in zip(trace["x"], trace["y"], strict=True)
        if math.isfinite(float(x)) and math.isfinite(float(y))
    ]
    mode = trace.get("mode", "lines")
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) if points else ""
    shown = ""
    if trace.get("fill") == "toself":
        shown += f'<path class="fill" d="{path}Z" fill="{trace.get("fillcolor", "none")}"/>'
    if "lines" in mode:
        shown += f'<path class="line" d="{path}" fill="none" {_stroke(trace.get("line", {}))}/>'
    if "markers" in mode:
        shown += "".join(_marker(trace.get("marker", {}), x, y) for x, y in points)
    return shown


def _stroke(line: Mapping[str, Any]) -> str:
    dash = DASHES.get(line.get("dash", ""))
    return f'stroke="{line.get("color", "#444")}" stroke-width="{line.get("width", 2):g}"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )


def _marker(marker: Mapping[str, Any], x: float, y: float) -> str:
    """A point; of Plotly's symbols those that curves here have, by their corners in radii."""
    radius, color = marker.get("size", 6) / 2, marker.get("color", "#444")
    corners = _SYMBOLS.get(marker.get("symbol", "circle"))
    if corners is None:
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}"/>'
    spots = " ".join(f"{x + a * radius:.1f},{y + b * radius:.1f}" for a, b in corners)
    return f'<polygon class="point" points="{spots}" fill="{color}"/>'


def _ring(n: int, *radii: float) -> list[tuple[float, float]]:
    """Corners on a circle from the top on, at these radii in turn."""
    angles = [2 * math.pi * corner / n for corner in range(n)]
    sides = [radii[corner % len(radii)] for corner in range(n)]
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(angles, sides, strict=True)]


_PLUS = [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2)]
_PLUS += [(-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)]
_SYMBOLS = {
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "diamond": _ring(4, 1.3),
    "triangle-up": [(0.0, -1.0), (1.15, 0.5), (-1.15, 0.5)],
    "cross": _PLUS,
    "x": [((a - b) * 0.7071, (a + b) * 0.7071) for a, b in _PLUS],
    "star": _ring(10, 1.4, 0.535),
    "hexagon": _ring(6, 1.0),
}


def _shape(shape: Mapping[str, Any], axes: Axes) -> str:
    """A straight line, its ends in the data's units or in shares of the plot."""
    is_share = [shape.get(ref) == "paper" for ref in ("xref", "yref")]
    to_x = axes.area.x if is_share[0] else axes.x.pixel
    to_y = axes.area.y if is_share[1] else axes.y.pixel
    x, y = (to_x(shape["x0"]), to_x(shape["x1"])), (to_y(shape["y0"]), to_y(shape["y1"]))
    return (
        f'<line x1="{x[0]:.1f}" y1="{y[0]:.1f}" x2="{x[1]:.1f}" y2="{y[1]:.1f}" '
        f"{_stroke(shape.get('line', {}))}/>"
    )


def _across(axes: Axes, font: Mapping[str, Any]) -> str:
    """The axis below."""
    area, axis, size, color = axes.area, axes.x, font["size"], font["color"]
    line = axis.style.get("linecolor", "#444")
    bottom = area.y(0)
    shown = f'<path d="M{area.x(0):.1f},{bottom:.1f}H{area.x(1):.1f}" stroke="{line}"/>'
    for value, text in axis.ticks:
        x = axis.pixel(value)
        shown += f'<path d="M{x:.1f},{bottom:.1f}v{TICK}" stroke="{line}"/>'
        shown += block(text, x, bottom + TICK + TICK_GAP, size, "center", color)
    title, own = _title(axis, font)
    standoff = axis.style.get("title", {}).get("standoff", 10)
    top = bottom + TICK + TICK_GAP + block_height(1, size) + standoff
    return shown + block(title, area.x(0.5), top, own["size"], "center", own["color"])


def _upwards(axes: Axes, font: Mapping[str, Any]) -> str:
    """The axis to the left, its title from below upwards."""
    area, axis, size, color = axes.area, axes.y, font["size"], font["color"]
    line = axis.style.get("linecolor", "#444")
    left = area.x(0)
    shown = f'<path d="M{left:.1f},{area.y(0):.1f}V{area.y(1):.1f}" stroke="{line}"/>'
    for value, text in axis.ticks:
        y = axis.pixel(value)
        shown += f'<path d="M{left:.1f},{y:.1f}h-{TICK}" stroke="{line}"/>'
        top = y - block_height(1, size) / 2
        shown += block(text, left - TICK - TICK_GAP, top, size, "right", color)
    title, own = _title(axis, font)
    widest = max((len(text) for _, text in axis.ticks), default=0) * size / 2
    standoff = axis.style.get("title", {}).get("standoff", 10)
    top = max(left - TICK - TICK_GAP - widest - standoff - 1.2 * own["size"], 2.0)
    # Turned about the figure's corner, what was down is left and what was left is below.
    words = block(title, -area.y(0.5), top, own["size"], "center", own["color"])
    return f'{shown}<g transform="rotate(-90)">{words}</g>'


def _title(axis: Axis, font: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    title = axis.style.get("title", {})
    return title.get("text", ""), {**font, **title.get("font", {})}


def _legend(
    lines: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    area: Area,
    font: Mapping[str, Any],
) -> str:
    """Above the plot, a line for each curve."""
    size = layout.get("legend", {}).get("font", {}).get("size", font["size"])
    named = [one for one in lines if one.get("showlegend", True) and one.get("name")]
    step = 1.6 * size
    shown = '<g class="legend">'
    for number, one in enumerate(named):
        middle = area.y(1) - 8 - step * (len(named) - number - 0.5)
        x = area.left + 5
        shown += f'<path d="M{x:.1f},{middle:.1f}h{SAMPLE}" {_stroke(one.get("line", {}))}/>'
        shown += _marker(one.get("marker", {}), x + SAMPLE / 2, middle)
        top = middle - block_height(len(lines_of(one["name"])), size) / 2
        shown += block(one["name"], x + SAMPLE + 5, top, size, "left", font["color"])
    return shown + "</g>"
