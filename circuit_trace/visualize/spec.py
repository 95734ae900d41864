"""The specification of a diagram: plain data that says what is drawn where; no Plotly in here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, TypeVar

from circuit_trace.anatomy import NodeKind
from circuit_trace.graph import DestNode, Graph, SrcNode
from circuit_trace.visualize.companion import Table
from circuit_trace.visualize.edges import DrawnEdge, strongest
from circuit_trace.visualize.layout import (
    Box,
    Placed,
    Point,
    aligned,
    middles,
    padding_for_scale,
    place,
    place_labels,
    plotly_padding,
)
from circuit_trace.visualize.plotly_layout import Flow, plotly_total, stack
from circuit_trace.visualize.text import BREAK, escape, escape_name, text_size, token_label

Orientation = Literal["h", "v"]
T = TypeVar("T")

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
NODE_GAP = {"h": 24, "v": 84}
"""Pixels between two nodes of a column: a name above a node, or to the left of it."""
SMALLEST_PANEL = 64
EMPTY_PANEL = 30
"""Height of a position without edges."""
PANEL_GAP = 22
SIDE_GAP = 90
"""Pixels between diagrams side by side: half a node's name stands on either side."""
HEADING_HEIGHT = 30
NARROWEST = {"h": 540, "v": 250}
LABEL_MARGIN = 150
TITLE_SHIFT = 44
"""Pixels between a title and the diagram: half a node's name stands there."""
TITLE_SIZE = 14
SIDE_MARGIN = 60
TOP_MARGIN, BOTTOM_MARGIN = 22, 62
MOST_SHORT_LABELS = 40
"""Labels are written on so many links of a figure, the widest; all of them show on hover."""
NAME_SIZE, SHORT_SIZE = 12, 10
"""Font sizes of node names and of the labels on links."""
NOTE_SIZE, NOTE_LINE = 11, 15
"""The font size of legend and note, and pixels from one line to the next."""
MARK = 20
"""Pixels that a mark of the legend takes beside its name."""
NODE_NAMES: dict[NodeKind, str] = {
    "embed": "embedding",
    "attention": "attention head",
    "mlp": "MLP",
    "output": "output",
}


@dataclass(frozen=True)
class Node:
    """A node of a panel: Plotly's coordinates of its centre, in fractions of the domain, and the
    centre of its name in pixels from the plot's left edge and the panel's top."""

    name: str
    kind: NodeKind
    x: float
    y: float
    name_at: Point


@dataclass(frozen=True)
class Link:
    """A link of a panel: indices of its nodes, its width, what it says in full and in short, its
    colour, and the centre of its short label in pixels as of a node's name."""

    source: int
    target: int
    value: float
    label: str
    short: str
    color: str
    short_at: Point


@dataclass(frozen=True)
class Panel:
    """The diagram of one token position, or of all of them (`seq_idx` None).

    `top` is where it begins, in pixels from the top of the plot; `x_domain` and `y_domain` are the
    part of the plot from which Plotly takes the scale of widths. The second is in proportion to
    the weight that the panel holds; nodes may stand beyond it.
    """

    seq_idx: int | None
    title: str | None
    top: float
    x_domain: tuple[float, float]
    y_domain: tuple[float, float]
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    pad: float
    n_layers: int


@dataclass(frozen=True)
class Diagram:
    """A whole figure: its panels from top to bottom, its size and its words, and the table below.

    `headings` stand above panels that are side by side, each centred at its pixels from the plot's
    left edge.

    The words stand `panels_height` pixels below the plot's top. They lie below the plot, where
    there is no table; a table is in the plot, and so are words above it.
    """

    panels: tuple[Panel, ...]
    orientation: Orientation
    plot_width: float
    plot_height: float
    panels_height: float
    left_margin: float
    note: str
    legend: tuple[tuple[str, str], ...]
    table: Table | None = None
    headings: tuple[tuple[float, str], ...] = ()

    @property
    def n_links(self) -> int:
        """How many edges are drawn."""
        return sum(len(panel.links) for panel in self.panels)

    @property
    def note_lines(self) -> list[str]:
        """The note, broken into lines that fit under the diagrams."""
        return _note_lines(self.note, self.plot_width)

    @property
    def legend_lines(self) -> list[list[Mark]]:
        """The colours in use and what they mean, in lines that fit under the diagrams."""
        colors = {link.color for panel in self.panels for link in panel.links}
        kinds = {node.kind for panel in self.panels for node in panel.nodes}
        return _legend_lines(self.legend, colors, kinds, self.plot_width)

    @property
    def bottom_margin(self) -> float:
        """Pixels below the plot."""
        return SIDE_MARGIN / 2 if self.table else _words_height(self.note_lines, self.legend_lines)


