"""Plotly's own Sankey layout, computed here so that a diagram knows what will be drawn.

Plotly moves nodes to where it is told, but their heights and the order in which links are stacked
at them come from its layout before that. It is d3-sankey 0.12 (fifty relaxations, justified), whose
steps these functions follow; `tests/visualize/test_browser.py` compares them with a real browser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

RELAXATIONS = 50
MOST_EXACT = 300
"""Up to so many links the layout is Plotly's to the bit; above, it is cut short: links as many as
these bear no labels that would have to lie on them."""
LARGEST_PADDING = 2 / 3
"""Plotly's padding takes at most this share of the breadth."""


@dataclass(frozen=True)
class Flow:
    """A link of a panel: indices of its two nodes, and its width in units of weight."""

    source: int
    target: int
    value: float


@dataclass(eq=False)
class _Node:
    value: float
    layer: int = 0
    top: float = float("nan")  # not placed yet; compares as equal, as in JavaScript
    bottom: float = float("nan")
    out: list[int] = field(default_factory=list)
    into: list[int] = field(default_factory=list)

    def move(self, by: float) -> None:
        self.top += by
        self.bottom += by


@dataclass(frozen=True)
class Stacking:
    """What Plotly decides: pixels per unit of weight, where its nodes stand across the flow, and
    the order of the links that leave and enter each."""

    scale: float
    centres: tuple[float, ...]
    leaving: tuple[tuple[int, ...], ...]
    entering: tuple[tuple[int, ...], ...]


def node_values(n_nodes: int, flows: Sequence[Flow]) -> list[float]:
    """A node's value: the larger of what flows in and what flows out."""
    inflow, outflow = [0.0] * n_nodes, [0.0] * n_nodes
    for flow in flows:
        outflow[flow.source] += flow.value
        inflow[flow.target] += flow.value
    return [max(pair) for pair in zip(inflow, outflow, strict=True)]


def plotly_columns(n_nodes: int, flows: Sequence[Flow]) -> list[list[int]]:
    """The columns of Plotly's own layout: by longest path, nodes that nothing leaves at the end.

    Nodes must be numbered along the flow.
    """
    depth = [0] * n_nodes
    for flow in sorted(flows, key=lambda flow: flow.source):
        depth[flow.target] = max(depth[flow.target], depth[flow.source] + 1)
    last = max(depth, default=0)
    leaving = {flow.source for flow in flows}
    columns: list[list[int]] = [[] for _ in range(last + 1)]
    for node in range(n_nodes):
        columns[depth[node] if node in leaving else last].append(node)
    return [column for column in columns if column]


def plotly_total(n_nodes: int, flows: Sequence[Flow]) -> float:
    """The fullest of Plotly's columns: its scale is the domain's breadth, less padding, over it."""
    values = node_values(n_nodes, flows)
    columns = plotly_columns(n_nodes, flows)
    return max((sum(values[node] for node in column) for column in columns), default=0.0)


def stack(n_nodes: int, flows: Sequence[Flow], breadth: float, pad: float) -> Stacking:
    """Lay a diagram out as Plotly does before it moves the nodes."""
    if not flows:
        return Stacking(0.0, (0.0,) * n_nodes, ((),) * n_nodes, ((),) * n_nodes)
    return _Layout(n_nodes, flows, breadth, pad).run()


def _total(values: Iterable[float]) -> float:
    """A plain running sum, as JavaScript adds; Python 3.12's own `sum` rounds otherwise."""
    total = 0.0
    for value in values:
        total += value
    return total


