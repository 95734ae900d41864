"""Where nodes stand, and where labels go on links, in pixels of one panel.

Node heights and the order of links at a node are Plotly's own (`plotly_layout`); columns keep its
order of nodes too, so that links are stacked as their far ends stand. "Along" and "across" are
meant with the flow: x and y where it runs from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from circuit_trace.visualize.plotly_layout import (
    LARGEST_PADDING,
    Flow,
    Stacking,
    node_values,
    plotly_columns,
)

NODE_THICKNESS = 12
"""Extent of a node along the flow, in pixels."""

PASSING_GAP = 3
"""Distance that a link passing a column keeps, so that it is aimed between nodes, not at them."""

LABEL_PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74)
"""Where on its link a label is tried, from the middle outwards."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle: its centre and its extents along and across."""

    along: float
    across: float
    length: float
    breadth: float

    def overlap(self, other: Box) -> float:
        """The area that two rectangles share."""
        length = (self.length + other.length) / 2 - abs(self.along - other.along)
        breadth = (self.breadth + other.breadth) / 2 - abs(self.across - other.across)
        return max(length, 0.0) * max(breadth, 0.0)


@dataclass(frozen=True)
class Placed:
    """A panel's geometry: its nodes' boxes, its links' ends across the flow, and its breadth."""

    nodes: tuple[Box, ...]
    ends: tuple[Point, ...]
    breadth: float


def plotly_padding(
    columns: Sequence[int], flows: Sequence[Flow], breadth: float, gap: float
) -> float:
    """A padding that makes Plotly's scale leave gaps between the nodes of a panel that breadth."""
    values = node_values(len(columns), flows)
    theirs = plotly_columns(len(columns), flows)
    most = max(len(column) for column in theirs)
    limit = LARGEST_PADDING * breadth / (most - 1) if most > 1 else 0.0
    ours = [
        [node for node, own in enumerate(columns) if own == one] for one in sorted(set(columns))
    ]
    wanted = min(
        max(breadth - (len(column) - 1) * gap, breadth / 3) / sum(values[n] for n in column)
        for column in ours
    )

    def scale(pad: float) -> float:
        return min(
            (breadth - (len(column) - 1) * pad) / sum(values[node] for node in column)
            for column in theirs
        )

    pad = 0.0
    while scale(pad) > wanted and pad < limit:
        pad = min(pad + 2, limit)
    return pad


def place(
    columns: Sequence[int],
    flows: Sequence[Flow],
    *,
    length: float,
    n_columns: int,
    stacking: Stacking,
    gap: float,
    breadth: float | None = None,
) -> Placed:
    """Place the nodes of one panel and stack its links at them.

    Args:
        columns: The column of each node, counted along the flow.
        flows: The links.
        length: The panel's extent along the flow, in pixels.
        n_columns: How many columns there are, empty ones counted.
        stacking: What Plotly decides about these links.
        gap: Pixels before each node of a column; its name fits in.
        breadth: The panel's extent across the flow; None takes what its fullest column needs.
    """
    n_nodes = len(columns)
    passers = _passers(columns, flows) if breadth is None else []
    items = [*columns, *(column for _, column, _ in passers)]
    heights = [value * stacking.scale for value in node_values(n_nodes, flows)]
    heights += [flows[number].value * stacking.scale for number, _, _ in passers]
    gaps = [gap] * n_nodes + [float(PASSING_GAP)] * len(passers)
    centres = [*stacking.centres]
    for number, _, share in passers:
        ends = stacking.centres[flows[number].source], stacking.centres[flows[number].target]
        centres.append(ends[0] * (1 - share) + ends[1] * share)
    order: list[list[int]] = [[] for _ in range(n_columns)]
    for item in sorted(range(len(items)), key=centres.__getitem__):
        order[items[item]].append(item)
    need = max((sum(heights[i] + gaps[i] for i in column) for column in order), default=0.0)
    breadth = need if breadth is None else breadth
    across = [0.0] * len(items)
    for column in order:
        free = breadth - sum(heights[item] for item in column)
        wanted = sum(gaps[item] for item in column)
        share = min(1.0, max(free, 0.0) / wanted) if wanted else 0.0
        at = (free - share * wanted) / 2
        for item in column:
            at += share * gaps[item]
            across[item] = at + heights[item] / 2
            at += heights[item]
    step = (length - NODE_THICKNESS) / max(n_columns - 1, 1)
    nodes = tuple(
        Box(NODE_THICKNESS / 2 + column * step, across[node], NODE_THICKNESS, heights[node])
        for node, column in enumerate(columns)
    )
    return Placed(nodes, _ends(nodes, flows, stacking), breadth)


def place_labels(
    placed: Placed, flows: Sequence[Flow], sizes: Sequence[Point], taken: Sequence[Box]
) -> list[Point]:
    """Put a label of the given extents on each link where it covers least of what is there."""
    boxes = [*placed.nodes, *taken]
    points: list[Point] = []
    for flow, ends, (length, breadth) in zip(flows, placed.ends, sizes, strict=True):
        tried = [_on_link(placed, flow, ends, where) for where in LABEL_PLACES]
        candidates = [Box(along, across, length, breadth) for along, across in tried]
        best = min(candidates, key=lambda box: round(sum(box.overlap(other) for other in boxes)))
        boxes.append(best)
        points.append((best.along, best.across))
    return points


def _on_link(placed: Placed, flow: Flow, ends: Point, where: float) -> Point:
    """A point on the middle of a link: the cubic that Plotly draws, level at both ends."""
    start = placed.nodes[flow.source].along + NODE_THICKNESS / 2
    end = placed.nodes[flow.target].along - NODE_THICKNESS / 2
    rest = 1 - where
    middle = (start + end) / 2
    bent = 3 * rest * where
    along = rest**3 * start + bent * middle + where**3 * end
    across = (rest**3 + bent * rest) * ends[0] + (where**3 + bent * where) * ends[1]
    return along, across


def _passers(columns: Sequence[int], flows: Sequence[Flow]) -> list[tuple[int, int, float]]:
    """Where links pass a column on their way: the link, the column, and how far along it is."""
    return [
        (number, column, (column - start) / (end - start))
        for number, flow in enumerate(flows)
        for start, end in [(columns[flow.source], columns[flow.target])]
        for column in range(start + 1, end)
    ]


def _ends(nodes: Sequence[Box], flows: Sequence[Flow], stacking: Stacking) -> tuple[Point, ...]:
    """The middle of each link across the flow, where it leaves and where it enters."""
    starts, ends = [0.0] * len(flows), [0.0] * len(flows)
    for stacked, links_of in ((starts, stacking.leaving), (ends, stacking.entering)):
        for node, links in zip(nodes, links_of, strict=True):
            at = node.across - node.breadth / 2
            for number in links:
                width = flows[number].value * stacking.scale
                stacked[number] = at + width / 2
                at += width
    return tuple(zip(starts, ends, strict=True))
