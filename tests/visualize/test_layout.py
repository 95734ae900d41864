"""Whatever edges are drawn: nodes stand apart, and every name and label is inside the figure."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_trace.visualize.layout import LABEL_PLACES, Box
from circuit_trace.visualize.sankey import figure
from circuit_trace.visualize.spec import MOST_SHORT_LABELS, NAME_SIZE, SHORT_SIZE, Diagram, Panel
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
    stacking_of,
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


def name_rects(diagram: Diagram, panel: Panel) -> list[Rect]:
    return [
        Rect.around(
            *in_figure(diagram, panel, node.name_at), *text_size(node.name, NAME_SIZE * 1.0)
        )
        for node in panel.nodes
    ]


def label_rects(diagram: Diagram, panel: Panel) -> list[Rect]:
    return [
        Rect.around(
            *in_figure(diagram, panel, link.short_at), *text_size(link.short, SHORT_SIZE * 1.0)
        )
        for link in panel.links
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
        (start, end) = ends if diagram.orientation == "h" else [(y, x) for x, y in ends]
        at = in_figure(diagram, panel, link.short_at)
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
    at = {node.name: node.x for node in panel.nodes}
    for one, other in pairwise(sorted(at, key=depth.__getitem__)):
        assert (at[one] < at[other]) == (depth[one] < depth[other])
        assert depth[one] < depth[other] or at[one] == at[other]


def widths(diagram: Diagram) -> list[float]:
    """Pixels per unit of weight in each position's diagram."""
    return [stacking_of(diagram, panel)[1].scale for panel in diagram.panels]


def test_one_weight_has_one_width_at_all_positions() -> None:
    """A chain with branches is drawn no wider than an edge alone, though its domain is taller."""
    branched = ["Resid Start->A0.1.V", "Resid Start->MLP 0", "A0.1->A1.2.Q", "A1.2->Resid End"]
    edges: dict[tuple[int, str], float] = {(4, name): 1.0 for name in branched}
    edges[1, "MLP 0->A1.0.Q"] = 1.0
    one, other = widths(score_diagram(scores(edges, SEQ), SEQ))
    assert one == pytest.approx(other, rel=1e-6)


def test_where_widths_must_differ_the_note_says_so() -> None:
    """Plotly cannot be told to draw a chain of single nodes thinner in a domain that tall."""
    chain = {(4, "Resid Start->A0.1.V"): 1.0, (4, "A0.1->A1.2.Q"): 1.0}
    diagram = score_diagram(scores({**chain, (1, "MLP 0->A1.0.Q"): 1.0}, SEQ), SEQ)
    one, other = widths(diagram)
    assert other == pytest.approx(2 * one)
    assert diagram.note.endswith("Each position has its own scale of widths.")


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(6))
def test_nodes_do_not_stand_on_links_that_pass_them(seed: int, orientation: str) -> None:
    diagram = score_diagram(random_scores(14, seed=seed), orientation=orientation)
    (panel,) = diagram.panels
    flows, stacking = stacking_of(diagram, panel)
    axis = 0 if orientation == "h" else 1
    for rect, node in zip(node_rects(diagram, panel), panel.nodes, strict=True):
        along = (rect.left + rect.right, rect.top + rect.bottom)[axis] / 2
        low, high = (rect.top, rect.bottom) if orientation == "h" else (rect.left, rect.right)
        for flow, ends in zip(flows, link_ends(diagram, panel), strict=True):
            start, end = ends if orientation == "h" else [(y, x) for x, y in ends]
            if panel.nodes[flow.source].x < node.x < panel.nodes[flow.target].x:
                path = [curve(start, end, step / 200) for step in range(201)]
                middle = min(path, key=lambda point: abs(point[0] - along))[1]
                half = flow.value * stacking.scale / 2
                assert middle + half < low + 1 or middle - half > high - 1


def test_overlap_of_boxes() -> None:
    one = Box(0.0, 0.0, 4.0, 2.0)
    assert one.overlap(Box(3.0, 0.0, 4.0, 2.0)) == 2.0
    assert one.overlap(Box(4.0, 0.0, 4.0, 2.0)) == 0.0
    assert one.overlap(Box(9.0, 9.0, 4.0, 2.0)) == 0.0
