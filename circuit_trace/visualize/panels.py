"""Edges to a diagram: a panel for each position, one above the other, all in one scale of widths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from circuit_trace.graph import DestNode, Graph, NodeKind, SrcNode
from circuit_trace.visualize.diagram import (
    NAME_SIZE,
    SHORT_SIZE,
    SIDE_MARGIN,
    TITLE_SHIFT,
    TITLE_SIZE,
    Diagram,
    Link,
    Node,
    Orientation,
    Panel,
    legend_lines,
    note_lines,
)
from circuit_trace.visualize.edges import MOST_SHORT_LABELS, DrawnEdge, strongest
from circuit_trace.visualize.labels import place_labels
from circuit_trace.visualize.layout import (
    Box,
    Flow,
    Placed,
    Point,
    columns_of,
    node_boxes,
    place,
    squeezed,
    stacked,
)
from circuit_trace.visualize.picture import Picture
from circuit_trace.visualize.plotly_scale import padding_for, plotly_scale
from circuit_trace.visualize.style import Style
from circuit_trace.visualize.text import BREAK, escape, escape_name, text_size, token_label

HAIRLINE = 0.01
"""Width of an edge whose weight is 0, as a share of the widest: shown, but thin."""
WIDEST = 26
"""Pixels that the widest link of a figure gets at most."""
TALLEST_LINKS = 900
"""Pixels that all links of a figure side by side get at most; then they become thinner."""
COLUMN_STEP = {"h": 150, "v": 92}
"""Pixels from one column of nodes to the next, at least."""
WIDEST_STEP = 330
"""Where the flow runs across, columns stand so far apart that a link's label fits between them, but
no further than this."""
BESIDE_LABEL = 32
"""Pixels of a column's step that a label leaves to nodes and their names."""
NODE_GAP = {"h": 24.0, "v": 84.0}
"""Pixels between two nodes of a column: a name above a node, or to the left of it."""
SMALLEST_PANEL = 64.0
EMPTY_PANEL = 30.0
"""Height of a position without edges."""
PANEL_GAP = 22
SIDE_GAP = 90
"""Pixels between diagrams side by side: half a node's name stands on either side."""
NARROWEST = {"h": 540.0, "v": 250.0}
LABEL_MARGIN = 150


def build_diagram(picture: Picture, style: Style) -> Diagram:
    """Lay edges out, a panel per position from the first down, all in one scale of widths.

    Sides have their nodes at the same places: those of all their edges together.
    """
    orientation, is_h = style.orientation, style.orientation == "h"
    rows = _rows(picture, style)
    scale, step = _scale(rows, orientation), _step(rows, orientation)
    lengths = [step * max(row.whole.n_columns - 1, 1) for row in rows]
    if is_h:
        lengths = [max([*lengths, NARROWEST["h"]])] * len(rows)
    geometry = [
        row.placed(length, scale, NODE_GAP[orientation])
        for row, length in zip(rows, lengths, strict=True)
    ]
    breadths = [
        max(placed[0].breadth, *(scale * side.total for side in row.sides))
        for row, placed in zip(rows, geometry, strict=True)
    ]
    width = max(lengths if is_h else map(ceil, breadths), default=0.0)
    width = max(float(width), NARROWEST[orientation])
    panels, top = [], 0.0
    for row, placed, length, breadth in zip(rows, geometry, lengths, breadths, strict=True):
        room = ceil(max(breadth, SMALLEST_PANEL)) if is_h else length
        room = room if row.whole.drawn else EMPTY_PANEL
        for number, (side, its) in enumerate(zip(row.sides, placed, strict=True)):
            left = number * (width + SIDE_GAP)
            title = None if number else _title(row.seq_idx, picture)
            slot = Panel(
                row.seq_idx, title, left, top, width, room, scale, (), (), (), side.n_columns
            )
            panels.append(_filled(slot, side, its, orientation))
        top += room + PANEL_GAP
    return _diagram(picture, panels, orientation, width, max(top - PANEL_GAP, 0.0))