Mark = tuple[str, str]
"""An entry of the legend: a link's colour or a node's kind, and what it means."""


def _note_lines(note: str, plot_width: float) -> list[str]:
    words = [(word, text_size(word + " ", NOTE_SIZE)[0] - 6) for word in note.split(" ")]
    return [" ".join(line) for line in _lines(words, plot_width)]


def _legend_lines(
    legend: tuple[tuple[str, str], ...], colors: Set[str], kinds: Set[str], plot_width: float
) -> list[list[Mark]]:
    marks: list[Mark] = [(color, name) for color, name in legend if color in colors]
    marks += [(kind, name) for kind, name in NODE_NAMES.items() if kind in kinds]
    return _lines([(one, MARK + text_size(one[1], NOTE_SIZE)[0]) for one in marks], plot_width)


def _lines(items: Sequence[tuple[T, float]], plot_width: float) -> list[list[T]]:
    """Items of a width in pixels each, in lines that fit under the diagrams."""
    lines: list[list[T]] = [[]]
    free = room = plot_width + SIDE_MARGIN
    for item, width in items:
        if lines[-1] and width > free:
            lines.append([])
            free = room
        lines[-1].append(item)
        free -= width
    return lines


def _words_height(note_lines: Sequence[str], legend_lines: Sequence[Sequence[Mark]]) -> float:
    """Pixels that the legend and the note take."""
    return BOTTOM_MARGIN + NOTE_LINE * (len(note_lines) + len(legend_lines) - 2)


@dataclass(frozen=True)
class _Content:
    """The edges of one position, made ready to be placed."""

    seq_idx: int | None
    drawn: Sequence[DrawnEdge]
    units: dict[str, tuple[NodeKind, int]]
    columns: list[int]
    n_columns: int
    flows: list[Flow]
    step: float

    @property
    def length(self) -> float:
        """Pixels along the flow."""
        return self.step * max(self.n_columns - 1, 1)

    @property
    def weight(self) -> float:
        """The widths of all its links together."""
        return sum(flow.value for flow in self.flows)

    @property
    def total(self) -> float:
        """The flow of the fullest column of Plotly's own layout."""
        return plotly_total(len(self.columns), self.flows)


