"""Render a diagram's specification as a Plotly figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from circuit_trace.visualize.colors import THEMES, Theme, rgba
from circuit_trace.visualize.companion import FONT_SIZE, HEADER_HEIGHT, ROW_HEIGHT, Table
from circuit_trace.visualize.diagram import (
    NAME_SIZE,
    NOTE_LINE,
    NOTE_SIZE,
    SHORT_SIZE,
    SIDE_MARGIN,
    TITLE_SHIFT,
    TITLE_SIZE,
    Diagram,
    Orientation,
    Panel,
)
from circuit_trace.visualize.layout import NODE_THICKNESS, Flow, Point
from circuit_trace.visualize.notebook import Figure
from circuit_trace.visualize.plotly_scale import plotly_scale
from circuit_trace.visualize.text import BREAK

HEADING_HEIGHT = 30
TOP_MARGIN = 22
FONT = "Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Domain:
    """The part of a figure's plot that Plotly gets for a Sankey, in shares of the plot and in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float

    @classmethod
    def of(cls, diagram: Diagram, panel: Panel) -> Domain:
        """Where a panel begins, and as broad as gives its links the panel's scale; nodes may stand
        beyond it."""
        flows = [Flow(link.source, link.target, link.value) for link in panel.links]
        breadth = panel.scale / plotly_scale(len(panel.nodes), flows)
        is_h = diagram.orientation == "h"
        width, height = (panel.width, breadth) if is_h else (breadth, panel.height)
        left, top = panel.left / diagram.plot_width, panel.top / diagram.plot_height
        x = left, min(left + width / diagram.plot_width, 1.0)
        y = max(1 - top - height / diagram.plot_height, 0.0), 1 - top
        return cls(x, y, width, height)


def sankey(
    panel: Panel,
    orientation: Orientation,
    theme: Theme,
    domain: Domain,
    *,
    pad: float = 0.0,
    names: bool = True,
) -> go.Sankey:
    """One panel as a Plotly Sankey trace, its nodes named by Plotly if `names`."""
    font = {"family": FONT, "size": NAME_SIZE, "color": theme.ink}
    if not names:
        font = {"size": 1, "color": "rgba(0, 0, 0, 0)", "shadow": "none"}
    from_left, from_top = (
        [node.at[axis] - begin for node in panel.nodes]
        for axis, begin in enumerate((panel.left, panel.top))
    )
    along, across = (from_left, from_top) if orientation == "h" else (from_top, from_left)
    links = [panel.links[number] for number in panel.stacking]
    return go.Sankey(
        visible=bool(panel.links),  # Plotly fails on a Sankey without links
        arrangement="fixed",
        orientation=orientation,
        domain={"x": list(domain.x), "y": list(domain.y)},
        node={
            "label": [node.name for node in panel.nodes],
            "color": [theme.nodes[node.kind] for node in panel.nodes],
            # In both orientations a place along the flow counts from the domain's width.
            "x": [_share(at, domain.width) for at in along],
            "y": [_share(at, domain.height) for at in across],
            "sort": "input",
            "pad": pad,
            "thickness": NODE_THICKNESS,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        link={
            "source": [link.source for link in links],
            "target": [link.target for link in links],
            "value": [link.value for link in links],
            "label": [link.label for link in links],
            "color": [rgba(theme.link(link.color), theme.link_alpha) for link in links],
            "sort": "input",
            "hovertemplate": "%{label}<extra></extra>",
        },
        textfont=font,
    )


def _share(pixels: float, whole: float) -> float:
    """A place in a domain, to about a hundredth of a pixel; Plotly ignores a place of exactly 0."""
    return round(pixels / whole, 5) or 1e-5


def figure(diagram: Diagram, theme: Theme = THEMES["light"]) -> Figure:
    """The whole diagram as a Plotly figure, independent of Plotly's global template."""
    bottom = diagram.bottom_margin
    top = TOP_MARGIN + (HEADING_HEIGHT if diagram.headings else 0)
    layout = go.Layout(
        template=go.layout.Template(),
        width=round(diagram.plot_width + diagram.left_margin + SIDE_MARGIN),
        height=round(diagram.plot_height + top + bottom),
        margin={"l": diagram.left_margin, "r": SIDE_MARGIN, "t": top, "b": bottom},
        paper_bgcolor=theme.paper,
        plot_bgcolor=theme.paper,
        font={"family": FONT, "size": NAME_SIZE, "color": theme.ink},
        hoverlabel={"align": "left", "font": {"family": "monospace", "size": NAME_SIZE}},
        xaxis={"visible": False},  # Plotly draws axes where there is no diagram
        yaxis={"visible": False},
        annotations=[
            *_headings(diagram),
            *_titles(diagram),
            *_names(diagram),
            *_short_labels(diagram, theme),
            *_words(diagram, theme),
        ],
    )
    # Names are drawn as annotations above their nodes: Plotly would write them over the links.
    traces = [
        sankey(panel, diagram.orientation, theme, Domain.of(diagram, panel), names=False)
        for panel in diagram.panels
        if panel.links
    ]
    tables = [] if diagram.table is None else [_table(diagram, diagram.table, theme)]
    return Figure(data=[*traces, *tables], layout=layout)


def _table(diagram: Diagram, table: Table, theme: Theme) -> go.Table:
    """The table at the bottom of the plot, as tall as its rows."""
    font = {"family": FONT, "size": FONT_SIZE, "color": theme.ink}
    align = ["right" if is_number else "left" for is_number in table.are_numbers]
    cells = {"align": align, "font": font, "line": {"color": theme.rule}}
    return go.Table(
        domain={"x": [0, 1], "y": [0, table.height / diagram.plot_height]},
        columnwidth=list(table.widths),
        header={
            **cells,
            "values": [f"<b>{name}</b>" for name in table.names],
            "fill": {"color": theme.rule},
            "height": HEADER_HEIGHT,
        },
        cells={
            **cells,
            # Plotly sets text with markup a little lower, and an edge's arrow counts as markup.
            "values": [[f"<span>{cell}</span>" for cell in column] for column in table.columns],
            "fill": {"color": theme.paper},
            "height": ROW_HEIGHT,
        },
    )


def _annotation(x: float, y: float, text: str, **more: Any) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "showarrow": False,
        **more,
    }


