"""A picture to a figure: laid out, rendered, shown, and written where that is asked for."""

from __future__ import annotations

import plotly.graph_objects as go

from circuit_trace.visualize.notebook import show_in_ipython
from circuit_trace.visualize.panels import build_diagram
from circuit_trace.visualize.picture import Picture
from circuit_trace.visualize.sankey import figure
from circuit_trace.visualize.style import Style
from circuit_trace.visualize.write import File, write


def present(picture: Picture, style: Style, display_ipython: bool, file: File | None) -> go.Figure:
    """The figure of a picture; inside IPython it is shown too, if asked for."""
    diagram = build_diagram(picture, style)
    drawn = figure(diagram, style.colors)
    if display_ipython:
        show_in_ipython(drawn)
    if file is not None:
        write(drawn, diagram, file)
    return drawn
