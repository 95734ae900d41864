"""The specification of a figure: plain data that says what is drawn where, in pixels of the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from circuit_trace.graph import NodeKind
from circuit_trace.visualize.companion import Table
from circuit_trace.visualize.layout import Point
from circuit_trace.visualize.text import text_size

Orientation = Literal["h", "v"]
T = TypeVar("T")

NAME_SIZE, SHORT_SIZE = 12, 10
"""Font sizes of node names and of the labels on links."""
NOTE_SIZE, NOTE_LINE = 11, 15
"""The font size of legend and note, and pixels from one line to the next."""
TITLE_SIZE, TITLE_SHIFT = 14, 44
"""The font size of titles, and pixels between a title and the diagram, for half a node's name."""
SIDE_MARGIN, BOTTOM_MARGIN = 60, 62
MARK = 20
"""Pixels that a mark of the legend takes beside its name."""
NODE_NAMES: dict[NodeKind, str] = {
    "embed": "embedding",
    "attention": "attention head",
    "mlp": "MLP",
    "output": "output",
}

Legend = tuple[tuple[str, str], ...]
"""The colours that links may have, and what each means."""
Mark = tuple[str, str]
"""An entry of the legend as it is shown: a link's colour or a node's kind, and what it means."""


@dataclass(frozen=True)
class Node:
    """A node of a panel, with its centre and that of its name."""

    name: str
    kind: NodeKind
    at: Point
    name_at: Point


@dataclass(frozen=True)
class Link:
    """A link of a panel: indices of its nodes, its width, what it says in full and in short, its
    colour, and the centre of its short label, None where it has none."""

    source: int
    target: int
    value: float
    label: str
    short: str
    color: str
    short_at: Point | None


@dataclass(frozen=True)
class Panel:
    """The diagram of one token position, or of all of them (`seq_idx` None), and the part of the plot
    that it takes; a unit of weight is `scale` pixels wide.

    `stacking` is the order of the links in which they lie at their nodes, from the top or the left.
    """

    seq_idx: int | None
    title: str | None
    left: float
    top: float
    width: float
    height: float
    scale: float
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    stacking: tuple[int, ...]
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
    note_lines: tuple[str, ...]
    legend_lines: tuple[tuple[Mark, ...], ...]
    table: Table | None = None
    headings: tuple[tuple[float, str], ...] = ()

    @property
    def n_links(self) -> int:
        """How many edges are drawn."""
        return sum(len(panel.links) for panel in self.panels)

    @property
    def note(self) -> str:
        """The note in one line."""
        return " ".join(self.note_lines)

    @property
    def words_height(self) -> float:
        """Pixels that the legend and the note take."""
        return BOTTOM_MARGIN + NOTE_LINE * (len(self.note_lines) + len(self.legend_lines) - 2)

    @property
    def bottom_margin(self) -> float:
        """Pixels below the plot."""
        return SIDE_MARGIN / 2 if self.table else self.words_height


def note_lines(note: str, plot_width: float) -> tuple[str, ...]:
    """A note, broken into lines that fit under the diagrams."""
    words = [(word, text_size(word + " ", NOTE_SIZE)[0] - 6) for word in note.split(" ")]
    return tuple(" ".join(line) for line in _lines(words, plot_width))


def legend_lines(
    legend: Legend, colors: set[str], kinds: set[str], plot_width: float
) -> tuple[tuple[Mark, ...], ...]:
    """The colours and kinds of nodes in use and what they mean, in lines that fit under the diagrams."""
    marks: list[Mark] = [(color, name) for color, name in legend if color in colors]
    marks += [(kind, name) for kind, name in NODE_NAMES.items() if kind in kinds]
    sized = [(mark, MARK + text_size(mark[1], NOTE_SIZE)[0]) for mark in marks]
    return tuple(map(tuple, _lines(sized, plot_width)))


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