def build_diagram(
    graph: Graph,
    sides: Mapping[str, Sequence[DrawnEdge]],
    *,
    titles: Sequence[str] | None,
    show_all_seq_pos: bool,
    layer_spacing: bool,
    orientation: Orientation,
    note: str,
    legend: tuple[tuple[str, str], ...],
    hidden: Mapping[int | None, int] | None = None,
    table: Table | None = None,
) -> Diagram:
    """Lay edges out, a panel per position from the first down; `hidden` counts those left out.

    `sides` are drawn side by side in one scale, each below its heading; one alone has none, "". The
    heights of the panels' domains are in proportion to the edge weight they hold.
    """
    n_sides = len(sides)
    every = [one for drawn in sides.values() for one in drawn]
    hidden = hidden or {}
    positions = sorted({one.edge.seq_idx for one in every}, key=_place_of)
    if show_all_seq_pos:
        positions = [None] if graph.seq_len is None else list(range(graph.seq_len))
    # Panels one above the other share their columns where the flow runs across, so that a node
    # stands at one place in all of them.
    contents = []
    at_positions = [_by_position(drawn) for drawn in sides.values()]
    shown = [one for found in at_positions for drawn in found.values() for one in drawn]
    step = _step(shown, orientation)
    for position in positions:
        here = [found.get(position, []) for found in at_positions]
        shared = every if orientation == "h" else [one for drawn in here for one in drawn]
        depths = _depths(graph, shared, layer_spacing)
        contents += [_content(position, drawn, depths, step) for drawn in here]
        if n_sides > 1:  # where all edges of a position leave the nodes, each side has them
            contents.append(_content(position, _union(here), depths, step))
    width, slots = (_arrange_across if orientation == "h" else _arrange_down)(contents)
    scales = [slot.scale for slot in slots if slot.scale]
    if scales and max(scales) > 1.01 * min(scales):
        which = "position" if n_sides == 1 else "diagram"
        note += f" Each {which} has its own scale of widths."
    per_row = n_sides + (n_sides > 1)
    rows = [slots[start : start + per_row] for start in range(0, len(slots), per_row)]
    rooms = [max(slot.room for slot in row) for row in rows]
    panels_height = sum(rooms) + PANEL_GAP * max(len(rooms) - 1, 0)
    plot_height = panels_height = panels_height or SMALLEST_PANEL
    plot_width = n_sides * width + SIDE_GAP * (n_sides - 1)
    if table is not None:
        plot_width = max(plot_width, float(ceil(sum(table.widths))))
        kinds = {end.kind for one in every for end in (one.edge.src, one.edge.dest)}
        lines = _legend_lines(legend, {one.color for one in every}, kinds, plot_width)
        plot_height += _words_height(_note_lines(note, plot_width), lines) + table.height
    panels, top = [], 0.0
    lefts = [number * (width + SIDE_GAP) for number in range(n_sides)]
    for number, (row, room) in enumerate(zip(rows, rooms, strict=True)):
        here = contents[number * per_row : (number + 1) * per_row]
        like = None
        if n_sides > 1:
            whole, slot = here[-1], row[-1]
            across = slot.domain[1] if orientation == "h" else slot.domain[0]
            like = whole, _placed(whole, slot.length, across, slot.pad, orientation)
        for side, (content, slot) in enumerate(zip(here[:n_sides], row, strict=False)):
            title = _title(content.seq_idx, titles, hidden.get(content.seq_idx, 0))
            area = _Area(plot_width, plot_height, lefts[side], width, top, room, *slot.domain)
            breadth = area.breadth(orientation)
            placed = _placed(content, slot.length, breadth, slot.pad, orientation, like)
            title = None if side else title
            panels.append(_panel(content, placed, area, title, slot.pad, orientation))
        top += room + PANEL_GAP
    left = _margin_for([panel.title for panel in panels if panel.title])
    headings = tuple(
        (at + width / 2, escape(name)) for at, name in zip(lefts, sides, strict=True) if name
    )
    return Diagram(
        tuple(panels),
        orientation,
        plot_width,
        plot_height,
        panels_height,
        left,
        note,
        legend,
        table,
        headings,
    )


def _place_of(position: int | None) -> int:
    return -1 if position is None else position


def _union(sides: Sequence[Sequence[DrawnEdge]]) -> list[DrawnEdge]:
    """Every edge that a side has, once, as wide as it is at the most."""
    widest: dict[tuple[str, str], DrawnEdge] = {}
    for one in (one for drawn in sides for one in drawn):
        key = one.edge.src.name, one.edge.dest.name
        if key not in widest or abs(one.weight) > abs(widest[key].weight):
            widest[key] = one
    return list(widest.values())


def _by_position(drawn: Sequence[DrawnEdge]) -> dict[int | None, list[DrawnEdge]]:
    """The edges of each position, the widest of them all with their short labels."""
    written = set(strongest([one.rank for one in drawn], MOST_SHORT_LABELS))
    found: dict[int | None, list[DrawnEdge]] = {}
    for number, one in enumerate(drawn):
        shown = one if number in written else replace(one, short="")
        found.setdefault(one.edge.seq_idx, []).append(shown)
    return found