def lone_panel(
    graph: Graph,
    drawn: Sequence[DrawnEdge],
    seq_idx: int | None,
    size: tuple[float, float],
    style: Style,
) -> tuple[Panel, float]:
    """Lay the edges of one position out so that they fill `size` pixels, and tell the padding that
    makes Plotly draw them so."""
    width, height = size
    length, breadth = size if style.orientation == "h" else (height, width)
    content = _Content.of(seq_idx, drawn, _depths(graph, drawn, style.layer_spacing))
    slot = Panel(seq_idx, None, 0.0, 0.0, width, height, 0.0, (), (), (), content.n_columns)
    if not drawn:
        return slot, 0.0
    gap, count = NODE_GAP["h"], len(content.columns)
    nodes = content.boxes(length, 1.0)
    wanted = min(
        max(breadth - (len(members) - 1) * gap, breadth / 3)
        / sum(nodes[node].breadth for node in members)
        for members in columns_of(nodes).values()
    )
    pad = padding_for(count, content.flows, breadth, wanted)
    scale = plotly_scale(count, content.flows, breadth, pad)
    placed = place(content.boxes(length, scale), content.flows, scale, gap)
    placed = squeezed(placed, content.flows, scale, breadth, gap)
    return _filled(replace(slot, scale=scale), content, placed, style.orientation), pad


@dataclass(frozen=True)
class _Content:
    """The edges of one position, made ready to be placed."""

    seq_idx: int | None
    drawn: Sequence[DrawnEdge]
    units: dict[str, tuple[NodeKind, int]]
    columns: list[int]
    n_columns: int
    flows: list[Flow]

    @classmethod
    def of(cls, seq_idx: int | None, drawn: Sequence[DrawnEdge], depths: Sequence[int]) -> _Content:
        """Some edges, with a column for each of these depths."""
        units = _units(drawn)
        index = {name: number for number, name in enumerate(units)}
        thin = HAIRLINE * max((abs(one.weight) for one in drawn), default=1.0) or HAIRLINE
        flows = [
            Flow(index[one.edge.src.unit], index[one.edge.dest.unit], abs(one.weight) or thin)
            for one in drawn
        ]
        columns = [depths.index(depth) for _, depth in units.values()]
        return cls(seq_idx, drawn, units, columns, len(depths), flows)

    @property
    def total(self) -> float:
        """The weight in the fullest of Plotly's columns."""
        return 1 / plotly_scale(len(self.columns), self.flows) if self.drawn else 0.0

    def boxes(self, length: float, scale: float) -> list[Box]:
        """The nodes in their columns."""
        return node_boxes(
            self.columns, self.flows, length=length, n_columns=self.n_columns, scale=scale
        )


@dataclass(frozen=True)
class _Row:
    """One position: what each side has there, and all of it together."""

    seq_idx: int | None
    sides: tuple[_Content, ...]
    whole: _Content

    def placed(self, length: float, scale: float, gap: float) -> list[Placed]:
        """The geometry of each side: its nodes stand where they do in the whole."""
        whole = place(self.whole.boxes(length, scale), self.whole.flows, scale, gap)
        at = {unit: box.across for unit, box in zip(self.whole.units, whole.nodes, strict=True)}
        return [
            whole
            if side is self.whole
            else replace(
                stacked(
                    side.boxes(length, scale), [at[unit] for unit in side.units], side.flows, scale
                ),
                breadth=whole.breadth,
            )
            for side in self.sides
        ]


