"""Where nodes stand, and where links leave and enter them, in pixels of one panel.

Plotly draws nodes where it is told and stacks links at them in the order that they are given
(`sort="input"`); both are decided here. "Along" and "across" are meant with the flow: x and y where
it runs from left to right.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import asinh, inf, sinh

NODE_THICKNESS = 12
"""Extent of a node along the flow, in pixels."""

PASSING_GAP = 6
"""Distance that a link passing a column keeps from the nodes in it, besides room for their names."""
NAME_ROOM = 0.5
"""A name's share of the gap before its node: a passing link leaves it free."""

SWEEPS = 24
"""Rounds in which nodes move to where their links run level."""
CLEARING = 12
"""Rounds in which nodes only move off the links that pass them."""
CLEAR = 0.5
"""Pixels of nodes behind links that nobody sees."""
MOST_PASSING = 60
"""Up to so many links nodes keep off the links that pass them; above, there is no room."""
DENSE_GAP, DENSE_SWEEPS = 2.0, 8
"""Nodes stand so much further apart then, and settle in so many rounds."""
LEVEL = 3
"""Decimals of a pixel to which two links are level; of these the earlier edge comes first."""

Point = tuple[float, float]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Flow:
    """A link of a panel: indices of its two nodes, and its width in units of weight."""

    source: int
    target: int
    value: float


@dataclass(frozen=True)
class Box:
    """A rectangle: its centre and its extents along and across."""

    along: float
    across: float
    length: float
    breadth: float


@dataclass(frozen=True)
class Placed:
    """A panel's geometry: its nodes' boxes, the order in which links are stacked, where each link
    leaves and enters across the flow, and the panel's breadth."""

    nodes: tuple[Box, ...]
    order: tuple[int, ...]
    ends: tuple[Point, ...]
    breadth: float


def node_values(n_nodes: int, flows: Sequence[Flow]) -> list[float]:
    """A node's value: the larger of what flows in and what flows out."""
    inflow, outflow = [0.0] * n_nodes, [0.0] * n_nodes
    for flow in flows:
        outflow[flow.source] += flow.value
        inflow[flow.target] += flow.value
    return [max(pair) for pair in zip(inflow, outflow, strict=True)]


def node_boxes(
    columns: Sequence[int],
    flows: Sequence[Flow],
    *,
    length: float,
    n_columns: int,
    scale: float,
) -> list[Box]:
    """The boxes of a panel's nodes, each in its column, where across the flow is yet to be said.

    Args:
        columns: The column of each node, counted along the flow.
        flows: The links.
        length: The panel's extent along the flow, in pixels.
        n_columns: How many columns there are, empty ones counted.
        scale: Pixels per unit of weight.
    """
    step = (length - NODE_THICKNESS) / max(n_columns - 1, 1)
    return [
        Box(NODE_THICKNESS / 2 + column * step, 0.0, NODE_THICKNESS, value * scale)
        for column, value in zip(columns, node_values(len(columns), flows), strict=True)
    ]


def place(nodes: Sequence[Box], flows: Sequence[Flow], scale: float, gap: float) -> Placed:
    """Put nodes across the flow so that their links run level where they can, cross little, and pass
    no node; before each node of a column there is a gap, in which its name fits."""
    across = _Sweeps(nodes, flows, scale, gap).run()
    placed = stacked(nodes, across, flows, scale)
    bands = _bands(placed, flows, scale, gap)
    closed = []
    for node in placed.nodes:
        number = bisect(bands, (node.across, inf)) - 1
        closed.append(
            node.across - bands[number][0] + sum(high - low for low, high in bands[:number])
        )
    return stacked(nodes, closed, flows, scale)


def _bands(placed: Placed, flows: Sequence[Flow], scale: float, gap: float) -> list[Interval]:
    """The parts across the flow that nodes, with their names, and links take. What lies between them
    is empty: edges that nothing joins to the others drift away from them."""
    taken = [(n.across - n.breadth / 2 - gap, n.across + n.breadth / 2) for n in placed.nodes]
    for flow, ends in zip(flows, placed.ends, strict=True):
        half = flow.value * scale / 2
        taken.append((min(ends) - half, max(ends) + half))
    bands: list[Interval] = []
    for low, high in sorted(taken):
        if bands and low <= bands[-1][1]:
            low, high = bands[-1][0], max(bands.pop()[1], high)
        bands.append((low, high))
    return bands


