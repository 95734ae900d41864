"""A diagram as text that other tools draw: Mermaid (Markdown pages, GitHub) and DOT (Graphviz).

They get the nodes, edges, labels, widths and colours of the specification; where things stand is up
to the tool that draws them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator

from circuit_trace.text import dot_text, mermaid_text
from circuit_trace.visualize.colors import THEMES
from circuit_trace.visualize.diagram import Diagram, Link, Panel
from circuit_trace.visualize.text import BREAK

THICKEST = 5
"""The pen of the widest link, in pixels."""

KINDS = THEMES["light"].nodes


def mermaid(diagram: Diagram) -> str:
    """The diagram as a Mermaid flowchart, a subgraph per position."""
    lines = ["flowchart " + ("LR" if diagram.orientation == "h" else "TD")]
    styles: list[str] = []
    pen = _pen(diagram)
    for panel, number, indent in _panels(diagram):
        if panel.title:
            lines.append(f'  subgraph p{number}["{_quoted(panel.title)}"]')
        for at, node in enumerate(panel.nodes):
            name = _quoted(node.name)
            lines.append(f'{indent}p{number}n{at}["{name}"]:::{node.kind}')
        for link in panel.links:
            said = f'|"{_quoted(link.short)}"|' if link.short else ""
            lines.append(f"{indent}p{number}n{link.source} -->{said} p{number}n{link.target}")
            style = f"stroke:{link.color},stroke-width:{pen(link):g}px"
            styles.append(f"  linkStyle {len(styles)} {style}")
        if panel.title:
            lines.append("  end")
    used = {node.kind for panel in diagram.panels for node in panel.nodes}
    kinds = [
        f"  classDef {kind} fill:{color},color:#ffffff,stroke:none"
        for kind, color in KINDS.items()
        if kind in used
    ]
    return "\n".join([*lines, *styles, *kinds, f"  %% {_quoted(diagram.note)}"]) + "\n"


def dot(diagram: Diagram) -> str:
    """The diagram as a DOT digraph, a cluster per position."""
    pen = _pen(diagram)
    lines = [
        "digraph circuit {",
        f"  rankdir={'LR' if diagram.orientation == 'h' else 'TB'};",
        f'  label="{_dot_text(diagram.note)}";',
        '  fontname="Helvetica";',
        '  node [shape=box, style="filled,rounded", color=none, fontcolor=white, '
        'fontname="Helvetica"];',
        '  edge [fontname="Helvetica", fontsize=10, arrowsize=0.6];',
    ]
    for panel, number, indent in _panels(diagram):
        if panel.title:
            lines += [f"  subgraph cluster_{number} {{"]
            lines += [f'    label="{_dot_text(panel.title)}";']
        for at, node in enumerate(panel.nodes):
            lines.append(
                f'{indent}p{number}n{at} [label="{_dot_text(node.name)}", '
                f'fillcolor="{KINDS[node.kind]}"];'
            )
        for link in panel.links:
            lines.append(
                f"{indent}p{number}n{link.source} -> p{number}n{link.target} "
                f'[label="{_dot_text(link.short)}", penwidth={pen(link):g}, '
                f'color="{link.color}"];'
            )
        if panel.title:
            lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _panels(diagram: Diagram) -> Iterator[tuple[Panel, int, str]]:
    """The panels with their number and the indentation of what is in them."""
    for number, panel in enumerate(diagram.panels):
        yield panel, number, "    " if panel.title else "  "


def _pen(diagram: Diagram) -> Callable[[Link], float]:
    """How thick the pen of each link is."""
    values = [link.value for panel in diagram.panels for link in panel.links]
    widest = max(values, default=1.0)
    return lambda link: round(max(THICKEST * link.value / widest, 0.5), 2)


def _plain(text: str) -> str:
    """A label of the figure without the markup and entities that Plotly reads."""
    return html.unescape(re.sub("<[^>]*>", "", text.replace(BREAK, ", ")))


def _quoted(text: str) -> str:
    """Plain text for inside Mermaid's double quotes."""
    return mermaid_text(_plain(text))


def _dot_text(text: str) -> str:
    return dot_text(_plain(text))
