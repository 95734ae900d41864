"""What the drawing tests draw: scores, and traces whose numbers can be checked in one's head."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.plan import Plan, SiteOutput
from circuit_trace.visualize.caption import SCORE_LEGEND
from circuit_trace.visualize.diagram import Diagram, Panel
from circuit_trace.visualize.edges import scored_edges
from circuit_trace.visualize.layout import NODE_THICKNESS
from circuit_trace.visualize.panels import build_diagram
from circuit_trace.visualize.picture import Picture
from circuit_trace.visualize.sankey import TOP_MARGIN
from circuit_trace.visualize.style import Style
from tests.models import shared

SEQ, BATCH, WIDTH = 6, 2, 5

EdgeName = str | tuple[int, str]
"""An edge, or an edge at a position."""

CURRENT = (3.0, 4.0, 0.0, 0.0, 0.0)
"""What the first source writes at the first position: its norm is 5."""
PATCHED = (0.0, -6.0, 8.0, 0.0, 0.0)
"""What is patched in for it: its norm is 10."""

NASTY: dict[str, str | None] = {
    "<|endoftext|>": "<|endoftext|>",
    "<b>bold</b>": "<b>bold</b>",
    "</script><img src=x onerror=alert(1)>": None,
    "<svg/onload=x()>": "<svg/onload=x()>",
    '"it\'s"': '"it\'s"',
    "a\nb": "a↵b",
    "a\tb": "a⇥b",
    "$x$": "$x$",
    "&amp;": "&amp;",
    "🤖👍": "🤖👍",
    "": "∅",
    "שלום": "שלום",
    "internationalization" * 15: None,
    "WWWWW" * 60: None,
    "漢字" * 20: None,
}
"""Tokens that break labels, and what their labels show; None where they are too long for one."""


def shows(shown: str, token: str) -> bool:
    """Whether a label shows the token, or the beginning of one that is too long."""
    expected = NASTY[token]
    if expected is None:
        return shown.endswith("…") and token.startswith(shown[:-1]) and len(shown) >= 6
    return shown == expected


@cache
def graph(seq_len: int | None = None) -> Graph:
    """The graph of 2 layers of 4 heads: 110 edges at each position."""
    return ct.wrap(shared("hooked LN"), seq_len=seq_len, verify=False).graph


def wrapped(seq_len: int | None = None) -> ct.PatchableModel:
    """A model of that graph that has run nothing yet."""
    return ct.wrap(shared("hooked LN"), seq_len=seq_len, verify=False)


def scores(values: Mapping[EdgeName, float], seq_len: int | None = None) -> ct.PruneScores:
    """`PruneScores` of the edges named; the others have 0."""
    the_graph = graph(seq_len)
    leading = () if seq_len is None else (seq_len,)
    filled = {module.name: torch.zeros(*leading, *module.shape) for module in the_graph.modules}
    for spec, value in values.items():
        position, name = (None, spec) if isinstance(spec, str) else spec
        edge = the_graph.edge(name, position)
        at_all = [] if seq_len is None else [slice(None)]
        index: list[int | slice] = at_all if edge.seq_idx is None else [edge.seq_idx]  # pyright: ignore[reportAssignmentType]
        index = [*index, *([] if edge.dest.head is None else [edge.dest.slot])]
        filled[edge.dest.module_name][(*index, edge.src.idx)] = value
    return filled


def known_outputs(vector: Sequence[float]) -> ct.SourceOutputs:
    """Source `s` writes `(s + 1) · (position + 1) · 10^batch · vector`."""
    the_graph = graph()
    width = torch.tensor(vector)
    at = (torch.arange(SEQ) + 1.0)[None] * torch.tensor([10.0**b for b in range(BATCH)])[:, None]
    sites: dict[int, list[Tensor]] = {}
    for src in the_graph.srcs:
        sites.setdefault(src.site, []).append((src.idx + 1) * at[:, :, None] * width)
    outputs = tuple(SiteOutput(torch.stack(nodes, dim=2)) for nodes in sites.values())
    return ct.SourceOutputs(the_graph.srcs, outputs, BATCH, SEQ)


def known_trace(
    masks: Mapping[EdgeName, float],
    seq_len: int | None = None,
    *,
    current: Sequence[float] = CURRENT,
    patched: Sequence[float] | None = PATCHED,
    to_strings: Callable[[Tensor], list[str]] | None = None,
) -> ct.Trace:
    """A record of a pass that never ran, in which every number is known."""
    the_graph = graph(seq_len)
    outputs = None if patched is None else known_outputs(patched)
    named = sorted(number for spec in masks for number in the_graph.numbers(spec))
    plan = Plan(the_graph, scores(masks, seq_len), tuple(named), outputs)
    ids = torch.arange(BATCH * SEQ).view(BATCH, SEQ)
    return ct.Trace(the_graph, known_outputs(current), (plan,), ids, to_strings=to_strings)


def random_scores(
    n_edges: int, seed: int, positions: Sequence[int] = (), seq_len: int | None = None
) -> ct.PruneScores:
    """Scores of both signs and many sizes for some edges, of all of them or of some positions."""
    chance = random.Random(seed)
    names = [edge.name for edge in graph().edges]
    pool: list[EdgeName] = [(p, name) for p in positions for name in names] or list(names)
    values = (chance.choice((-1, 1)) * chance.uniform(0.02, 1) for _ in range(n_edges))
    return scores(dict(zip(chance.sample(pool, n_edges), values, strict=True)), seq_len)


def score_diagram(values: ct.PruneScores, seq_len: int | None = None, **options: Any) -> Diagram:
    """The specification of a picture of scores."""
    the_graph = graph(seq_len)
    drawn = {"": scored_edges(the_graph, values, 0.01)}
    picture = Picture(the_graph, drawn, None, "note", SCORE_LEGEND)
    return build_diagram(picture, Style(**options))


@dataclass(frozen=True)
class Rect:
    """A rectangle in pixels of the whole figure."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Rect:
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlaps(self, other: Rect, slack: float = 0.2) -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across > slack and down > slack

    def inside(self, width: float, height: float, slack: float = 0.2) -> bool:
        return (
            min(self.left, self.top) >= -slack
            and self.right <= width + slack
            and self.bottom <= height + slack
        )


