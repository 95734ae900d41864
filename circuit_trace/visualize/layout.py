"""Where nodes stand, and where labels go on links, in pixels of one panel.

Node heights and the order of links at a node are Plotly's own (`plotly_layout`); columns keep its
order of nodes too, so that links are stacked as their far ends stand. "Along" and "across" are
meant with the flow: x and y where it runs from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from circuit_trace.visualize.plotly_layout import (
    LARGEST_PADDING,
    Flow,
    Stacking,
    node_values,
    plotly_columns,
)

NODE_THICKNESS = 12
"""Extent of a node along the flow, in pixels."""

PASSING_GAP = 6
"""Distance that a link passing a column keeps from the nodes in it."""

CLEARING_ROUNDS = 12
MOST_CLEARED = 60
"""Up to so many links nodes are moved off the links that pass them; above, there is no room."""

CROSSING = 100
"""So many square pixels of a node may hide behind a link to save a crossing of two links."""

NODE_WEIGHT = 3
"""A label on a node or a name is so much worse than one on another label."""

LABEL_PLACES = (0.5, 0.46, 0.54, 0.42, 0.58, 0.38, 0.62, 0.34, 0.66, 0.3, 0.7, 0.26, 0.74)
"""Where on its link a label is tried, from the middle outwards."""
LABEL_ROUNDS = 6

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


@dataclass(frozen=True)
class _PlotlysColumns:
    """The columns of Plotly's own layout in a domain: how many nodes each has, and their value."""

    sizes: list[tuple[int, float]]
    breadth: float

    @classmethod
    def of(cls, n_nodes: int, flows: Sequence[Flow], breadth: float) -> _PlotlysColumns:
        values = node_values(n_nodes, flows)
        columns = plotly_columns(n_nodes, flows)
        return cls([(len(one), sum(values[node] for node in one)) for one in columns], breadth)

    @property
    def largest_padding(self) -> float:
        """Plotly takes no more."""
        most = max(count for count, _ in self.sizes)
        return LARGEST_PADDING * self.breadth / (most - 1) if most > 1 else 0.0

    def scale(self, pad: float) -> float:
        """The pixels per weight that Plotly takes with a padding: its fullest column must fit."""
        return min((self.breadth - (count - 1) * pad) / held for count, held in self.sizes)


def plotly_padding(
    columns: Sequence[int], flows: Sequence[Flow], breadth: float, gap: float
) -> float:
    """A padding that makes Plotly's scale leave gaps between the nodes of a panel that breadth."""
    values = node_values(len(columns), flows)
    theirs = _PlotlysColumns.of(len(columns), flows, breadth)
    ours = [
        [node for node, own in enumerate(columns) if own == one] for one in sorted(set(columns))
    ]
    wanted = min(
        max(breadth - (len(column) - 1) * gap, breadth / 3) / sum(values[n] for n in column)
        for column in ours
    )
    pad, limit = 0.0, theirs.largest_padding
    while theirs.scale(pad) > wanted and pad < limit:
        pad = min(pad + 2, limit)
    return pad


def padding_for_scale(
    n_nodes: int, flows: Sequence[Flow], breadth: float, scale: float
) -> tuple[float, float]:
    """The padding that brings Plotly's pixels per weight down to a scale, as far as its largest
    padding allows, and the scale that it then takes."""
    theirs = _PlotlysColumns.of(n_nodes, flows, breadth)
    pads = [(breadth - scale * held) / (count - 1) for count, held in theirs.sizes if count > 1]
    pad = min(max(min(pads), 0.0), theirs.largest_padding) if pads else 0.0
    return pad, theirs.scale(pad)


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
    nodes = [
        Box(NODE_THICKNESS / 2 + column * step, across[node], NODE_THICKNESS, heights[node])
        for node, column in enumerate(columns)
    ]
    if passers and len(flows) <= MOST_CLEARED:
        nodes = _cleared(nodes, order, flows, stacking, gap)
        top = min(node.across - node.breadth / 2 for node in nodes) - gap
        nodes = [replace(node, across=node.across - top) for node in nodes]
        breadth = max(node.across + node.breadth / 2 for node in nodes)
    return Placed(tuple(nodes), _ends(nodes, flows, stacking), breadth)


def aligned(
    placed: Placed,
    across: Sequence[float],
    breadth: float,
    flows: Sequence[Flow],
    stacking: Stacking,
) -> Placed:
    """The same panel with its nodes at other places across the flow."""
    nodes = [replace(node, across=at) for node, at in zip(placed.nodes, across, strict=True)]
    return Placed(tuple(nodes), _ends(nodes, flows, stacking), breadth)


def place_labels(
    placed: Placed, flows: Sequence[Flow], sizes: Sequence[Point], taken: Sequence[Box]
) -> list[Point]:
    """Put a label of the given extents on each link where it covers least of what is there."""
    fixed = [*placed.nodes, *taken]
    places = [
        [Box(*_on_link(placed.nodes, flow, ends, where), length, breadth) for where in LABEL_PLACES]
        for flow, ends, (length, breadth) in zip(flows, placed.ends, sizes, strict=True)
    ]
    on_fixed = [[sum(box.overlap(other) for other in fixed) for box in tried] for tried in places]
    labels: list[Box | None] = [None] * len(places)

    def covered(number: int, place: int) -> int:
        box = places[number][place]
        others = (label for other, label in enumerate(labels) if other != number and label)
        on_labels = sum(box.overlap(other) for other in others)
        return round(NODE_WEIGHT * on_fixed[number][place] + on_labels)

    # The first round puts each label beside those before it, the next ones beside all others.
    for _ in range(LABEL_ROUNDS):
        moved = False
        for number, tried in enumerate(places):
            best = tried[min(range(len(tried)), key=lambda place, n=number: covered(n, place))]
            moved = moved or best != labels[number]
            labels[number] = best
        if not moved:
            break
    return [(label.along, label.across) for label in labels if label]


