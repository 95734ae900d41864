"""The Plotly figure that a specification becomes: independent of Plotly's global state, and safe."""

# pyright: reportAttributeAccessIssue=false
# Plotly does not say what its figures hold.

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
import pytest

import circuit_trace as ct
from circuit_trace.visualize.colors import THEMES
from circuit_trace.visualize.diagram import NODE_NAMES
from circuit_trace.visualize.sankey import figure
from tests.visualize.pictures import (
    NASTY,
    SEQ,
    known_trace,
    random_scores,
    score_diagram,
    scores,
    shows,
    wrapped,
)

EDGES = {"Resid Start->A0.1.K": 1.0, "A0.1->MLP 0": 0.5, "MLP 0->Resid End": -1.0}


def texts(drawn: go.Figure) -> list[str]:
    return [annotation.text for annotation in drawn.layout.annotations]


def test_links_carry_their_labels_and_widths() -> None:
    drawn = ct.draw_seq_graph(wrapped(), scores(EDGES))
    (trace,) = drawn.data
    assert [label.split("<br>")[0] for label in trace.link.label] == list(EDGES)
    assert trace.link.value == (1.0, 0.5, 1.0)
    assert trace.link.hovertemplate == "%{label}<extra></extra>"
    ends = [
        f"{trace.node.label[source]}->{trace.node.label[target]}"
        for source, target in zip(trace.link.source, trace.link.target, strict=True)
    ]
    assert ends == ["Resid Start->A0.1", "A0.1->MLP 0", "MLP 0->Resid End"]


def test_places_are_honoured_by_plotly() -> None:
    """It ignores a place of exactly 0, and all places unless both are given."""
    drawn = ct.draw_seq_graph(wrapped(), random_scores(30, seed=2))
    (trace,) = drawn.data
    assert trace.arrangement == "fixed"
    assert len(trace.node.x) == len(trace.node.y) == len(trace.node.label)
    assert 0 not in trace.node.x + trace.node.y


def test_the_legend_names_what_is_there() -> None:
    drawn = ct.draw_seq_graph(wrapped(), scores(EDGES))
    legend = next(text for text in texts(drawn) if "■" in text)
    for shown in ("positive score", "negative score", *NODE_NAMES.values()):
        assert shown in legend
    assert "zero" not in legend
    for theme in THEMES.values():
        assert len(set(theme.nodes.values())) == len(theme.nodes)


def test_every_node_is_named() -> None:
    drawn = ct.draw_seq_graph(wrapped(), scores(EDGES))
    assert {"Resid Start", "A0.1", "MLP 0", "Resid End"} <= set(texts(drawn))


@pytest.mark.parametrize("n_edges", [40, 41])
def test_the_note_speaks_of_labels_on_edges_only_where_there_are_any(n_edges: int) -> None:
    drawn = ct.draw_seq_graph(wrapped(), random_scores(n_edges, seed=1))
    (note,) = [text for text in texts(drawn) if text.startswith("Width: |score|")]
    assert ("On each edge" in note) == (n_edges <= 40)


@pytest.mark.parametrize("token", NASTY)
def test_a_token_in_a_title_is_escaped(token: str) -> None:
    drawn = ct.draw_seq_graph(
        wrapped(SEQ), scores({(2, "A0.1->A1.2.Q"): 1.0}, SEQ), seq_labels=[token] * SEQ
    )
    title = next(text for text in texts(drawn) if "position 2" in text)
    bold = title[: title.index("<br>")]
    assert bold.startswith("<b>")
    assert bold.endswith("</b>")
    inside = bold[3:-4]
    assert shows(html.unescape(inside), token)
    assert not set("<>$") & set(inside)


def test_no_token_reaches_hover_labels() -> None:
    trace = known_trace({(2, "A0.1->A1.2.Q"): 1.0}, SEQ, to_strings=lambda _row: ["<b>"] * SEQ)
    (drawn,) = ct.draw_seq_graph(trace).data
    assert "b>" not in drawn.link.label[0].replace("<br>", "")


GLOBALS: dict[str, dict[str, Any]] = {
    "template": {"default": "plotly_dark"},
    "another template": {"default": "presentation"},
    "no template": {"default": None},
}


@pytest.mark.parametrize("case", GLOBALS)
def test_the_figure_does_not_depend_on_plotlys_defaults(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagram = score_diagram(random_scores(9, seed=4))
    plain = figure(diagram).to_json()
    monkeypatch.setattr(pio.templates, "default", GLOBALS[case]["default"])
    assert figure(diagram).to_json() == plain


def test_drawing_leaves_plotlys_defaults_alone() -> None:
    def state() -> tuple[Any, ...]:
        return (
            pio.templates.default,
            pio.renderers.default,
            sorted(pio.templates),
            dict(pio.renderers).keys(),
        )

    before = state()
    ct.draw_seq_graph(wrapped(), random_scores(9, seed=4))
    assert state() == before


def test_an_empty_figure_says_so_and_shows_no_axes() -> None:
    drawn = ct.draw_seq_graph(wrapped(), scores({}))
    assert texts(drawn) == ["No edge has |score| ≥ 0.01."]
    assert not drawn.data
    # Plotly draws axes into a figure that has no Sankey, unless they are switched off.
    assert drawn.layout.xaxis.visible is False
    assert drawn.layout.yaxis.visible is False


def test_no_sankey_is_empty() -> None:
    """Plotly fails on a Sankey without links ("Invalid array length"), and draws nothing at all."""
    values = scores({(2, "A0.1->A1.2.Q"): 1.0}, SEQ)
    drawn = ct.draw_seq_graph(wrapped(SEQ), values, show_all_seq_pos=True)
    assert [len(trace.link.value or ()) for trace in drawn.data if trace.visible is not False] == [
        1
    ]
    assert len([text for text in texts(drawn) if "position" in text]) == SEQ