def _centred(diagram: Diagram, at: Point, text: str, **more: Any) -> dict[str, Any]:
    """An annotation centred at a point in pixels of the plot."""
    x, y = at[0] / diagram.plot_width, 1 - at[1] / diagram.plot_height
    return _annotation(x, y, text, xanchor="center", yanchor="middle", **more)


def _headings(diagram: Diagram) -> list[dict[str, Any]]:
    """What each of the diagrams side by side shows."""
    style = {"xanchor": "center", "yanchor": "bottom", "font": {"size": TITLE_SIZE}}
    return [
        _annotation(x / diagram.plot_width, 1, f"<b>{name}</b>", yshift=TOP_MARGIN, **style)
        for x, name in diagram.headings
    ]


def _titles(diagram: Diagram) -> list[dict[str, Any]]:
    """A bold label in the margin beside each position's diagram."""
    return [
        _annotation(
            0,
            1 - (panel.top + panel.height / 2) / diagram.plot_height,
            panel.title,
            xanchor="right",
            yanchor="middle",
            xshift=-TITLE_SHIFT,
            align="right",
            font={"size": TITLE_SIZE},
        )
        for panel in diagram.panels
        if panel.title
    ]


def _names(diagram: Diagram) -> list[dict[str, Any]]:
    return [
        _centred(diagram, node.name_at, node.name, font={"size": NAME_SIZE})
        for panel in diagram.panels
        for node in panel.nodes
    ]


def _short_labels(diagram: Diagram, theme: Theme) -> list[dict[str, Any]]:
    """What flows along each edge, written on it, so that a still picture says it too."""
    style = {"font": {"size": SHORT_SIZE}, "bgcolor": theme.behind_labels, "borderpad": 1}
    return [
        _centred(diagram, link.short_at, link.short, **style)
        for panel in diagram.panels
        for link in panel.links
        if link.short_at is not None
    ]


def _words(diagram: Diagram, theme: Theme) -> list[dict[str, Any]]:
    """The note above and the legend below."""
    lines = [
        "   ".join(
            f"<span style='color: {theme.mark(color)}'>■</span> {name}" for color, name in line
        )
        for line in diagram.legend_lines
    ]
    legend = BREAK.join(lines)
    below = -14 - NOTE_LINE * len(lines) - 3
    words = [
        _annotation(
            0,
            1 - diagram.panels_height / diagram.plot_height,
            text,
            xanchor="left",
            yanchor="top",
            yshift=shift,
            align="left",
            font={"size": NOTE_SIZE},
        )
        for text, shift in ((legend, -14), (BREAK.join(diagram.note_lines), below))
        if text
    ]
    if not diagram.n_links:
        note = BREAK.join(diagram.note_lines)
        words = [_annotation(0, 0.5, note, xanchor="left", align="left", font={"size": NOTE_SIZE})]
    return words