@dataclass(frozen=True)
class _Slot:
    """Where one position's edges go: the room it takes from top to bottom, its domain's size and
    padding, and the pixels per weight that follow (0 without edges)."""

    length: float
    room: float
    domain: tuple[float, float]
    pad: float = 0.0
    scale: float = 0.0


def _arrange_across(contents: Sequence[_Content]) -> tuple[float, list[_Slot]]:
    """Panels whose flow runs from left to right: widths of links follow from a domain's height.

    That height is in proportion to the weight, so panels would draw one weight in several widths;
    Plotly's padding brings those drawn wider down to the others, as far as it goes.
    """
    width = max([content.length for content in contents] + [float(NARROWEST["h"])])
    held = [content for content in contents if content.drawn]
    common = min((one.weight / one.total for one in held), default=0.0)
    slots = [_Slot(width, EMPTY_PANEL, (width, EMPTY_PANEL)) for _ in contents]
    pads = {
        number: padding_for_scale(len(one.columns), one.flows, one.weight, common)
        for number, one in enumerate(contents)
        if one.drawn
    }
    if not pads:
        return width, slots
    widest = max(flow.value for one in held for flow in one.flows)
    per_weight = min(
        WIDEST / widest / max(scale for _, scale in pads.values()),
        TALLEST_LINKS / sum(one.weight for one in held),
    )
    for number, (unit_pad, unit_scale) in pads.items():
        content, pad = contents[number], per_weight * unit_pad
        height = per_weight * content.weight
        placed = _placed(content, width, height, pad, "h")
        room = ceil(max(placed.breadth, height, SMALLEST_PANEL))
        slots[number] = _Slot(width, room, (width, height), pad, per_weight * unit_scale)
    return width, slots


def _arrange_down(contents: Sequence[_Content]) -> tuple[float, list[_Slot]]:
    """Panels whose flow runs down: widths of links follow from a domain's width."""
    held = [content for content in contents if content.drawn]
    scale = 0.0
    if held:  # a domain is as broad as its fullest column
        widest = max(flow.value for content in held for flow in content.flows)
        scale = min(WIDEST / widest, TALLEST_LINKS / max(content.total for content in held))
    placed = [_placed(one, one.length, scale * one.total, 0.0, "v") for one in contents]
    width = float(ceil(max([one.breadth for one in placed] + [NARROWEST["v"]])))
    rooms = [content.length + NAME_SIZE for content in contents]
    per_weight = min(
        (room / one.weight for room, one in zip(rooms, contents, strict=True) if one.drawn),
        default=0.0,
    )
    slots = []
    for content, room in zip(contents, rooms, strict=True):
        if content.drawn:
            domain = (content.total * scale, content.weight * per_weight)
            slots.append(_Slot(content.length, room, domain, scale=scale))
        else:
            slots.append(_Slot(0.0, EMPTY_PANEL, (width, EMPTY_PANEL)))
    return width, slots


def lone_panel(
    graph: Graph,
    drawn: Sequence[DrawnEdge],
    *,
    seq_idx: int | None,
    interval: tuple[float, float],
    size: tuple[float, float],
    layer_spacing: bool,
    orientation: Orientation,
) -> Panel:
    """Lay the edges of one position out so that they fill a domain of `size` pixels."""
    width, height = size
    length, breadth = (width, height) if orientation == "h" else (height, width)
    depths = _depths(graph, drawn, layer_spacing)
    content = _content(seq_idx, drawn, depths, length / max(len(depths) - 1, 1))
    gap = float(NODE_GAP["h"])
    pad = plotly_padding(content.columns, content.flows, breadth, gap) if drawn else 0.0
    placed = place(
        content.columns,
        content.flows,
        length=length,
        n_columns=content.n_columns,
        stacking=stack(len(content.columns), content.flows, breadth, pad),
        gap=gap,
        breadth=breadth,
    )
    area = _Area(width, height, 0.0, width, 0.0, height, width, height)
    panel = _panel(content, placed, area, None, pad, orientation)
    return Panel(
        seq_idx, None, 0.0, (0.0, 1.0), interval, panel.nodes, panel.links, pad, content.n_columns
    )