def _rows(picture: Picture, style: Style) -> list[_Row]:
    """The positions to draw. Panels one above the other share their columns where the flow runs from
    left to right, so that a node stands at one place in all of them."""
    graph = picture.graph
    every = [one for drawn in picture.sides.values() for one in drawn]
    positions = sorted({one.edge.seq_idx for one in every}, key=lambda at: -1 if at is None else at)
    if style.show_all_seq_pos:
        positions = [None] if graph.seq_len is None else list(range(graph.seq_len))
    found = [_by_position(drawn) for drawn in picture.sides.values()]
    rows = []
    for position in positions:
        here = [side.get(position, []) for side in found]
        shared = every if style.orientation == "h" else [one for drawn in here for one in drawn]
        depths = _depths(graph, shared, style.layer_spacing)
        sides = tuple(_Content.of(position, drawn, depths) for drawn in here)
        whole = sides[0] if len(sides) == 1 else _Content.of(position, _union(here), depths)
        rows.append(_Row(position, sides, whole))
    return rows


def _by_position(drawn: Sequence[DrawnEdge]) -> dict[int | None, list[DrawnEdge]]:
    """The edges of each position, the widest of them all with their short labels."""
    written = set(strongest([one.rank for one in drawn], MOST_SHORT_LABELS))
    found: dict[int | None, list[DrawnEdge]] = {}
    for number, one in enumerate(drawn):
        shown = one if number in written else replace(one, short="")
        found.setdefault(one.edge.seq_idx, []).append(shown)
    return found


def _union(sides: Sequence[Sequence[DrawnEdge]]) -> list[DrawnEdge]:
    """Every edge that a side has, once, as wide as it is at the most."""
    widest: dict[str, DrawnEdge] = {}
    for one in (one for drawn in sides for one in drawn):
        known = widest.setdefault(one.edge.name, one)
        if abs(one.weight) > abs(known.weight):
            widest[one.edge.name] = one
    return list(widest.values())


def _depths(graph: Graph, drawn: Sequence[DrawnEdge], layer_spacing: bool) -> Sequence[int]:
    """The places along the flow that get a column, the same in all panels of a figure."""
    if layer_spacing:
        return range(max(dest.depth for dest in graph.dests) + 1)
    return sorted({depth for _, depth in _units(drawn).values()})


def _units(drawn: Sequence[DrawnEdge]) -> dict[str, tuple[NodeKind, int]]:
    """The nodes that some edges join, in the order of the flow, with their kind and depth."""
    ends: list[SrcNode | DestNode] = [end for one in drawn for end in (one.edge.src, one.edge.dest)]
    ends.sort(key=lambda end: (end.depth, end.head if end.head is not None else -1))
    return {end.unit: (end.kind, end.depth) for end in ends}


def _scale(rows: Sequence[_Row], orientation: Orientation) -> float:
    """Pixels per unit of weight in all panels: widths can be compared wherever they stand."""
    widest = max((flow.value for row in rows for flow in row.whole.flows), default=0.0)
    totals = [max(side.total for side in (*row.sides, row.whole)) for row in rows]
    if not widest:
        return 0.0
    fullest = sum(totals) if orientation == "h" else max(totals)
    return min(WIDEST / widest, TALLEST_LINKS / fullest)


def _step(rows: Sequence[_Row], orientation: Orientation) -> float:
    """Pixels from one column to the next."""
    least = float(COLUMN_STEP[orientation])
    if orientation == "v":
        return least
    shorts = [one.short for row in rows for side in row.sides for one in side.drawn if one.short]
    widest = max((text_size(short, SHORT_SIZE)[0] for short in shorts), default=0.0)
    return max(least, min(BESIDE_LABEL + widest, WIDEST_STEP))


