"""The specification of whole diagrams, as golden texts (`--overwrite` writes them anew)."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.visualize.diagram import Diagram, Panel
from circuit_trace.visualize.edges import scored_edges
from circuit_trace.visualize.panels import build_diagram
from circuit_trace.visualize.picture import Picture
from circuit_trace.visualize.sankey import figure
from circuit_trace.visualize.style import Style
from tests.visualize.pictures import (
    NASTY,
    SEQ,
    graph,
    known_trace,
    random_scores,
    score_diagram,
    scores,
)

CHAIN = {"Resid Start->A0.1.K": 1.0, "A0.1->A1.2.Q": 0.5, "A1.2->Resid End": 1.0}
SPREAD = {
    (1, "Resid Start->A0.1.V"): 1.0,
    (1, "A0.1->A1.2.K"): 0.25,
    (3, "MLP 0->A1.0.Q"): 1.0,
    (5, "A1.0->Resid End"): 1.0,
    (5, "A0.3->MLP 1"): -0.5,
}
SIGNED = {
    "Resid Start->A0.1.V": -2.0,
    "Resid Start->MLP 0": 0.5,
    "A0.1->MLP 0": 1.5,
    "MLP 0->Resid End": -0.02,
}
LABELS = list(NASTY)[:SEQ]

LIVE: dict[str, tuple[dict, int | None, dict[str, Any]]] = {
    "live_h": (CHAIN, None, {}),
    "live_v": (CHAIN, None, {"orientation": "v"}),
    "live_positions_h": (SPREAD, SEQ, {"seq_labels": LABELS}),
    "live_positions_v": (SPREAD, SEQ, {"seq_labels": LABELS, "orientation": "v"}),
    "live_all_positions": (SPREAD, SEQ, {"show_all_seq_pos": True}),
    "live_layer_spacing": (CHAIN, None, {"layer_spacing": True, "orientation": "v"}),
    "live_batch_idx": (CHAIN, None, {"batch_idx": 1, "score_threshold": 0.75}),
}
SCORED: dict[str, tuple[dict, int | None, dict[str, Any]]] = {
    "scores_h": (SIGNED, None, {}),
    "scores_v": (SIGNED, None, {"orientation": "v", "layer_spacing": True}),
    "scores_empty": ({}, None, {}),
    "scores_empty_all_positions": ({}, SEQ, {"show_all_seq_pos": True}),
}


@pytest.mark.parametrize("case", LIVE)
def test_live(case: str, golden: Callable[[str, str], None], diagrams: list[Diagram]) -> None:
    masks, seq_len, options = LIVE[case]
    ct.draw_seq_graph(known_trace(masks, seq_len), **options)
    golden(case, as_text(diagrams[0]))


@pytest.mark.parametrize("case", SCORED)
def test_scores(case: str, golden: Callable[[str, str], None], diagrams: list[Diagram]) -> None:
    values, seq_len, options = SCORED[case]
    ct.draw_seq_graph(known_trace({}, seq_len), scores(values, seq_len), **options)
    golden(case, as_text(diagrams[0]))


def as_text(diagram: Diagram) -> str:
    """A specification for people to read."""
    lines = [
        f"{diagram.orientation}, plot {diagram.plot_width:g} x {diagram.plot_height:.1f}, "
        f"left margin {diagram.left_margin:g}",
        f"note: {diagram.note}",
        f"legend: {', '.join(name for line in diagram.legend_lines for _, name in line)}",
    ]
    return (
        "\n".join([*lines, *(line for panel in diagram.panels for line in panel_lines(panel))])
        + "\n"
    )


def panel_lines(panel: Panel) -> list[str]:
    def place(at: tuple[float, float]) -> str:
        return f"({at[0]:.1f}, {at[1]:.1f})"

    lines = [
        "",
        f"panel at {panel.seq_idx}, title {panel.title}",
        f"  {panel.width:.1f} x {panel.height:.1f} at {place((panel.left, panel.top))}, "
        f"scale {panel.scale:.2f}, {panel.n_layers} layers",
    ]
    for node in panel.nodes:
        lines.append(
            f"  {node.kind} {node.name} at {place(node.at)}, name at {place(node.name_at)}"
        )
    for link in panel.links:
        lines.append(
            f"  {panel.nodes[link.source].name} to {panel.nodes[link.target].name}: "
            f"{link.value:.4f} {link.color}, {link.short!r}"
            + ("" if link.short_at is None else f" at {place(link.short_at)}")
        )
        lines += [f"    {line}" for line in link.label.split("<br>")]
    return lines


@pytest.mark.parametrize("show_all", [False, True])
@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seed", range(3))
def test_positions_stand_apart_the_first_on_top_all_in_one_scale(
    seed: int, orientation: str, show_all: bool
) -> None:
    values = random_scores(20, seed=seed, positions=(4, 1, 2), seq_len=SEQ)
    diagram = score_diagram(values, SEQ, orientation=orientation, show_all_seq_pos=show_all)
    assert [panel.seq_idx for panel in diagram.panels] == (
        list(range(SEQ)) if show_all else [1, 2, 4]
    )
    floor = 0.0
    for panel in diagram.panels:
        assert floor <= panel.top < panel.top + panel.height <= diagram.plot_height
        floor = panel.top + panel.height
        assert 0 <= panel.left < panel.left + panel.width <= diagram.plot_width
    assert len({panel.scale for panel in diagram.panels}) == 1
    for trace in figure(diagram).data:
        assert 0 <= trace.domain.x[0] < trace.domain.x[1] <= 1
        assert 0 <= trace.domain.y[0] < trace.domain.y[1] <= 1


def test_layer_spacing_gives_every_layer_its_place() -> None:
    values = scores({"Resid Start->A0.1.V": 1.0, "A0.1->Resid End": 1.0})
    (close,) = score_diagram(values).panels
    (spaced,) = score_diagram(values, layer_spacing=True).panels
    last = max(dest.depth for dest in graph().dests)
    assert (close.n_layers, spaced.n_layers) == (3, last + 1)
    at = [[node.at[0] for node in panel.nodes] for panel in (close, spaced)]

    def shares(x: list[float]) -> list[float]:
        return [(one - x[0]) / (x[-1] - x[0]) for one in x]

    assert shares(at[0]) == pytest.approx([0, 1 / 2, 1], abs=1e-3)
    assert shares(at[1]) == pytest.approx([0, 1 / last, 1], abs=1e-3)


def test_positions_share_their_columns() -> None:
    """A head stands at one place in all panels whose flow runs from left to right."""
    values = random_scores(40, seed=1, positions=(0, 1, 2), seq_len=SEQ)
    places: dict[str, set[float]] = {}
    for panel in score_diagram(values, SEQ).panels:
        for node in panel.nodes:
            places.setdefault(node.name, set()).add(node.at[0])
    assert {name: len(x) for name, x in places.items()} == dict.fromkeys(places, 1)


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_an_edge_of_weight_zero_is_thin(orientation: str) -> None:
    drawn = scored_edges(graph(), scores({"Resid Start->A0.1.V": 1.0}), 0.0)
    picture = Picture(graph(), {"": drawn}, None, "", ())
    diagram = build_diagram(picture, Style(orientation=orientation))
    widths = sorted({link.value for panel in diagram.panels for link in panel.links})
    assert widths == [0.01, 1.0]


@pytest.mark.parametrize("values", [{}, {"Resid Start->A0.1.V": 1e-9}])
def test_nothing_to_draw(values: dict) -> None:
    diagram = score_diagram(scores(values))
    assert diagram.panels == ()
    assert diagram.plot_width > 0
    assert diagram.plot_height > 0