def squeezed(
    placed: Placed, flows: Sequence[Flow], scale: float, breadth: float, gap: float
) -> Placed:
    """The same panel as broad as this, its columns in their order and with smaller gaps at need."""
    shrink = min(1.0, breadth / placed.breadth) if placed.breadth else 1.0
    spare = (breadth - shrink * placed.breadth) / 2
    across = [spare + shrink * node.across for node in placed.nodes]
    for members in columns_of(placed.nodes).values():
        members.sort(key=across.__getitem__)
        sized = [(across[node], placed.nodes[node].breadth / 2) for node in members]
        free = breadth - 2 * sum(half for _, half in sized)
        between = min(gap, max(free, 0.0) / len(members))
        for node, at in zip(members, _spread(sized, between, between, breadth), strict=True):
            across[node] = at
    return stacked(placed.nodes, across, flows, scale)


def columns_of(nodes: Sequence[Box]) -> dict[float, list[int]]:
    """The nodes of each column, by its place along the flow."""
    columns: dict[float, list[int]] = {}
    for number, node in enumerate(nodes):
        columns.setdefault(node.along, []).append(number)
    return dict(sorted(columns.items()))


def stacked(
    nodes: Sequence[Box], across: Sequence[float], flows: Sequence[Flow], scale: float
) -> Placed:
    """Put nodes at these places across the flow, and stack links at them as their far ends stand."""
    boxes = tuple(replace(node, across=at) for node, at in zip(nodes, across, strict=True))
    order = stacking_order(across, flows)
    breadth = max((box.across + box.breadth / 2 for box in boxes), default=0.0)
    return Placed(boxes, tuple(order), link_ends(boxes, flows, scale, order), breadth)


def stacking_order(across: Sequence[float], flows: Sequence[Flow]) -> list[int]:
    """The links in the order of their middles: at either end those that share a node are then in the
    order of the nodes at their other ends."""
    return sorted(
        range(len(flows)),
        key=lambda n: (round(across[flows[n].source] + across[flows[n].target], LEVEL), n),
    )


def link_ends(
    nodes: Sequence[Box], flows: Sequence[Flow], scale: float, order: Iterable[int]
) -> tuple[Point, ...]:
    """The middle of each link across the flow, where it leaves and where it enters."""
    leaving = [node.across - node.breadth / 2 for node in nodes]
    entering = list(leaving)
    ends: list[Point] = [(0.0, 0.0)] * len(flows)
    for number in order:
        flow = flows[number]
        width = flow.value * scale
        ends[number] = leaving[flow.source] + width / 2, entering[flow.target] + width / 2
        leaving[flow.source] += width
        entering[flow.target] += width
    return tuple(ends)


def share_across(share: float) -> float:
    """How much of its way across the flow a link has made at a share of its way along it.

    A link is a cubic that is level at both ends, bent half-way along: at `t` it is
    `t³ − 1.5t² + 1.5t` along and `3t² − 2t³` across. The first is solved for `t` by the identity
    `4 sinh³ + 3 sinh = sinh(3 ·)`.

    >>> share_across(0.5), round(share_across(0.25), 3)
    (0.5, 0.106)
    """
    t = 0.5 + sinh(asinh(4 * share - 2) / 3)
    return (3 - 2 * t) * t * t