def node_rects(diagram: Diagram, panel: Panel) -> list[Rect]:
    """Where the nodes are drawn, as tall as what flows through them."""
    values = {number: [0.0, 0.0] for number in range(len(panel.nodes))}
    for link in panel.links:
        values[link.source][0] += link.value
        values[link.target][1] += link.value
    rects = []
    for number, node in enumerate(panel.nodes):
        extents = NODE_THICKNESS, max(values[number]) * panel.scale
        at = in_figure(diagram, node.at)
        rects.append(Rect.around(*at, *extents[:: 1 if diagram.orientation == "h" else -1]))
    return rects


def link_ends(diagram: Diagram, panel: Panel) -> list[tuple[tuple[float, float], ...]]:
    """The middles of the two ends of each link, in pixels of the figure, source first: links are
    stacked at a node from its top, or its left."""
    is_h = diagram.orientation == "h"
    rects = node_rects(diagram, panel)
    filled = [[0.0, 0.0] for _ in rects]
    ends: list[tuple[tuple[float, float], ...]] = [()] * len(panel.links)
    for number in panel.stacking:
        link, both = panel.links[number], []
        for which, node in enumerate((link.source, link.target)):
            rect, breadth = rects[node], link.value * panel.scale
            at = (rect.top if is_h else rect.left) + filled[node][which] + breadth / 2
            filled[node][which] += breadth
            sides = (rect.right, rect.left) if is_h else (rect.bottom, rect.top)
            both.append((sides[which], at) if is_h else (at, sides[which]))
        ends[number] = tuple(both)
    return ends


def size_of(diagram: Diagram) -> tuple[float, float]:
    """Width and height of the figure."""
    from circuit_trace.visualize.sankey import figure

    layout = figure(diagram).layout
    return layout.width, layout.height


def in_figure(diagram: Diagram, at: tuple[float, float]) -> tuple[float, float]:
    """A point of the plot in pixels of the figure."""
    return diagram.left_margin + at[0], TOP_MARGIN + at[1]
