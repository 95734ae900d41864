"""The one thing that Plotly decides by itself: how many pixels a unit of weight gets.

It puts the nodes into columns of its own, and makes the fullest of them fill the domain (d3-sankey
0.12, as plotly.js 4 has it); only then does it move the nodes to where it is told. `tests/visualize/
test_browser.py` compares this with a real browser.
"""

from __future__ import annotations

from collections.abc import Sequence

from circuit_trace.visualize.layout import Flow, node_values

LARGEST_PADDING = 2 / 3
"""Plotly's padding takes at most this share of the breadth."""

Column = tuple[int, float]
"""How many nodes stand in it, and the sum of their values."""


def plotly_columns(n_nodes: int, flows: Sequence[Flow]) -> list[Column]:
    """Plotly's columns: by longest path, nodes that nothing leaves at the end.

    Nodes must be numbered along the flow.
    """
    depth = [0] * n_nodes
    for flow in sorted(flows, key=lambda flow: flow.source):
        depth[flow.target] = max(depth[flow.target], depth[flow.source] + 1)
    leaving, last = {flow.source for flow in flows}, max(depth, default=0)
    held: dict[int, list[float]] = {}
    for node, value in enumerate(node_values(n_nodes, flows)):
        held.setdefault(depth[node] if node in leaving else last, []).append(value)
    return [(len(values), sum(values)) for values in held.values()]


def plotly_scale(
    n_nodes: int, flows: Sequence[Flow], breadth: float = 1.0, pad: float = 0.0
) -> float:
    """The pixels per unit of weight that Plotly takes in a domain of this breadth.

    >>> flows = [Flow(0, 1, 2.0), Flow(0, 2, 1.0)]
    >>> plotly_scale(3, flows, 60.0), plotly_scale(3, flows, 60.0, pad=6.0)
    (20.0, 18.0)
    """
    columns = plotly_columns(n_nodes, flows)
    pad = min(pad, _largest_padding(columns, breadth))
    return min((breadth - (count - 1) * pad) / value for count, value in columns)


def padding_for(n_nodes: int, flows: Sequence[Flow], breadth: float, scale: float) -> float:
    """The padding that brings Plotly's pixels per weight down to a scale, as far as that goes."""
    columns = plotly_columns(n_nodes, flows)
    pads = [(breadth - scale * value) / (count - 1) for count, value in columns if count > 1]
    return min(max(min(pads, default=0.0), 0.0), _largest_padding(columns, breadth))


def _largest_padding(columns: Sequence[Column], breadth: float) -> float:
    most = max(count for count, _ in columns)
    return LARGEST_PADDING * breadth / (most - 1) if most > 1 else 0.0
