"""Which edges are shown, and what their labels, colours and widths say."""

from __future__ import annotations

import math

import pytest
import torch

import circuit_trace as ct
from circuit_trace.record import Direction
from circuit_trace.visualize.colors import BETWEEN, CURRENT, NEGATIVE, PATCHED, POSITIVE, ZERO
from circuit_trace.visualize.edges import (
    DrawnEdge,
    hidden_counts,
    live_edges,
    live_numbers,
    numbers_above,
    score_numbers,
    scored_edges,
)
from circuit_trace.visualize.text import number
from circuit_trace.visualize.view import View
from tests.models import tokens
from tests.visualize.pictures import SEQ, graph, known_trace, scores, wrapped

EDGE = "A0.1->A1.2.Q"
"""The source is number 2, so it writes 3 times what the first one writes."""


def the_edge(drawn: list[DrawnEdge]) -> DrawnEdge:
    (one,) = drawn
    return one


# What sources 3 · [3, 4, 0, 0, 0] and 3 · [0, -6, 8, 0, 0] give at position 4, that is times 5.
LABELS = {
    1.0: "patched [0, -90, 120, 0, …]",
    0.0: "current [45, 60, 0, 0, …]",
    0.5: "received [22.5, -15, 60, 0, …]",
    0.25: "received [33.8, 22.5, 30, 0, …]",
    -1.0: "received [90, 210, -120, 0, …]",
    2.0: "received [-45, -240, 240, 0, …]",
}


@pytest.mark.parametrize("mask", LABELS)
def test_a_live_label(mask: float) -> None:
    """The edge's name, then the activation, then the norms, then the mask."""
    trace = known_trace({(4, EDGE): mask}, SEQ)
    drawn = [one for one in live_edges(View(trace), 0.0) if one.edge == trace.graph.edge(EDGE, 4)]
    received = math.hypot((1 - mask) * 45, (1 - mask) * 60 - mask * 90, mask * 120)
    assert the_edge(drawn).label.split("<br>") == [
        EDGE,
        LABELS[mask],
        # In a pass that patches nothing, clean is what is current.
        ("" if mask else "‖clean‖ 75, ")
        + f"‖current‖ 75, ‖patched‖ 150, ‖received‖ {number(received)}",
        f"{'current' if mask else 'clean'}→patched: ‖Δ‖ 197, cosine -0.48",
        f"mask {mask:.2f}",
    ]
    shown = "" if mask in (0.0, 1.0) else f" ({mask:.2f})"
    assert the_edge(drawn).short == f"Q 75→150 Δ197{shown}"
    assert the_edge(drawn).weight == mask


@pytest.mark.parametrize(("mask", "color"), [(1.0, PATCHED), (0.0, CURRENT), (0.5, BETWEEN)])
def test_the_color_says_what_was_received(mask: float, color: str) -> None:
    trace = known_trace({EDGE: mask})
    drawn = [one for one in live_edges(View(trace), 0.0) if one.edge.name == EDGE]
    assert the_edge(drawn).color == color


def test_a_live_label_of_all_positions_says_so() -> None:
    """All are those of the last position, where this edge changes most: six times the first."""
    label = the_edge(live_edges(View(known_trace({EDGE: 1.0})), 0.01)).label
    assert label.split("<br>") == [
        EDGE,
        "patched [0, -108, 144, 0, …]",
        "‖current‖ 90, ‖patched‖ 180, ‖received‖ 180",
        "current→patched: ‖Δ‖ 237, cosine -0.48",
        "numbers of position 5",
        "mask 1.00",
    ]


@pytest.mark.parametrize("batch_idx", [0, 1])
def test_a_live_label_is_of_the_element_asked_for(batch_idx: int) -> None:
    label = the_edge(live_edges(View(known_trace({(0, EDGE): 1.0}, SEQ), batch_idx), 0.01)).label
    tenfold = "0" if batch_idx else ""
    assert f"patched [0, -18{tenfold}, 24{tenfold}, 0, …]" in label
    assert f"‖current‖ 15{tenfold}, ‖patched‖ 30{tenfold}" in label


