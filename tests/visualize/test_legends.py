"""Each sentence of a legend is true of each edge that is drawn in its colour."""

# pyright: reportAttributeAccessIssue=false
# Plotly does not say what its figures hold.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

import circuit_trace as ct
from circuit_trace.visualize.colors import THEMES
from tests.models import tokens
from tests.visualize.pictures import SEQ, wrapped

EDGES = {
    "Resid Start->A0.1.V": 1.0,
    "A0.1->A1.2.Q": 0.5,
    "A0.3->MLP 1": 0.0,
    "A1.2->Resid End": 1.0,
    "MLP 1->Resid End": 0.0,
}
DIRECTION = torch.linspace(-1, 1, 10)


def along(flow: Any, at: int) -> float:
    return float((flow.received - flow.clean)[0, at] @ DIRECTION)


TRUE: dict[str, Callable[[Any, int], bool]] = {
    "patched (mask 1)": lambda flow, at: flow.mask == 1,
    "another mask": lambda flow, at: flow.mask not in (0, 1),
    "current (mask 0)": lambda flow, at: flow.mask == 0,
    "the change adds along the direction": lambda flow, at: along(flow, at) > 0,
    "the change takes away along the direction": lambda flow, at: along(flow, at) < 0,
    "no change along it": lambda flow, at: along(flow, at) == 0,
    "points along the direction": lambda flow, at: float(flow.current[0, at] @ DIRECTION) > 0,
    "points against the direction": lambda flow, at: float(flow.current[0, at] @ DIRECTION) < 0,
    "neither": lambda flow, at: float(flow.current[0, at] @ DIRECTION) == 0,
}


def sentences(figure: go.Figure) -> dict[str, str]:
    """What the legend says of each colour of links."""
    found: dict[str, str] = {}
    for note in figure.layout.annotations:
        for part in (note.text or "").replace("<br>", "   ").split("<span style='color: ")[1:]:
            color, _, said = part.partition("'>■</span>")
            found[said.strip()] = color
    return found


def seen_through(color: str) -> str:
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return f"rgba({', '.join(map(str, parts))}, {THEMES['light'].link_alpha})"


@pytest.mark.parametrize("width", ["mask", "delta", "received", "projection"])
@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_of_a_traced_pass(seq_len: int | None, patched: bool, width: str) -> None:
    if not patched and width == "delta":
        pytest.skip("refused: there is no change to show")
    model = wrapped(seq_len)
    ask: dict[str, Any] = {"corrupt": tokens(2), "edges": EDGES} if patched else {}
    trace = model.trace(tokens(1), **ask)
    figure = trace.draw(width=width, direction=DIRECTION, score_threshold=0, max_edges=None)
    said = sentences(figure)
    assert len(figure.data) == (seq_len or 1)
    for number, panel in enumerate(figure.data):
        at = number if seq_len else SEQ - 1
        assert panel.link.label
        for label, color in zip(panel.link.label, panel.link.color, strict=True):
            name = label.split("<br>")[0]
            (sentence,) = [
                text for text, of in said.items() if text in TRUE and color == seen_through(of)
            ]
            flow = trace.edge(name, at if seq_len else None)
            assert TRUE[sentence](flow, at), (name, sentence)


def test_every_figure_of_a_pass_says_what_came_of_it() -> None:
    from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT

    model = ct.wrap(ct.load_model("bundled"))
    ask = {"corrupt": CORRUPT, "answers": ANSWERS, "complement": True}
    one = model.trace(CLEAN, edges=["A1.0->Resid End"], **ask)
    two = model.trace(CLEAN, edges=["MLP 0->*", "A1.*->Resid End"], **ask)
    scores = {"blocks.1.hook_resid_post": torch.linspace(-1, 1, 11)}
    for figure in (one.draw(), one.draw(score_threshold=2), one.draw(scores, side_by_side=True)):
        assert str(one.outcome) in words_of(figure)
    for figure in (one.diff(two).draw(), one.diff(two).draw(score_threshold=1e9)):
        assert f"before: {one.outcome}" in words_of(figure)
        assert f"after: {two.outcome}" in words_of(figure)
    assert str(one.outcome) in repr(one)
    assert json.dumps(str(one.outcome))[1:-1] in one.explore().html