class _Layout:
    def __init__(self, n_nodes: int, flows: Sequence[Flow], breadth: float, pad: float) -> None:
        self.flows = flows
        self.breadth = breadth
        self.rounds = RELAXATIONS
        if len(flows) > MOST_EXACT:
            self.rounds = max(1, RELAXATIONS * MOST_EXACT**2 // len(flows) ** 2)
        self.nodes = [_Node(value) for value in node_values(n_nodes, flows)]
        for number, flow in enumerate(flows):
            self.nodes[flow.source].out.append(number)
            self.nodes[flow.target].into.append(number)
        numbered = plotly_columns(n_nodes, flows)
        for layer, column in enumerate(numbered):
            for node in column:
                self.nodes[node].layer = layer
        self.columns = [[self.nodes[node] for node in column] for column in numbered]
        most = max(len(column) for column in self.columns)
        self.pad = min(pad, LARGEST_PADDING * breadth / (most - 1)) if most > 1 else pad
        self.scale = min(
            (breadth - (len(column) - 1) * self.pad) / _total(node.value for node in column)
            for column in self.columns
        )
        self.by_source = self._order(lambda flow: flow.source)
        self.by_target = self._order(lambda flow: flow.target)

    def run(self) -> Stacking:
        for column in self.columns:
            self._start(column)
        for number in range(self.rounds):
            pull = 0.99**number
            push = max(1 - pull, (number + 1) / self.rounds)
            for column in self.columns[-2::-1]:
                self._relax(column, pull, push, leftwards=True)
            for column in self.columns[1:]:
                self._relax(column, pull, push, leftwards=False)
        return Stacking(
            self.scale,
            tuple((node.top + node.bottom) / 2 for node in self.nodes),
            tuple(tuple(node.out) for node in self.nodes),
            tuple(tuple(node.into) for node in self.nodes),
        )

    def _order(self, end: Callable[[Flow], int]) -> Callable[[int], tuple[float, int]]:
        """Sort links by where their far node begins, then by number."""
        far = [self.nodes[end(flow)] for flow in self.flows]
        return lambda number: (far[number].top, number)

    def _start(self, column: list[_Node]) -> None:
        at = 0.0
        for node in column:
            node.top, node.bottom = at, at + node.value * self.scale
            at = node.bottom + self.pad
        spare = (self.breadth - at + self.pad) / (len(column) + 1)
        for place, node in enumerate(column):
            node.move(spare * (place + 1))
        for node in column:
            node.out.sort(key=self.by_target)
            node.into.sort(key=self.by_source)

    def _relax(self, column: list[_Node], pull: float, push: float, *, leftwards: bool) -> None:
        """Move each node of a column towards its neighbours on one side, then apart."""
        for node in column:
            total = weight = 0.0
            for number in node.out if leftwards else node.into:
                flow = self.flows[number]
                ends = self.nodes[flow.source], self.nodes[flow.target]
                share = flow.value * (ends[1].layer - ends[0].layer)
                total += self._wanted_top(flow, leftwards) * share
                weight += share
            if weight > 0:
                node.move((total / weight - node.top) * pull)
                self._resort_around(node)
        column.sort(key=lambda node: node.top)
        self._separate(column, push)

    def _wanted_top(self, flow: Flow, leftwards: bool) -> float:
        """Where a link's near node would begin if the link ran level, as d3-sankey sees it."""
        flows, nodes = self.flows, self.nodes
        source, target = nodes[flow.source], nodes[flow.target]
        far, links = (target, target.into) if leftwards else (source, source.out)
        at = far.top - (len(links) - 1) * self.pad / 2
        for number in links:
            link = flows[number]
            if (link.source == flow.source) if leftwards else (link.target == flow.target):
                break
            at += link.value * self.scale + self.pad
        for number in source.out if leftwards else target.into:
            link = flows[number]
            if (link.target == flow.target) if leftwards else (link.source == flow.source):
                break
            at -= link.value * self.scale
        return at

    def _resort_around(self, node: _Node) -> None:
        for number in node.into:
            self.nodes[self.flows[number].source].out.sort(key=self.by_target)
        for number in node.out:
            self.nodes[self.flows[number].target].into.sort(key=self.by_source)

    def _separate(self, column: list[_Node], push: float) -> None:
        middle = len(column) // 2
        subject = column[middle]
        self._push_up(column, subject.top - self.pad, middle - 1, push)
        self._push_down(column, subject.bottom + self.pad, middle + 1, push)
        self._push_up(column, self.breadth, len(column) - 1, push)
        self._push_down(column, 0.0, 0, push)

    def _push_down(self, column: list[_Node], at: float, start: int, push: float) -> None:
        for node in column[start:]:
            by = (at - node.top) * push
            if by > 1e-6:
                node.move(by)
            at = node.bottom + self.pad

    def _push_up(self, column: list[_Node], at: float, start: int, push: float) -> None:
        for node in column[start::-1] if start >= 0 else []:
            by = (node.bottom - at) * push
            if by > 1e-6:
                node.move(-by)
            at = node.top - self.pad