@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_live_labels_agree_with_the_trace(seq_len: int | None) -> None:
    """On a real pass: what is shown is what `trace.edge(...)` returns."""
    model = wrapped(seq_len)
    masks = {"Resid Start->A0.1.K": 1.0, EDGE: 0.25, "MLP 0->Resid End": -0.5, "A0.3->MLP 1": 0.0}
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=masks)
    drawn = [one for one in live_edges(View(trace, 1), 0.0) if one.edge.name in masks]
    assert len(drawn) == 4 * (seq_len or 1)
    for one in drawn:
        flow = trace.edge(one.edge.name, one.edge.seq_idx)
        shown = {0.0: flow.current, 1.0: flow.patched}.get(flow.mask, flow.received)  # pyright: ignore[reportCallIssue]
        name, values, norms, change, *where, mask = one.label.split("<br>")
        at = one.edge.seq_idx
        if at is None:
            at = int(where[0].removeprefix("numbers of position "))
            effects = flow.effect[1].norm(dim=-1)
            assert float(effects[at]) == pytest.approx(float(effects[1:].max()), rel=1e-5)
        assert name == one.edge.name
        read = values[values.index("[") + 1 : values.index(", …]")].split(", ")
        assert [float(value) for value in read] == pytest.approx(
            shown[1, at, :4].tolist(), rel=6e-3
        )
        for part, vector in zip(
            norms.split(", "), (flow.clean, flow.current, flow.patched, flow.received), strict=True
        ):
            assert float(part.split("‖ ")[1]) == pytest.approx(
                float(vector[1, at].norm()), rel=6e-3
            )
        delta, cosine = change.removeprefix("clean→received: ‖Δ‖ ").split(", cosine ")
        assert float(delta) == pytest.approx(float(flow.effect[1, at].norm()), rel=6e-3)
        angle = torch.cosine_similarity(flow.clean[1, at], flow.received[1, at], dim=0)
        assert float(cosine) == pytest.approx(float(angle), rel=6e-3, abs=1e-3)
        assert float(mask.removeprefix("mask ")) == flow.mask == masks[name]


def test_a_pass_with_nothing_patched_shows_what_is_current() -> None:
    trace = known_trace({}, patched=None)
    drawn = live_edges(View(trace), 0.0)
    assert len(drawn) == trace.graph.n_edges
    assert drawn[0].label.split("<br>")[2:] == [
        "‖current‖ 30", "numbers of position 5", "mask 0.00"
    ]  # fmt: skip
    assert drawn[0].short == "Q 30 @5"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["current", "patched"])
def test_what_is_not_finite_is_shown(which: str, bad: float) -> None:
    vectors = {"current": (3.0, 4.0, 0.0, 0.0, 0.0), "patched": (0.0, -6.0, 8.0, 0.0, 0.0)}
    vectors[which] = (bad, 1.0, 2.0, 3.0, 4.0)
    trace = known_trace({(0, EDGE): 0.5}, SEQ, **vectors)
    label = the_edge(live_edges(View(trace), 0.01)).label
    assert f"received [{bad}, " in label
    assert f"‖{which}‖ {bad}" in label
    assert label.endswith("mask 0.50")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_patched_edge_shows_what_was_patched_whatever_was_there(bad: float) -> None:
    """0 · NaN is NaN, but the label of an edge with mask 1 shows the patched activation alone."""
    trace = known_trace({(0, EDGE): 1.0}, SEQ, current=(bad, 1.0, 2.0, 3.0, 4.0))
    label = the_edge(live_edges(View(trace), 0.01)).label
    assert "patched [0, -18, 24, 0, …]" in label


def test_no_label_is_the_dump_of_a_tensor() -> None:
    model = wrapped()
    everything = {module.name: torch.ones(module.shape) for module in model.graph.modules}
    trace = model.trace(tokens(1), corrupt=tokens(2), masks=everything)
    for one in live_edges(View(trace), 0.01):
        lines = one.label.split("<br>")
        assert len(lines) == 6
        assert max(map(len, lines)) < 90
        assert "tensor" not in one.label
        assert lines[1].count(",") == 4  # four values and the ellipsis
        assert len(one.short) < 24