def test_widths_that_are_all_nothing_are_said_to_be() -> None:
    trace = wrapped().trace(tokens(1), corrupt=tokens(1))
    for width in ("delta", "projection"):
        words = " ".join(
            note.text
            for note in trace.draw(
                width=width, direction=DIRECTION, score_threshold=0
            ).layout.annotations
        ).replace("<br>", " ")
        assert "is 0 on every edge, so all are drawn as thin as can be." in words


def test_rounding_has_neither_width_nor_tokens() -> None:
    from circuit_trace.demo.prompts import CLEAN

    model = ct.wrap(ct.load_model("bundled"))
    same = model.source_outputs(CLEAN)
    sites = tuple(replace(site, code=site.code * (1 + 2.0**-23)) for site in same.sites)
    trace = model.trace(CLEAN, patched=replace(same, sites=sites), edges=["A1.0->Resid End"])
    change = trace.table().loc[0, "delta_norm"]
    assert 0 < change < 1e-5
    for width in ("delta", "projection"):
        figure = trace.draw(width=width, direction=(" Mary", " John"))
        assert "is 0 on every edge" in words_of(figure)
    assert "changes no logit" in trace.draw(label="tokens").data[0].link.label[0]


IN_WORDS = {
    "logit_diff": "logit difference",
    "kl": "KL divergence from the clean pass",
    "loss": "loss",
    "answer_logprob": "answers' log-probability",
}


@pytest.mark.parametrize("metric", IN_WORDS)
@pytest.mark.parametrize("is_exact", [True, False])
def test_what_the_sign_of_a_score_does_to_the_metric(is_exact: bool, metric: str) -> None:
    """The legend's sentence of each drawn edge, against a pass in which it alone is patched."""
    from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT

    model = ct.wrap(ct.load_model("bundled"))
    method, estimate = ("exact", "") if is_exact else ("eap-ig", " (estimate)")
    scores = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS), metric, method=method)
    figure = ct.draw_seq_graph(model, scores, max_edges=3, display_ipython=False)
    said = sentences(figure)
    (link,) = (panel.link for panel in figure.data)
    assert len(link.label) == 3
    for label, color in zip(link.label, link.color, strict=True):
        edge = label.split("<br>")[0]
        (sentence,) = [text for text, of in said.items() if color == seen_through(of)]
        alone = model.trace(CLEAN, corrupt=CORRUPT, edges=[edge], answers=ANSWERS, metric=metric)
        change = float(alone.outcome.circuit - alone.outcome.clean)
        assert abs(change) > 1e-3
        does = "raises" if change > 0 else "lowers"
        assert sentence == f"patching it {does} the {IN_WORDS[metric]}{estimate}"


def test_scores_that_do_not_say_what_they_measure() -> None:
    model = ct.wrap(ct.load_model("bundled"))
    scores = {"blocks.1.hook_resid_post": torch.linspace(-1, 1, 11)}
    figure = ct.draw_seq_graph(model, scores, display_ipython=False)
    assert {"positive score", "negative score"} <= sentences(figure).keys()
    assert "These scores do not say what they measure." in words_of(figure)


def test_magnitudes_say_that_they_are() -> None:
    from circuit_trace.demo.prompts import CLEAN, CORRUPT

    model = ct.wrap(ct.load_model("bundled"))
    scores = ct.score_edges(model, (CLEAN, CORRUPT), method="magnitude")
    figure = ct.draw_seq_graph(model, scores, display_ipython=False)
    assert "‖patched − clean‖ of what it carries" in sentences(figure)


def words_of(figure: go.Figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations).replace("<br>", " ")


def test_no_change_has_no_tokens() -> None:
    from circuit_trace.demo.prompts import CLEAN

    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(CLEAN, corrupt=CLEAN, edges=["A1.0->Resid End"])
    figure = trace.draw(label="tokens")
    assert figure.data[0].link.label[0].split("<br>")[-2:] == ["changes no logit", "mask 1.00"]
    assert "no change @14" in [note.text for note in figure.layout.annotations]
    assert trace.table(n_tokens=3).loc[0, ["promotes", "suppresses"]].tolist() == [(), ()]
