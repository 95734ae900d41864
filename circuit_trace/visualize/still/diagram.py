"""A Sankey diagram as SVG, its nodes where it says and links stacked as they come, as in Plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuit_trace.visualize.layout import (
    NODE_THICKNESS,
    Box,
    Flow,
    Point,
    link_ends,
    node_values,
)
from circuit_trace.visualize.plotly_scale import plotly_scale
from circuit_trace.visualize.still.area import Area


def diagram(trace: Mapping[str, Any], area: Area) -> str:
    """A Sankey trace whose nodes have places of their own."""
    link, node, place = trace["link"], trace["node"], area.domain(trace.get("domain", {}))
    ends = zip(link["source"], link["target"], link["value"], strict=True)
    flows = [Flow(int(source), int(target), float(value)) for source, target, value in ends]
    is_h = trace.get("orientation", "h") == "h"
    breadth = place.height if is_h else place.width
    count = len(node["x"])
    scale = plotly_scale(count, flows, breadth, float(node.get("pad", 20)))
    thickness = float(node.get("thickness", NODE_THICKNESS))
    # In both orientations Plotly takes a node's place along the flow from the domain's width.
    boxes = [
        Box(along * place.width, across * place.height, thickness, value * scale)
        for along, across, value in zip(
            node["x"], node["y"], node_values(count, flows), strict=True
        )
    ]
    spots = link_ends(boxes, flows, scale, range(len(flows)))
    links = [
        f'<path class="sankey-link" d="{_path(boxes, flow, spot, scale)}" fill="{color}"'
        f"{_outline(flow.value * scale, color)}/>"
        for flow, spot, color in zip(flows, spots, _each(link["color"], len(flows)), strict=True)
    ]
    nodes = [
        f'<rect class="sankey-node" x="{box.along - box.length / 2:.1f}" '
        f'y="{box.across - box.breadth / 2:.1f}" width="{box.length:.1f}" '
        f'height="{max(box.breadth, 0.5):.1f}" fill="{color}"/>'
        for box, color in zip(boxes, _each(node["color"], len(boxes)), strict=True)
    ]
    turn = "" if is_h else " matrix(0 1 1 0 0 0)"  # along and across change places
    return (
        f'<g transform="translate({place.left:.1f} {place.top:.1f}){turn}">'
        f"{''.join(links)}{''.join(nodes)}</g>"
    )


def _each(color: str | Sequence[str], count: int) -> Sequence[str]:
    """A colour for each, also where all have one."""
    return [color] * count if isinstance(color, str) else color


def _outline(width: float, color: str) -> str:
    """Plotly draws a line around links so thin that they would hardly show."""
    return f' stroke="{color}" stroke-width="1"' if width <= 1 else ""


def _path(nodes: Sequence[Box], flow: Flow, ends: Point, scale: float) -> str:
    """A link's outline: a cubic along either side, level at both ends."""
    source, target = nodes[flow.source], nodes[flow.target]
    start, end = source.along + source.length / 2, target.along - target.length / 2
    middle, half = (start + end) / 2, flow.value * scale / 2
    leaves, enters = ends

    def side(by: float) -> tuple[str, ...]:
        """Along one side: where it begins, the two points that bend it, and where it ends."""
        spots = (start, leaves), (middle, leaves), (middle, enters), (end, enters)
        return tuple(f"{along:.1f},{across + by:.2f}" for along, across in spots)

    a, b, c, d = side(-half)
    e, f, g, h = reversed(side(half))
    return f"M{a}C{b} {c} {d}L{e}C{f} {g} {h}Z"
