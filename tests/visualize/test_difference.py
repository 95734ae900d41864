"""Two passes, or two sets of scores, in one picture: against values that are known."""

# pyright: reportAttributeAccessIssue=false
# Plotly does not say what its figures hold.

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest
import torch

import circuit_trace as ct
from circuit_trace.visualize import draw_difference
from circuit_trace.visualize.caption import DIFFERENCE_LEGEND as LEGEND
from circuit_trace.visualize.colors import THEMES, rgba
from circuit_trace.visualize.diagram import Diagram
from tests.visualize.pictures import (
    SEQ,
    EdgeName,
    known_trace,
    node_rects,
    random_scores,
    scores,
    wrapped,
)

BEFORE: dict[EdgeName, float] = {
    "Resid Start->A0.0.Q": 0.5,
    "Resid Start->A0.1.Q": 0.5,
    "Resid Start->A0.2.Q": 0.5,
    "Resid Start->A0.3.Q": 0.5,
    "Resid Start->MLP 0": 0.5,
    "MLP 0->MLP 1": 0.005,
    "A0.0->MLP 1": 0.005,
}
AFTER: dict[EdgeName, float] = {
    "Resid Start->A0.0.Q": 0.8,
    "Resid Start->A0.1.Q": 0.501,
    "Resid Start->A0.2.Q": 0.2,
    "Resid Start->A0.3.Q": -0.5,
    "MLP 0->MLP 1": 1.0,
    "A0.0->MLP 1": -0.005,
}
EXPECTED = {
    "Resid Start->A0.0.Q": ("grew", 0.8, "Q 0.50→0.80"),
    "Resid Start->A0.1.Q": ("unchanged", 0.501, "Q 0.50→0.50"),
    "Resid Start->A0.2.Q": ("shrank", 0.5, "Q 0.50→0.20"),
    "Resid Start->A0.3.Q": ("changed sign", 0.5, "Q 0.50→-0.50"),
    "Resid Start->MLP 0": ("vanished", 0.5, "0.50→0.00"),
    "MLP 0->MLP 1": ("appeared", 1.0, "0.005→1.00"),
}


def drawn(figure: go.Figure) -> dict[str, tuple[str, float]]:
    """What each link says and its width, by its edge."""
    found = {}
    for trace in figure.data:
        for label, value in zip(trace.link.label, trace.link.value, strict=True):
            name, said = label.split("<br>")
            found[name.replace("&gt;", ">")] = (said, value)
    return found


def texts(figure: go.Figure) -> list[str]:
    return [note.text.replace("<br>", " ") for note in figure.layout.annotations]


def check(figure: go.Figure) -> None:
    found = drawn(figure)
    assert set(found) == set(EXPECTED)
    for name, (kind, width, short) in EXPECTED.items():
        assert found[name][0].startswith(f"{kind}: ")
        assert found[name][1] == pytest.approx(width)
        assert short in texts(figure)
    colors = {
        label.split("<br>")[1].split(":")[0]: color
        for label, color in zip(figure.data[0].link.label, figure.data[0].link.color, strict=True)
    }
    alpha = THEMES["light"].link_alpha
    assert colors == {name: rgba(color, alpha) for color, name in LEGEND}
    words = " ".join(texts(figure))
    assert all(name in words for _, name in LEGEND)


def test_scores_in_one_diagram() -> None:
    check(draw_difference(scores(BEFORE), scores(AFTER), model=wrapped()))


def test_masks_of_two_traces_in_one_diagram() -> None:
    figure = draw_difference(known_trace(BEFORE), known_trace(AFTER))
    check(figure)
    said = (
        "Width: |mask|, the larger of both. On each edge: before→after. Prompt 0 of the batch of 2."
    )
    assert said in texts(figure)


def test_traces_of_the_same_masks_are_compared_by_what_changed() -> None:
    """The sources write (3, 4, 0) and twice that; (0, −6, 8) or (0, −3, 4) is patched in."""
    masks: dict[EdgeName, float] = {(0, "Resid Start->A0.0.Q"): 1.0, (0, "A0.0->MLP 1"): 0.0}
    first = known_trace(masks, SEQ)
    second = known_trace(masks, SEQ, patched=(0.0, -3.0, 4.0, 0.0, 0.0))
    found = drawn(draw_difference(first, second))
    assert found == {
        "Resid Start->A0.0.Q": (f"shrank: {173**0.5:.3g}→{74**0.5:.2f}", pytest.approx(173**0.5)),
        "A0.0->MLP 1": (f"shrank: {692**0.5:.3g}→{296**0.5:.3g}", pytest.approx(692**0.5)),
    }
    by_received = drawn(draw_difference(first, second, width="received"))
    assert by_received["Resid Start->A0.0.Q"] == ("shrank: 10→5.00", 10.0)
    assert by_received["A0.0->MLP 1"] == ("unchanged: 10→10", 10.0)


