"""Whatever edges are drawn: nodes stand apart, and every name and label is inside the figure."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_trace.visualize.diagram import NAME_SIZE, SHORT_SIZE, Diagram, Panel
from circuit_trace.visualize.labels import LABEL_PLACES
from circuit_trace.visualize.panels import MOST_SHORT_LABELS
from circuit_trace.visualize.sankey import figure
from circuit_trace.visualize.text import text_size
from tests.visualize.pictures import (
    SEQ,
    Rect,
    graph,
    in_figure,
    link_ends,
    node_rects,
    random_scores,
    score_diagram,
    scores,
    size_of,
)

NAMES = [edge.name for edge in graph().edges]
WEIGHTS = st.sampled_from([1.0, -1.0, 0.5, 0.02, -3.0, 12.0])
OPTIONS = st.fixed_dictionaries(
    {"orientation": st.sampled_from(["h", "v"]), "layer_spacing": st.booleans()}
)
WITHOUT = st.dictionaries(st.sampled_from(NAMES), WEIGHTS, min_size=1, max_size=30)
WITH = st.dictionaries(
    st.tuples(st.integers(0, SEQ - 1), st.sampled_from(NAMES)), WEIGHTS, min_size=1, max_size=30
)


NAME = {"h": 12, "v": 40}
"""Pixels before a node, above it or to the left of it, in which its name stands."""


def name_rects(diagram: Diagram, panel: Panel) -> list[Rect]:
    return [
        Rect.around(*in_figure(diagram, node.name_at), *text_size(node.name, NAME_SIZE * 1.0))
        for node in panel.nodes
    ]


def label_rects(diagram: Diagram, panel: Panel) -> list[Rect]:
    return [
        Rect.around(*in_figure(diagram, link.short_at), *text_size(link.short, SHORT_SIZE * 1.0))
        for link in panel.links
        if link.short_at is not None
    ]


def check_layout(diagram: Diagram) -> None:
    size = size_of(diagram)
    everything: list[Rect] = []
    for panel in diagram.panels:
        nodes, names = node_rects(diagram, panel), name_rects(diagram, panel)
        for one, other in combinations(nodes, 2):
            assert not one.overlaps(other)
        for one, other in combinations(names, 2):
            assert not one.overlaps(other, slack=1.0)
        for rect in [*nodes, *names, *label_rects(diagram, panel)]:
            assert rect.inside(*size)
        everything += nodes
        check_labels_on_links(diagram, panel)
    for one, other in combinations(everything, 2):
        assert not one.overlaps(other)


def check_labels_on_links(diagram: Diagram, panel: Panel) -> None:
    """A short label's centre is on the middle line of its link, away from its ends."""
    for link, ends in zip(panel.links, link_ends(diagram, panel), strict=True):
        if link.short_at is None:
            assert not link.short
            continue
        (start, end) = ends if diagram.orientation == "h" else [(y, x) for x, y in ends]
        at = in_figure(diagram, link.short_at)
        along, across = at if diagram.orientation == "h" else at[::-1]
        where = min(LABEL_PLACES, key=lambda t: abs(curve(start, end, t)[0] - along))
        assert curve(start, end, where) == pytest.approx((along, across), abs=0.3)


def curve(start: tuple[float, float], end: tuple[float, float], t: float) -> tuple[float, float]:
    """The cubic between two points that is level at both ends, as Plotly draws it."""
    middle = (start[0] + end[0]) / 2
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    along = zip(weights, (start[0], middle, middle, end[0]), strict=True)
    across = zip(weights, (start[1], start[1], end[1], end[1]), strict=True)
    return sum(w * x for w, x in along), sum(w * y for w, y in across)


@settings(max_examples=30, deadline=None)
@given(WITHOUT, OPTIONS)
def test_any_edges(edges: dict[str, float], options: dict[str, Any]) -> None:
    check_layout(score_diagram(scores(edges), **options))


@settings(max_examples=30, deadline=None)
@given(WITH, OPTIONS, st.booleans())
def test_any_edges_at_positions(
    edges: dict[tuple[int, str], float], options: dict[str, Any], show_all: bool
) -> None:
    diagram = score_diagram(scores(edges, SEQ), SEQ, show_all_seq_pos=show_all, **options)
    check_layout(diagram)
    tops = [panel.top for panel in diagram.panels]
    assert tops == sorted(tops)


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("n_edges", [1, 40, 41, 110])
def test_many_edges(n_edges: int, orientation: str) -> None:
    diagram = score_diagram(random_scores(n_edges, seed=n_edges), orientation=orientation)
    check_layout(diagram)
    assert diagram.n_links == n_edges


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("n_edges", [1, 12, MOST_SHORT_LABELS])
def test_up_to_forty_edges_each_has_its_label_on_it(n_edges: int, orientation: str) -> None:
    diagram = score_diagram(random_scores(n_edges, seed=7), orientation=orientation)
    drawn = figure(diagram)
    texts = [annotation.text for annotation in drawn.layout.annotations]
    for panel in diagram.panels:
        for link in panel.links:
            assert texts.count(link.short) == [one.short for one in panel.links].count(link.short)
    assert not [a.text for a in drawn.layout.annotations if a.text.startswith("tensor")]


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(3))
def test_labels_do_not_collide(seed: int, orientation: str) -> None:
    diagram = score_diagram(random_scores(40, seed), orientation=orientation)
    for panel in diagram.panels:
        rects = label_rects(diagram, panel)
        for number, rect in enumerate(rects):
            assert not any(rect.overlaps(other, slack=1) for other in rects[:number])