def middles(placed: Placed, flows: Sequence[Flow]) -> list[Point]:
    """The middle of each link, for labels that are not written on it."""
    return [
        _on_link(placed.nodes, flow, ends, 0.5)
        for flow, ends in zip(flows, placed.ends, strict=True)
    ]


def _cleared(
    nodes: Sequence[Box],
    order: Sequence[Sequence[int]],
    flows: Sequence[Flow],
    stacking: Stacking,
    gap: float,
) -> list[Box]:
    """Move nodes off the links that pass them; each column keeps its order of nodes.

    A move bends the links of the moved node, so this takes rounds; the best of them counts.
    """
    columns = [[item for item in column if item < len(nodes)] for column in order]
    now = best = list(nodes)
    least = float("inf")
    for _ in range(CLEARING_ROUNDS):
        ends = _ends(now, flows, stacking)
        walls: dict[int, list[tuple[Box, float]]] = {}
        for column in columns:
            passing = _walls(now, column, flows, ends, stacking.scale)
            for node in column:
                walls[node] = [
                    (wall, _side(node, number, flows, ends)) for number, wall in passing.items()
                ]
        hidden = sum(
            now[node].overlap(wall) + CROSSING * _is_astray(now[node], wall, side)
            for node, own in walls.items()
            for wall, side in own
        )
        if hidden < least - 1:
            best, least = now, hidden
        if least <= 1:
            break
        moved = list(now)
        for column in columns:
            at = float("-inf")
            for node in column:
                at = _nearest_free(moved[node], walls[node], at, gap)
                moved[node] = replace(moved[node], across=at)
                at += moved[node].breadth / 2
        now = moved
    return best


def _walls(
    nodes: Sequence[Box],
    column: Sequence[int],
    flows: Sequence[Flow],
    ends: Sequence[Point],
    scale: float,
) -> dict[int, Box]:
    """Where links pass a column of nodes, from its first edge along the flow to its last."""
    if not column:
        return {}
    along = nodes[column[0]].along
    walls = {}
    for number, (flow, pair) in enumerate(zip(flows, ends, strict=True)):
        if not nodes[flow.source].along < along < nodes[flow.target].along:
            continue
        sides = [
            _across_at(nodes, flow, pair, along + side)
            for side in (-NODE_THICKNESS / 2, NODE_THICKNESS / 2)
        ]
        breadth = abs(sides[1] - sides[0]) + flow.value * scale + 2 * PASSING_GAP
        walls[number] = Box(along, sum(sides) / 2, NODE_THICKNESS, breadth)
    return walls


def _side(node: int, passing: int, flows: Sequence[Flow], ends: Sequence[Point]) -> float:
    """Above 0 if a node belongs beyond a link that passes it, below 0 if before: links that leave
    or enter one node do not cross when they keep the order in which they are stacked there."""
    source, target = flows[passing].source, flows[passing].target
    side = 0.0
    for flow, (start, end) in zip(flows, ends, strict=True):
        if (flow.source, flow.target) == (source, node):
            side += 1 if start > ends[passing][0] else -1
        if (flow.source, flow.target) == (node, target):
            side += 1 if end > ends[passing][1] else -1
    return side


def _is_astray(node: Box, wall: Box, side: float) -> bool:
    """Whether a node is on the other side of a wall than where it belongs."""
    return (node.across - wall.across) * side < 0


def _nearest_free(node: Box, walls: Sequence[tuple[Box, float]], floor: float, gap: float) -> float:
    """The place nearest to a node's own, with room for its name before it, beyond the floor, and
    on the side of each wall where it belongs if that can be."""
    half = node.breadth / 2
    tried = [node.across, floor + gap + half]
    tried += [wall.across - wall.breadth / 2 - half for wall, _ in walls]
    tried += [wall.across + wall.breadth / 2 + half for wall, _ in walls]

    def fits(across: float) -> bool:
        box = replace(node, across=across)
        return across - half - gap >= floor - 1e-6 and all(box.overlap(w) < 1e-6 for w, _ in walls)

    def cost(across: float) -> tuple[int, float]:
        box = replace(node, across=across)
        wrong = sum(_is_astray(box, wall, side) for wall, side in walls)
        return wrong, abs(across - node.across)

    return min(filter(fits, tried), key=cost)


def _across_at(nodes: Sequence[Box], flow: Flow, ends: Point, along: float) -> float:
    """Where the middle of a link is across the flow at a place along it, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(20):
        where = (low + high) / 2
        if _on_link(nodes, flow, ends, where)[0] < along:
            low = where
        else:
            high = where
    return _on_link(nodes, flow, ends, low)[1]


def _on_link(nodes: Sequence[Box], flow: Flow, ends: Point, where: float) -> Point:
    """A point on the middle of a link: the cubic that Plotly draws, level at both ends."""
    start = nodes[flow.source].along + NODE_THICKNESS / 2
    end = nodes[flow.target].along - NODE_THICKNESS / 2
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