@dataclass(frozen=True)
class _Area:
    """A panel's slot in a plot, and the extents of the domain in the middle of it, in pixels."""

    plot_width: float
    plot_height: float
    left: float
    width: float
    top: float
    room: float
    domain_width: float
    domain_height: float

    @property
    def x_domain(self) -> tuple[float, float]:
        """The domain's sides in fractions of the plot."""
        left = self.domain_left / self.plot_width
        return max(left, 0.0), min(left + self.domain_width / self.plot_width, 1.0)

    @property
    def domain_left(self) -> float:
        """Pixels from the plot's left edge to the domain's."""
        return self.left + (self.width - self.domain_width) / 2

    @property
    def y_domain(self) -> tuple[float, float]:
        """The domain's bottom and top in fractions of the plot."""
        top = self.top + (self.room - self.domain_height) / 2
        low, high = 1 - (top + self.domain_height) / self.plot_height, 1 - top / self.plot_height
        return max(low, 0.0), min(high, 1.0)

    def breadth(self, orientation: Orientation) -> float:
        """The domain's extent across the flow, by Plotly's own arithmetic: where two nodes are
        level but for rounding, the last bit decides which of their links it stacks first."""
        if orientation == "h":
            return self.plot_height * (self.y_domain[1] - self.y_domain[0])
        return self.plot_width * (self.x_domain[1] - self.x_domain[0])


def _depths(graph: Graph, drawn: Sequence[DrawnEdge], layer_spacing: bool) -> Sequence[int]:
    """The places along the flow that get a column, the same in all panels of a figure."""
    if layer_spacing:
        return range(max(dest.depth for dest in graph.dests) + 1)
    return sorted({depth for _, depth in _units(drawn).values()})


def _step(drawn: Sequence[DrawnEdge], orientation: Orientation) -> float:
    """Pixels from one column to the next."""
    least = float(COLUMN_STEP[orientation])
    if orientation == "v":
        return least
    labels = [text_size(one.short, SHORT_SIZE)[0] for one in drawn if one.short]
    return max(least, min(BESIDE_LABEL + max(labels, default=0.0), WIDEST_STEP))


def _content(
    seq_idx: int | None, drawn: Sequence[DrawnEdge], depths: Sequence[int], step: float
) -> _Content:
    units = _units(drawn)
    column = {depth: number for number, depth in enumerate(depths)}
    index = {name: number for number, name in enumerate(units)}
    thin = HAIRLINE * max((abs(one.weight) for one in drawn), default=1.0) or HAIRLINE
    flows = [
        Flow(index[one.edge.src.unit], index[one.edge.dest.unit], abs(one.weight) or thin)
        for one in drawn
    ]
    columns = [column[depth] for _, depth in units.values()]
    return _Content(seq_idx, drawn, units, columns, len(depths), flows, step)


def _units(drawn: Sequence[DrawnEdge]) -> dict[str, tuple[NodeKind, int]]:
    """The nodes that some edges join, in the order of the flow, with their kind and depth."""
    ends: list[SrcNode | DestNode] = [end for one in drawn for end in (one.edge.src, one.edge.dest)]
    ends.sort(key=lambda end: (end.depth, end.head if end.head is not None else -1))
    return {end.unit: (end.kind, end.depth) for end in ends}


def _placed(
    content: _Content,
    length: float,
    breadth: float,
    pad: float,
    orientation: Orientation,
    like: tuple[_Content, Placed] | None = None,
) -> Placed:
    """Place a panel's nodes, across the flow as in the panel that it is `like`; `breadth` is its
    domain's, from which Plotly takes the scale."""
    stacking = stack(len(content.columns), content.flows, breadth, pad)
    placed = place(
        content.columns,
        content.flows,
        length=length,
        n_columns=content.n_columns,
        stacking=stacking,
        gap=NODE_GAP[orientation],
    )
    if like is None:
        return placed
    model, other = like
    at = {unit: node.across for unit, node in zip(model.units, other.nodes, strict=True)}
    across = [at[unit] for unit in content.units]
    return aligned(placed, across, other.breadth, content.flows, stacking)