def _filled(slot: Panel, content: _Content, placed: Placed, orientation: Orientation) -> Panel:
    """A panel with its nodes and links in it: what was placed along and across the flow, in pixels of
    the plot, in the middle of the panel's room across."""
    is_h = orientation == "h"
    lead, start, room = slot.left, slot.top, slot.height
    if not is_h:
        lead, start, room = slot.top, slot.left, slot.width
    shift = start + (room - placed.breadth) / 2

    def in_plot(along: float, across: float) -> Point:
        at = round(along + lead, 2) + 0.0, round(across + shift, 2) + 0.0
        return at if is_h else (at[1], at[0])

    names = [escape_name(name) for name in content.units]
    name_boxes = [_name_box(box, name, is_h) for box, name in zip(placed.nodes, names, strict=True)]
    nodes = tuple(
        Node(name, kind, in_plot(box.along, box.across), in_plot(own.along, own.across))
        for name, (kind, _), box, own in zip(
            names, content.units.values(), placed.nodes, name_boxes, strict=True
        )
    )
    sizes = {}
    for number, one in enumerate(content.drawn):
        if one.short:
            width, height = text_size(one.short, SHORT_SIZE)
            sizes[number] = (width, height) if is_h else (height, width)
    spots = place_labels(placed, content.flows, sizes, name_boxes)
    links = tuple(
        Link(
            flow.source,
            flow.target,
            flow.value,
            one.label,
            one.short,
            one.color,
            in_plot(*spots[number]) if number in spots else None,
        )
        for number, (flow, one) in enumerate(zip(content.flows, content.drawn, strict=True))
    )
    return replace(slot, nodes=nodes, links=links, stacking=placed.order)


def _name_box(node: Box, name: str, is_h: bool) -> Box:
    """Where a node's name goes: above it, or to the left of it where the flow runs down."""
    width, height = text_size(name, NAME_SIZE)
    before = node.across - node.breadth / 2
    if is_h:
        return Box(node.along, before - height / 2, width, height)
    return Box(node.along, before - width / 2, height, width)


def _diagram(
    picture: Picture,
    panels: Sequence[Panel],
    orientation: Orientation,
    width: float,
    panels_height: float,
) -> Diagram:
    """The whole figure: its panels, what stands around them, and its size."""
    n_sides, table = len(picture.sides), picture.table
    panels_height = plot_height = panels_height or SMALLEST_PANEL
    plot_width = n_sides * width + SIDE_GAP * (n_sides - 1)
    if table is not None:
        plot_width = max(plot_width, float(ceil(sum(table.widths))))
    colors = {link.color for panel in panels for link in panel.links}
    kinds = {node.kind for panel in panels for node in panel.nodes}
    diagram = Diagram(
        tuple(panels),
        orientation,
        plot_width,
        plot_height,
        panels_height,
        _margin_for([panel.title for panel in panels if panel.title]),
        note_lines(picture.note, plot_width),
        legend_lines(picture.legend, colors, kinds, plot_width),
        table,
        tuple(
            (number * (width + SIDE_GAP) + width / 2, escape(name))
            for number, name in enumerate(picture.sides)
            if name
        ),
    )
    if table is None:
        return diagram
    return replace(diagram, plot_height=plot_height + diagram.words_height + table.height)


def _margin_for(titles: Sequence[str]) -> float:
    """Room to the left of the diagrams for the longest title and what stands before a node."""
    if not titles:
        return SIDE_MARGIN
    lines = [line for title in titles for line in re.sub("<(?!br).*?>", "", title).split(BREAK)]
    widest = max(text_size(line, TITLE_SIZE)[0] for line in lines)
    return max(LABEL_MARGIN, ceil(TITLE_SHIFT + 1.1 * widest))  # titles are bold


def _title(position: int | None, picture: Picture) -> str | None:
    titles, n_hidden = picture.titles, picture.hidden.get(position, 0)
    if position is None:
        return "<b>All tokens</b>" if titles else None
    lines = [f"<b>position {position}</b>"]
    if titles is not None:
        lines = [f"<b>{token_label(titles[position])}</b>", _small(f"position {position}")]
    if n_hidden:
        lines.append(_small(f"{n_hidden:,} not drawn"))
    return BREAK.join(lines)


def _small(text: str) -> str:
    return f"<span style='font-size: 11px'>{text}</span>"