def test_passes_that_only_recorded_are_compared_by_what_flowed() -> None:
    first, second = known_trace({}, SEQ, patched=None), known_trace({}, SEQ, patched=None)
    figure = draw_difference(first, second, max_edges=3)
    assert all(said.startswith("unchanged") for said, _ in drawn(figure).values())
    assert any(text.startswith("Width: ‖received‖") for text in texts(figure))


def test_by_the_change_and_by_a_projection() -> None:
    masks: dict[EdgeName, float] = {(0, "Resid Start->A0.0.Q"): 1.0}
    first = known_trace(masks, SEQ)
    second = known_trace(masks, SEQ, patched=(3.0, 4.0, 2.0, 0.0, 0.0))
    found = drawn(draw_difference(first, second, width="delta", score_threshold=0))
    # (0, −6, 8) less (3, 4, 0), and (3, 4, 2) less it.
    assert found["Resid Start->A0.0.Q"][0] == f"shrank: {173**0.5:.3g}→2.00"
    along = draw_difference(first, second, width="projection", direction=[0.0, 1.0, 1.0, 0, 0])
    assert drawn(along)["Resid Start->A0.0.Q"][0] == "changed sign: -2.00→2.00"


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_side_by_side_each_has_its_own_values_in_one_scale(orientation: str) -> None:
    figure = draw_difference(
        scores(BEFORE),
        scores(AFTER),
        model=wrapped(),
        side_by_side=True,
        names=("<old>", "new"),
        orientation=orientation,
    )
    left, right = figure.data
    assert left.domain.x[1] < right.domain.x[0]
    assert len(left.link.value) == len(right.link.value) == 5
    by_name = [
        {
            label.split("<br>")[0]: value
            for label, value in zip(t.link.label, t.link.value, strict=True)
        }
        for t in (left, right)
    ]
    assert by_name[0]["Resid Start->A0.0.Q"] == pytest.approx(0.5)
    assert by_name[1]["Resid Start->A0.0.Q"] == pytest.approx(0.8)
    assert "Resid Start->MLP 0" not in by_name[1]
    assert "MLP 0->MLP 1" not in by_name[0]
    assert {"<b>&lt;old&gt;</b>", "<b>new</b>"} <= set(texts(figure))
    assert "Q 0.20" in texts(figure)


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_side_by_side_nodes_stand_at_the_same_places(
    orientation: str, diagrams: list[Diagram]
) -> None:
    """In pixels, but for the way from one side to the other."""
    draw_difference(
        scores(BEFORE),
        scores(AFTER),
        model=wrapped(),
        side_by_side=True,
        orientation=orientation,
    )
    (diagram,) = diagrams
    places = []
    for panel in diagram.panels:
        rects = node_rects(diagram, panel)
        places.append(
            {
                node.name: ((rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2)
                for node, rect in zip(panel.nodes, rects, strict=True)
            }
        )
    shared = [name for name in places[0] if name in places[1]]
    assert len(shared) > 3
    ways = [[b - a for a, b in zip(places[0][n], places[1][n], strict=True)] for n in shared]
    for way in ways:
        assert way == pytest.approx(ways[0], abs=0.2)
    assert ways[0][1] == pytest.approx(0, abs=0.2)


def test_those_that_change_most_are_kept_and_the_others_counted() -> None:
    figure = draw_difference(scores(BEFORE), scores(AFTER), model=wrapped(), max_edges=2)
    assert set(drawn(figure)) == {"MLP 0->MLP 1", "Resid Start->A0.3.Q"}
    assert any("Not drawn: 4 edges that change less" in text for text in texts(figure))


def test_many_edges_at_positions_have_a_panel_each() -> None:
    first = random_scores(20, 1, positions=(1, 4), seq_len=SEQ)
    second = random_scores(20, 2, positions=(4, 5), seq_len=SEQ)
    figure = draw_difference(first, second, model=wrapped(SEQ), side_by_side=True)
    assert len(figure.data) == 4  # positions 1 and 4 on the left, 4 and 5 on the right


def test_two_empty_sets_say_so() -> None:
    figure = draw_difference(scores({}), scores({}), model=wrapped())
    assert "Nothing reaches 0.01 in either." in texts(figure)


WRONG: list[tuple[Any, Any, dict[str, Any], str]] = [
    (known_trace({}), scores({}), {}, "two traces, or two sets of scores; got one of each"),
    ({"mine": torch.ones(2)}, {"mine": torch.ones(2)}, {}, "do not tell their model need it"),
    (scores({}), scores({}), {"model": wrapped(), "width": "mask"}, "are for traces"),
    (known_trace({}), known_trace({}, SEQ), {}, "seq_len=None and 6"),
    (known_trace({}), known_trace({}), {"names": ("a", "a")}, "two different names"),
    (known_trace({}), known_trace({}), {"width": "size"}, "width must be one of"),
    (known_trace({}), known_trace({}), {"width": "projection"}, "needs direction="),
    (known_trace({}), known_trace({}), {"theme": "blue"}, "theme must be one of"),
    (known_trace({}), known_trace({}), {"orientation": "x"}, "orientation must be"),
    (known_trace({}), known_trace({}), {"file_path": "x.gif"}, "the extensions that work"),
]


@pytest.mark.parametrize(("before", "after", "options", "message"), WRONG, ids=lambda v: None)
def test_wrong_pairs(before: Any, after: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ct.FigureError) as caught:
        draw_difference(before, after, **options)
    assert message in str(caught.value)


def test_scores_of_another_shape_are_refused() -> None:
    name = next(iter(scores({})))
    with pytest.raises(ct.MaskError, match="The second scores"):
        draw_difference(scores({}), {name: torch.zeros(3)}, model=wrapped())


def test_a_pass_without_a_patch_changes_nothing_along_any_edge() -> None:
    plain, patched = known_trace({}, patched=None), known_trace({"Resid Start->A0.0.Q": 1.0})
    found = drawn(
        draw_difference(plain, patched, width="projection", direction=[0.0, 1.0, 0, 0, 0])
    )
    # Six tokens: the last one's 6 · (−6 − 4).
    assert found == {"Resid Start->A0.0.Q": ("appeared: 0.00→-60", -60.0)} or found == {
        "Resid Start->A0.0.Q": ("appeared: 0.00→-60", 60.0)
    }


def test_what_is_no_number_is_refused_with_its_edge() -> None:
    masks: dict[EdgeName, float] = {(0, "Resid Start->A0.0.Q"): 1.0}
    odd = known_trace(masks, SEQ, patched=(float("nan"), 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(
        ct.FigureError, match=r"in the second pass it is nan for the edge '.*A0\.0\.Q"
    ):
        draw_difference(known_trace(masks, SEQ), odd, width="received")


def test_positions_where_the_prompts_differ_name_both_tokens() -> None:
    masks: dict[EdgeName, float] = {(0, "Resid Start->A0.0.Q"): 1.0, (1, "A0.0->MLP 1"): 1.0}
    first = known_trace(masks, SEQ, to_strings=lambda _: [" Mary", *["a"] * (SEQ - 1)])
    second = known_trace(masks, SEQ, to_strings=lambda _: [" John", *["a"] * (SEQ - 1)])
    shown = texts(draw_difference(first, second))
    assert any("<b>Mary / John</b>" in text for text in shown)
    assert any("<b>a</b>" in text for text in shown)


@pytest.mark.parametrize("batch_idx", [7, -1, "x"])
def test_prompts_that_are_not_in_the_batch(batch_idx: Any) -> None:
    trace = known_trace({"A0.0->MLP 1": 1.0}, SEQ)
    with pytest.raises(ct.InputError, match="outside the traced batch"):
        draw_difference(trace, known_trace({"A0.1->MLP 1": 1.0}, SEQ), batch_idx=batch_idx)


def test_at_a_threshold_of_0_edges_still_appear_and_vanish() -> None:
    found = drawn(
        draw_difference(scores(BEFORE), scores(AFTER), model=wrapped(), score_threshold=0)
    )
    assert found["Resid Start->MLP 0"][0].startswith("vanished")