def _panel(
    content: _Content,
    placed: Placed,
    area: _Area,
    title: str | None,
    pad: float,
    orientation: Orientation,
) -> Panel:
    """Turn boxes along and across the flow into Plotly's coordinates and pixels of the slot."""
    is_h = orientation == "h"
    # Centre what was placed in the slot.
    middle = area.room / 2 if is_h else area.left + area.width / 2
    shift = middle - placed.breadth / 2
    lead = area.domain_left if is_h else (area.room - content.length) / 2
    names = [escape_name(name) for name in content.units]
    domain_top = (area.room - area.domain_height) / 2
    domain_left = area.domain_left

    def in_slot(along: float, across: float) -> Point:
        return (along + lead, across + shift) if is_h else (across + shift, along + lead)

    name_boxes = [_name_box(box, name, is_h) for box, name in zip(placed.nodes, names, strict=True)]
    nodes = []
    for (_, (kind, _)), box, name, name_box in zip(
        content.units.items(), placed.nodes, names, name_boxes, strict=True
    ):
        x, y = in_slot(box.along, box.across)
        # Plotly multiplies a node's place along the flow by the domain's width and that across it
        # by the height in both orientations, and ignores a place of exactly 0.
        along = (x - domain_left if is_h else y - domain_top) / area.domain_width
        across = (y - domain_top if is_h else x - domain_left) / area.domain_height
        at = in_slot(name_box.along, name_box.across)
        nodes.append(Node(name, kind, _round(along) or 1e-3, _round(across) or 1e-3, _rounded(at)))
    sizes = [text_size(one.short, SHORT_SIZE) for one in content.drawn]
    sizes = sizes if is_h else [(height, width) for width, height in sizes]
    flows = content.flows
    spots = middles(placed, flows)
    written = [place for place, one in enumerate(content.drawn) if one.short]
    if written:
        chosen = [sizes[place] for place in written]
        ends = replace(placed, ends=tuple(placed.ends[place] for place in written))
        found = place_labels(ends, [flows[place] for place in written], chosen, name_boxes)
        for place, spot in zip(written, found, strict=True):
            spots[place] = spot
    links = tuple(
        Link(
            flow.source,
            flow.target,
            flow.value,
            one.label,
            one.short,
            one.color,
            _rounded(in_slot(*spot)),
        )
        for one, flow, spot in zip(content.drawn, content.flows, spots, strict=True)
    )
    return Panel(
        content.seq_idx,
        title,
        area.top,
        area.x_domain,
        area.y_domain,
        tuple(nodes),
        links,
        pad,
        content.n_columns,
    )


def _name_box(node: Box, name: str, is_h: bool) -> Box:
    """Where a node's name goes: above it, or to the left of it where the flow runs down."""
    width, height = text_size(name, NAME_SIZE)
    before = node.across - node.breadth / 2
    if is_h:
        return Box(node.along, before - height / 2, width, height)
    return Box(node.along, before - width / 2, height, width)


def _round(value: float) -> float:
    """Four decimals, a tenth of a pixel and less; the same everywhere."""
    return round(value, 4) + 0.0


def _rounded(point: Point) -> Point:
    return round(point[0], 1), round(point[1], 1)


def _margin_for(titles: Sequence[str]) -> float:
    """Room to the left of the diagrams for the longest title and what stands before a node."""
    if not titles:
        return SIDE_MARGIN
    lines = [line for title in titles for line in re.sub("<(?!br).*?>", "", title).split(BREAK)]
    widest = max(text_size(line, TITLE_SIZE)[0] for line in lines)
    return max(LABEL_MARGIN, ceil(TITLE_SHIFT + 1.1 * widest))  # titles are bold


def _title(position: int | None, titles: Sequence[str] | None, n_hidden: int) -> str | None:
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