def test_beyond_forty_edges_the_widest_have_labels() -> None:
    diagram = score_diagram(random_scores(2 * MOST_SHORT_LABELS, seed=7))
    links = [link for panel in diagram.panels for link in panel.links]
    written = [link for link in links if link.short]
    assert len(written) == MOST_SHORT_LABELS < len(links)
    thinnest = min(link.value for link in written)
    assert all(link.value <= thinnest for link in links if not link.short)
    texts = [annotation.text for annotation in figure(diagram).layout.annotations]
    assert all(texts.count(link.short) for link in written)
    assert all(link.label for link in links)  # all of them on hover


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_layers_follow_the_flow(orientation: str) -> None:
    """Sources stand before what they feed, and nodes of one layer in one column."""
    diagram = score_diagram(random_scores(30, seed=3), orientation=orientation)
    (panel,) = diagram.panels
    depth = {dest.unit: dest.depth for dest in graph().dests} | {"Resid Start": 0}
    at = {node.name: node.at[orientation == "v"] for node in panel.nodes}
    for one, other in pairwise(sorted(at, key=depth.__getitem__)):
        assert (at[one] < at[other]) == (depth[one] < depth[other])
        assert depth[one] < depth[other] or at[one] == at[other]


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_one_weight_has_one_width_at_all_positions(orientation: str) -> None:
    """A chain, whose fullest column is one node, is drawn no wider than branches or an edge alone."""
    branched = ["Resid Start->A0.1.V", "Resid Start->MLP 0", "A0.1->A1.2.Q", "A1.2->Resid End"]
    edges: dict[tuple[int, str], float] = {(4, name): 1.0 for name in branched}
    edges |= {(2, "Resid Start->A0.1.V"): 1.0, (2, "A0.1->A1.2.Q"): 1.0, (1, "MLP 0->A1.0.Q"): 1.0}
    drawn = figure(score_diagram(scores(edges, SEQ), SEQ, orientation=orientation))
    axis, extent = ("y", drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b)
    if orientation == "v":
        axis, extent = ("x", drawn.layout.width - drawn.layout.margin.l - drawn.layout.margin.r)
    widths = []
    for trace in drawn.data:
        start, end = trace.domain[axis]
        # All weigh 1, so Plotly's fullest column holds as much as leaves the first node or two ends.
        fullest = {1: 1, 2: 1, 4: 2}[len(trace.link.value)]
        widths.append((end - start) * extent / fullest)
    assert widths == pytest.approx([widths[0]] * 3, abs=0.02)


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(6))
def test_nodes_and_names_do_not_stand_on_links_that_pass_them(seed: int, orientation: str) -> None:
    diagram = score_diagram(random_scores(14, seed=seed), orientation=orientation)
    (panel,) = diagram.panels
    axis = 0 if orientation == "h" else 1
    for rect, node in zip(node_rects(diagram, panel), panel.nodes, strict=True):
        along = (rect.left + rect.right, rect.top + rect.bottom)[axis] / 2
        low, high = (rect.top, rect.bottom) if orientation == "h" else (rect.left, rect.right)
        for link, ends in zip(panel.links, link_ends(diagram, panel), strict=True):
            start, end = ends if orientation == "h" else [(y, x) for x, y in ends]
            first, last = (panel.nodes[at].at[axis] for at in (link.source, link.target))
            if first < node.at[axis] < last:
                path = [curve(start, end, step / 200) for step in range(201)]
                middle = min(path, key=lambda point: abs(point[0] - along))[1]
                half = link.value * panel.scale / 2
                assert middle + half < low - NAME[orientation] or middle - half > high - 1


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(4))
def test_links_of_a_node_lie_in_the_order_of_their_far_ends(seed: int, orientation: str) -> None:
    (panel,) = score_diagram(random_scores(30, seed), orientation=orientation).panels
    axis = 1 if orientation == "h" else 0
    for node in range(len(panel.nodes)):
        for near, far in (("source", "target"), ("target", "source")):
            links = [n for n in panel.stacking if getattr(panel.links[n], near) == node]
            ends = [
                (round(panel.nodes[getattr(panel.links[n], far)].at[axis], 1), n) for n in links
            ]
            assert ends == sorted(ends)  # links between the same two nodes in the edges' order


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_what_a_node_feeds_alike_stands_evenly_around_it(orientation: str) -> None:
    edges = {f"Resid Start->A0.{head}.V": 1.0 for head in range(4)}
    (panel,) = score_diagram(scores(edges), orientation=orientation).panels
    source, *heads = (node.at[1 if orientation == "h" else 0] for node in panel.nodes)
    assert sum(heads) / 4 == pytest.approx(source, abs=0.1)
    steps = [other - one for one, other in pairwise(heads)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.1)
    assert [node.name for node in panel.nodes] == ["Resid Start", *(f"A0.{h}" for h in range(4))]


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(4))
def test_no_band_of_a_panel_is_empty(seed: int, orientation: str) -> None:
    """Edges that nothing joins to the others stand no further from them than names need."""
    diagram = score_diagram(random_scores(8, seed), orientation=orientation)
    (panel,) = diagram.panels
    axis = 1 if orientation == "h" else 0
    taken = [
        (rect.top, rect.bottom) if axis else (rect.left, rect.right)
        for rect in node_rects(diagram, panel)
    ]
    for ends in link_ends(diagram, panel):
        taken.append((min(end[axis] for end in ends), max(end[axis] for end in ends)))
    reached = min(low for low, _ in taken)
    for low, high in sorted(taken):
        assert low - reached < {"h": 30, "v": 90}[orientation]
        reached = max(reached, high)
