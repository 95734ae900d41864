"""A figure's graph as Mermaid and DOT: nodes, edges, labels, widths and colours of the specification;
where things stand is up to the tool that draws them."""

from __future__ import annotations

import html
import re

from circuit_trace import graph_text
from circuit_trace.graph_text import TextArrow, TextGroup, TextNode, attributes, quoted
from circuit_trace.text import mermaid_text
from circuit_trace.visualize.colors import THEMES
from circuit_trace.visualize.diagram import Diagram, Link, Panel
from circuit_trace.visualize.text import BREAK

THICKEST = 5
"""The pen of the widest link, in pixels."""

KINDS = THEMES["light"].nodes
DOT_SETTINGS = (
    'fontname="Helvetica"',
    'node [shape=box, style="filled,rounded", color=none, fontcolor=white, fontname="Helvetica"]',
    'edge [fontname="Helvetica", fontsize=10, arrowsize=0.6]',
)


def mermaid(diagram: Diagram) -> str:
    """The diagram as a Mermaid flowchart, a subgraph per position."""
    widest = _widest(diagram)
    links = [link for panel in diagram.panels for link in panel.links]
    styles = [
        f"linkStyle {number} stroke:{link.color},stroke-width:{_pen(link, widest):g}px"
        for number, link in enumerate(links)
    ]
    used = {node.kind for panel in diagram.panels for node in panel.nodes}
    kinds = [
        f"classDef {kind} fill:{color},color:#ffffff,stroke:none"
        for kind, color in KINDS.items()
        if kind in used
    ]
    direction = "LR" if diagram.orientation == "h" else "TD"
    note = f"%% {mermaid_text(_plain(diagram.note))}"
    return graph_text.mermaid(_groups(diagram), direction, tail=[*styles, *kinds, note])


def dot(diagram: Diagram) -> str:
    """The diagram as a DOT digraph, a cluster per position."""
    direction = f"rankdir={'LR' if diagram.orientation == 'h' else 'TB'}"
    note = f"label={quoted(_plain(diagram.note))}"
    return graph_text.dot(_groups(diagram), [direction, note, *DOT_SETTINGS])


def _groups(diagram: Diagram) -> list[TextGroup]:
    widest = _widest(diagram)
    return [_group(panel, number, widest) for number, panel in enumerate(diagram.panels)]


def _group(panel: Panel, number: int, widest: float) -> TextGroup:
    nodes = []
    for at, node in enumerate(panel.nodes):
        name = _plain(node.name)
        look = attributes({"label": quoted(name), "fillcolor": quoted(KINDS[node.kind])})
        nodes.append(TextNode(f"p{number}n{at}", name, node.kind, look))
    arrows = []
    for link in panel.links:
        said, pen = _plain(link.short), f"{_pen(link, widest):g}"
        look = attributes({"label": quoted(said), "penwidth": pen, "color": quoted(link.color)})
        ends = f"p{number}n{link.source}", f"p{number}n{link.target}"
        arrows.append(TextArrow(*ends, said, look))
    return TextGroup(nodes, arrows, _plain(panel.title or ""))


def _widest(diagram: Diagram) -> float:
    return max((link.value for panel in diagram.panels for link in panel.links), default=1.0)


def _pen(link: Link, widest: float) -> float:
    """How thick the pen of a link is."""
    return round(max(THICKEST * link.value / widest, 0.5), 2)


def _plain(text: str) -> str:
    """A label of the figure without the markup and entities that Plotly reads."""
    return html.unescape(re.sub("<[^>]*>", "", text.replace(BREAK, ", ")))