THRESHOLDS = (0.01, 0.1, 0.3, 0.7, 1.0)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_threshold_itself_is_shown(threshold: float) -> None:
    """Also where the number is not exact in float32, in which masks are kept."""
    values = {EDGE: threshold, "A0.3->MLP 1": -threshold, "MLP 0->A1.0.V": threshold * 0.999}
    shown = ["A0.1->A1.2.Q", "A0.3->MLP 1"]
    assert [one.edge.name for one in scored_edges(graph(), scores(values), threshold)] == shown
    assert [one.edge.name for one in live_edges(View(known_trace(values)), threshold)] == shown


def test_a_threshold_of_zero_shows_every_edge() -> None:
    assert len(scored_edges(graph(), scores({}), 0.0)) == graph().n_edges
    assert len(scored_edges(graph(SEQ), scores({}, SEQ), 0.0)) == graph(SEQ).n_edges


def test_edges_come_in_the_order_of_the_graph() -> None:
    given = {(5, EDGE): 1.0, (0, "A1.3->Resid End"): 2.0, (0, "Resid Start->A0.0.Q"): -1.0}
    numbers, weights = numbers_above(graph(SEQ), scores(given, SEQ), 0.01)
    assert numbers == sorted(numbers)
    assert weights == [-1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("score", "color", "label", "short"),
    [
        (0.5, POSITIVE, "score 0.50", "Q 0.50"),
        (-2.25, NEGATIVE, "score -2.25", "Q -2.25"),
        (0.0, ZERO, "score 0.00", "Q 0.00"),
        (0.0012, POSITIVE, "score 0.0012", "Q 0.0012"),
    ],
)
def test_a_score(score: float, color: str, label: str, short: str) -> None:
    """Blue where positive, red where negative, grey at zero; no activations."""
    drawn = [
        one for one in scored_edges(graph(), scores({EDGE: score}), 0.0) if one.edge.name == EDGE
    ]
    one = the_edge(drawn)
    assert (one.label.split("<br>"), one.short, one.color) == ([EDGE, label], short, color)
    assert one.weight == pytest.approx(score)


def test_colors_of_scores_are_blue_red_and_grey() -> None:
    def strongest(color: str) -> str:
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        return "grey" if len(set(rgb)) == 1 else ["red", "green", "blue"][rgb.index(max(rgb))]

    assert [strongest(color) for color in (POSITIVE, NEGATIVE, ZERO)] == ["blue", "red", "grey"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_scores_of_any_number_type(dtype: torch.dtype) -> None:
    given = {name: value.to(dtype) for name, value in scores({EDGE: -1.0}).items()}
    assert the_edge(scored_edges(graph(), given, 0.01)).weight == -1.0


def test_scores_that_require_grad_and_cover_some_modules() -> None:
    given = {"blocks.1.hook_resid_post": torch.ones(11, requires_grad=True)}
    assert len(scored_edges(graph(), given, 0.01)) == 11


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Resid Start->A0.1.K", "K 1.00"),
        ("A0.1->A1.2.V", "V 1.00"),
        ("A0.1->MLP 1", "1.00"),
        ("MLP 1->Resid End", "1.00"),
    ],
)
def test_short_labels_name_the_input_of_a_head(name: str, short: str) -> None:
    assert the_edge(scored_edges(graph(), scores({name: 1.0}), 0.01)).short == short


DIRECTION = Direction(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]), None, "the direction")
STYLES = {
    "norms": "Q 75→150 Δ197",
    "cosine": "Q -0.48",
    "projection": "Q 60→-90",
    "values": "Q [0, -90, 120, 0, …]",
}


@pytest.mark.parametrize("label", STYLES)
def test_what_a_short_label_says(label: str) -> None:
    """At position 4: 15 · [3, 4, 0, 0, 0] is current, 15 · [0, -6, 8, 0, 0] patched in."""
    view = View(known_trace({(4, EDGE): 1.0}, SEQ), label=label, direction=DIRECTION)
    one = the_edge(live_edges(view, 0.01))
    assert one.short == STYLES[label]
    assert "projection 60→-90" in one.label