class _Sweeps:
    """The nodes of a panel, which move round by round to where their links run level."""

    def __init__(
        self, nodes: Sequence[Box], flows: Sequence[Flow], scale: float, gap: float
    ) -> None:
        self.nodes, self.flows, self.scale, self.gap = nodes, flows, scale, gap
        self.across = [0.0] * len(nodes)
        self.columns = columns_of(nodes)
        self.touching: list[list[int]] = [[] for _ in nodes]
        for number, flow in enumerate(flows):
            self.touching[flow.source].append(number)
            self.touching[flow.target].append(number)
        is_sparse = len(flows) <= MOST_PASSING
        self.gap *= 1.0 if is_sparse else DENSE_GAP
        self.sweeps = SWEEPS if is_sparse else DENSE_SWEEPS
        self.passing = {along: self._passing(along) if is_sparse else [] for along in self.columns}
        self.ports: tuple[Point, ...] = ()
        self._stack()

    def _passing(self, along: float) -> list[tuple[int, float, float]]:
        """The links that pass a column, and how far across each is at the column's two sides."""
        found = []
        for number, flow in enumerate(self.flows):
            start = self.nodes[flow.source].along + NODE_THICKNESS / 2
            end = self.nodes[flow.target].along - NODE_THICKNESS / 2
            if start < along < end:
                sides = along - NODE_THICKNESS / 2, along + NODE_THICKNESS / 2
                first, last = (share_across((side - start) / (end - start)) for side in sides)
                found.append((number, first, last))
        return found

    def run(self) -> list[float]:
        """The places of the nodes across the flow: where they settle, then off the links that pass
        them. To move a node bends its links, so that takes rounds; the best of them counts."""
        columns = list(self.columns)
        best, least = list(self.across), inf
        for sweep in range(self.sweeps + CLEARING):
            for column in columns if sweep % 2 else reversed(columns):
                self._move(self.columns[column], self._walls(column), sweep < self.sweeps)
            self._stack()
            if sweep >= self.sweeps - 1:
                hidden = sum(self._hidden(column) for column in columns)
                if hidden < least:
                    best, least = list(self.across), hidden
                if hidden < CLEAR:
                    break
        return best

    def _stack(self) -> None:
        """Where links leave and enter, counted from the middles of their nodes."""
        order = stacking_order(self.across, self.flows)
        self.ports = link_ends(self.nodes, self.flows, self.scale, order)  # all nodes are at 0

    def _walls(self, column: float) -> list[Interval]:
        """Where links pass a column, with the distance that they keep."""
        walls = []
        for number, first, last in self.passing[column]:
            flow, (leaves, enters) = self.flows[number], self.ports[number]
            start, end = self.across[flow.source] + leaves, self.across[flow.target] + enters
            at = [start + share * (end - start) for share in (first, last)]
            half = flow.value * self.scale / 2 + PASSING_GAP
            walls.append((min(at) - half, max(at) + half + NAME_ROOM * self.gap))
        return walls

    def _move(self, members: list[int], walls: list[Interval], is_free: bool) -> None:
        """Put the nodes of a column where their links run level, or later leave them where they are;
        or as near to that as there is room between the walls."""
        wanted = {node: self._level(node) if is_free else self.across[node] for node in members}
        halves = {node: self.nodes[node].breadth / 2 for node in members}
        for (low, high), inside in self._rooms(wanted, halves, walls).items():
            inside.sort(key=wanted.__getitem__)
            places = _spread([(wanted[n], halves[n]) for n in inside], self.gap, low, high)
            for node, at in zip(inside, places, strict=True):
                self.across[node] = at

    def _rooms(
        self, wanted: dict[int, float], halves: dict[int, float], walls: list[Interval]
    ) -> dict[Interval, list[int]]:
        """The intervals between walls with the nodes that go there: the largest choose first."""
        if not walls:
            return {(-inf, inf): list(wanted)}
        taken, rooms = list(walls), {}
        for node in sorted(wanted, key=lambda node: (-halves[node], wanted[node])):
            at = _nearest_free(wanted[node], halves[node], taken)
            taken.append((at - halves[node] - self.gap, at + halves[node] + self.gap))
            low = max((wall[1] for wall in walls if wall[1] < at), default=-inf)
            high = min((wall[0] for wall in walls if wall[0] > at), default=inf)
            rooms.setdefault((low, high), []).append(node)
        return rooms

    def _level(self, node: int) -> float:
        """Where the links of a node would run level, the wide ones before the thin."""
        total = weight = 0.0
        for number in self.touching[node]:
            flow, (leaves, enters) = self.flows[number], self.ports[number]
            level = self.across[flow.source] + leaves - enters
            if flow.source == node:
                level = self.across[flow.target] + enters - leaves
            total += flow.value * level
            weight += flow.value
        return total / weight

    def _hidden(self, column: float) -> float:
        """Pixels of a column's nodes behind the links that pass it."""
        walls = self._walls(column)
        return sum(
            max(0.0, min(high, at + half) - max(low, at - half))
            for node in self.columns[column]
            for at, half in [(self.across[node], self.nodes[node].breadth / 2)]
            for low, high in walls
        )


def _nearest_free(wanted: float, half: float, taken: Sequence[Interval]) -> float:
    """The place nearest to the wanted one for a node of this half breadth, between what is taken."""
    before = after = wanted
    for low, high in sorted(taken):
        if low - half < after < high + half:
            after = high + half
    for low, high in sorted(taken, key=lambda interval: interval[1], reverse=True):
        if low - half < before < high + half:
            before = low - half
    return after if after - wanted <= wanted - before else before


def _spread(
    nodes: Sequence[tuple[float, float]], gap: float, low: float, high: float
) -> list[float]:
    """Places for nodes one after the other, as near as can be to those they want (least squares).

    A node that has to follow closely on the one before shares its shift with it: this is isotonic
    regression by pooling adjacent violators (Barlow et al. 1972). `nodes` are the wanted places, in
    their order, and the half breadths.
    """
    offsets, blocks, at = [], [], -gap
    for wanted, half in nodes:
        at += gap + half
        offsets.append(at)
        blocks.append((wanted - at, 1))
        at += half
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, count), (other, more) = blocks[-2:]
            blocks[-2:] = [((one * count + other * more) / (count + more), count + more)]
    shifts = [min(max(shift, low), high - at) for shift, count in blocks for _ in range(count)]
    return [offset + shift for offset, shift in zip(offsets, shifts, strict=True)]
