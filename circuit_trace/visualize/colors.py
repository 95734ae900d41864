"""The colours of pictures: of links by what they mean, and of everything else by the theme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from circuit_trace.errors import FigureError
from circuit_trace.graph import NodeKind

ThemeName = Literal["light", "dark"]

PATCHED = "#D55E00"  # vermilion, from the colour-blind safe palette of Okabe & Ito
BETWEEN = "#E69F00"  # orange, from the same
CURRENT = "#6E6E6E"
POSITIVE = "#005AC8"
NEGATIVE = "#CC1E1E"
ZERO = "#808080"
# What changed between two pictures, from the same palette.
APPEARED, GREW, SHRANK, VANISHED = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
TURNED = "#CC79A7"


@dataclass(frozen=True)
class Theme:
    """The colours of a figure: its paper and ink, the lines of a table, what lies behind the labels
    on links, its nodes by kind, how opaque its links are, and what stands for a link's colour that
    would be hard to see on this paper."""

    paper: str
    ink: str
    rule: str
    behind_labels: str
    nodes: Mapping[NodeKind, str]
    link_alpha: float
    links: Mapping[str, str] = field(default_factory=dict)

    def link(self, color: str) -> str:
        """The colour of a link on this paper."""
        return self.links.get(color, color)

    def mark(self, what: str) -> str:
        """The colour of a mark of the legend, by a link's colour or a node's kind."""
        return next((color for kind, color in self.nodes.items() if kind == what), self.link(what))


THEMES = {
    # Nodes are apart from each other and from the links' colours, also to colour-blind eyes.
    "light": Theme(
        paper="white",
        ink="#222222",
        rule="#E4E4E8",
        behind_labels="rgba(255, 255, 255, 0.75)",
        nodes={"embed": "#009E73", "attention": "#6A4C93", "mlp": "#A6761D", "output": "#222222"},
        link_alpha=0.42,
    ),
    "dark": Theme(
        paper="#16181D",
        ink="#E8E8E8",
        rule="#33373F",
        behind_labels="rgba(22, 24, 29, 0.7)",
        nodes={"embed": "#2BC495", "attention": "#B79BE0", "mlp": "#D9B44A", "output": "#E8E8E8"},
        link_alpha=0.62,
        links={POSITIVE: "#4C9BFF", NEGATIVE: "#FF6B5E", CURRENT: "#A3A3AB", APPEARED: "#3D7BFF"},
    ),
}


def theme_named(name: Any) -> Theme:
    """The theme of this name."""
    if not isinstance(name, str) or name not in THEMES:
        raise FigureError(f"theme must be one of {', '.join(THEMES)}; got {name!r}.")
    return THEMES[name]


def rgba(color: str, alpha: float) -> str:
    """A colour `#RRGGBB` for Plotly, as opaque as asked."""
    if alpha == 1:
        return color
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