def test_a_function_of_ones_own_labels_edges() -> None:
    seen = []

    def label(flow: ct.EdgeFlow) -> str:
        seen.append((flow.edge.name, flow.edge.seq_idx, flow.mask))
        return "<b>mine</b>"

    one = the_edge(live_edges(View(known_trace({(4, EDGE): 0.5}, SEQ), label=label), 0.01))
    assert one.short == "Q &lt;b&gt;mine&lt;/b&gt;"
    assert "&lt;b&gt;mine&lt;/b&gt;" in one.label.split("<br>")
    assert seen == [(EDGE, 4, 0.5)]


@pytest.mark.parametrize(
    ("width", "expected"),
    [("mask", 0.5), ("delta", 15 * math.sqrt(173)), ("projection", -150),
     ("received", 15 * math.sqrt(1.5**2 + 1 + 4**2))],
)  # fmt: skip
def test_what_a_width_stands_for(width: str, expected: float) -> None:
    view = View(known_trace({(4, EDGE): 0.5}, SEQ), width=width, direction=DIRECTION)
    one = the_edge(live_edges(view, 0.01))
    assert one.weight == pytest.approx(expected, rel=1e-5)
    assert one.color == (NEGATIVE if width == "projection" else BETWEEN)


def test_means_over_the_batch() -> None:
    """The second element's numbers are ten times the first's."""
    trace = known_trace({(4, EDGE): 1.0}, SEQ)
    one = the_edge(live_edges(View(trace, "mean", direction=DIRECTION), 0.01))
    assert "‖current‖ 412, ‖patched‖ 825" in one.label
    assert "projection 330→-495" in one.label


def test_the_strongest_scores_are_kept_in_the_graphs_order() -> None:
    values = {"A0.0->MLP 0": 0.2, EDGE: -0.9, "A0.3->MLP 1": 0.5, "MLP 0->Resid End": 0.5}
    kept = scored_edges(graph(), scores(values), 0.01, max_edges=2)
    assert [one.edge.name for one in kept] == [EDGE, "A0.3->MLP 1"]  # of equals the earlier
    for threshold, n_hidden in ((0.01, 2), (0.3, 1)):
        found = score_numbers(graph(), scores(values), threshold)
        assert hidden_counts(graph(), found, kept) == {None: n_hidden}


def test_of_equal_masks_the_largest_changes_are_kept() -> None:
    """A later source writes more here, a later position too."""
    masks = {"A0.0->MLP 1": 1.0, "MLP 0->MLP 1": 1.0, "A0.1->MLP 1": 0.5}
    trace = known_trace({(p, name): mask for name, mask in masks.items() for p in range(SEQ)}, SEQ)
    kept = live_edges(View(trace), 0.01, max_edges=3)
    assert {(one.edge.name, one.edge.seq_idx) for one in kept} == {
        ("MLP 0->MLP 1", 5), ("MLP 0->MLP 1", 4), ("MLP 0->MLP 1", 3)
    }  # fmt: skip
    assert hidden_counts(trace.graph, live_numbers(trace, 0.01), kept) == {
        0: 3, 1: 3, 2: 3, 3: 2, 4: 2, 5: 2
    }  # fmt: skip


def test_an_infinite_width_is_a_hairline() -> None:
    trace = known_trace({EDGE: 1.0}, patched=(math.inf, 0.0, 0.0, 0.0, 0.0))
    assert the_edge(live_edges(View(trace, width="delta"), 0.01)).weight == 0.0


def test_edges_of_a_circuit_have_no_number() -> None:
    values = scores({EDGE: 1.0, "A0.1->A1.2.V": 1.0})
    drawn = scored_edges(graph(), values, 0.01)
    assert sorted(one.short for one in drawn) == sorted(
        "" if one.edge.dest.name.startswith("MLP") else one.edge.dest.name[-1] for one in drawn
    )
    assert {one.label.partition("<br>")[2] for one in drawn} == {"score 1.00"}, "on hovering"
    other = scored_edges(graph(), scores({EDGE: 1.0, "A0.1->A1.2.V": 0.5}), 0.01)
    assert sorted(one.short for one in other) == ["Q 1.00", "V 0.50"]
