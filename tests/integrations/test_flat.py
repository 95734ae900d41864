"""Scores as one row: both ways, edge by edge, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph, graph_for, graph_of
from circuit_trace.integrations.flat import (
    Names,
    binary,
    flatten,
    number_of,
    scatter,
)
from circuit_trace.plan import unflat_scores
from tests.integrations.circuits import AT_2, GROUPED, PLAIN, assert_same, scores_for
from tests.models import TYPICAL, tokens, wrapped

GRAPHS = {"plain": PLAIN, "at positions": AT_2, "grouped": GROUPED}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_row_runs_like_the_graph_s_edges(kind: str) -> None:
    graph: Graph = GRAPHS[kind]
    flat = torch.arange(1.0, graph.n_edges + 1)
    scores = unflat_scores(graph, flat)
    assert torch.equal(flatten(graph, scores), flat)
    for number in range(0, graph.n_edges, 7):
        edge = graph.edge_at(number)
        index = () if edge.seq_idx is None else (edge.seq_idx,)
        index += () if edge.dest.head is None else (edge.dest.slot,)
        assert scores[edge.dest.module_name][(*index, edge.src.idx)] == number + 1


def test_modules_that_are_left_out_are_zero_and_precision_is_the_widest() -> None:
    flat = flatten(
        PLAIN,
        {
            "blocks.0.hook_mlp_in": torch.ones(4, dtype=torch.float16),
            "blocks.1.hook_resid_post": torch.full((9,), 0.1, dtype=torch.float64),
        },
    )
    assert flat.dtype == torch.float64
    assert flat.sum() == pytest.approx(4 + 0.9)
    assert flatten(PLAIN, {}).dtype == torch.float32


def test_scattered_scores_are_single_where_that_is_exact() -> None:
    assert scatter(PLAIN, [1], [0.5])["blocks.0.hook_q_input"].dtype == torch.float32
    double = scatter(PLAIN, [1], [0.1])
    assert double["blocks.0.hook_q_input"].dtype == torch.float64
    assert double["blocks.0.hook_q_input"][1, 0].item() == 0.1
    assert scatter(PLAIN, [1], [0.1], dtype=torch.float16)["blocks.0.hook_mlp_in"].dtype == (
        torch.float16
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite(value: float) -> None:
    dtype = torch.float16 if value == 1e300 else None
    with pytest.raises(ct.FormatError, match=r"score of 'Resid Start->A0\.1\.Q' is (nan|inf): exp"):
        scatter(PLAIN, [1], [value], dtype=dtype)


def test_an_edge_listed_twice() -> None:
    with pytest.raises(ct.FormatError, match=r"'Resid Start->A0\.2\.Q' is listed twice"):
        scatter(PLAIN, [1, 2, 2], [1, 1, 1])


@pytest.mark.parametrize("value", ["1", None, True, [1], 10**400, 1j])
def test_values_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(
        ct.FormatError, match=r"^The score of an edge is .*: expected a finite number"
    ):
        number_of(value, "an edge")


def test_circuits_are_one_and_zero() -> None:
    assert binary(torch.tensor([0.0, 1.0, -0.0, 1.0]), "It") == [1, 3]
    with pytest.raises(ct.FormatError, match=r"^It says .* Choose first: \{name:"):
        binary(torch.tensor([0.0, 0.5]), "It")


def test_names() -> None:
    names = Names(PLAIN, lambda src: src.name, lambda dest: dest.name)
    listed = list(names.edges())
    assert [number for number, _, _ in listed] == list(range(PLAIN.n_edges))
    for number, src, dest in listed:
        assert names.number(src, dest) == number
        assert PLAIN.edge_at(number).name == f"{src}->{dest}"
    at = Names(AT_2, lambda src: src.name, lambda dest: dest.name)
    assert str(AT_2.edge_at(at.number("A0.1", "MLP 1", 1))) == "A0.1->MLP 1 @1"


WRONG = {
    ("A0.9", "MLP 1"): r"'A0\.9' is not a source .* Did you mean 'A0\.",
    ("A0.1", "A0.1"): r"'A0\.1' is not a destination",
    ("MLP 1", "MLP 0"): r"no edge from 'MLP 1' to 'MLP 0' in this model",
    (
        7,
        "MLP 0",
    ): r"7 is not a source of this model, whose sources run from 'Resid Start' to 'MLP 1'",
}


@pytest.mark.parametrize("ends", WRONG, ids=str)
def test_names_of_no_edge(ends: tuple[Any, Any]) -> None:
    with pytest.raises(ct.FormatError, match=WRONG[ends]):
        Names(PLAIN, lambda src: src.name, lambda dest: dest.name).number(*ends)


def test_what_a_model_may_be() -> None:
    model = wrapped(TYPICAL[0])
    trace = model.trace(tokens(0))
    assert graph_of(PLAIN) is PLAIN
    assert graph_of(model) is model.graph
    assert graph_of(trace) is trace.graph
    assert graph_of(None) is None
    scores = scores_for(PLAIN)
    found = graph_for(scores, None)
    assert (found.srcs, found.modules) == (PLAIN.srcs, PLAIN.modules)
    assert_same(unflat_scores(found, flatten(found, scores)), scores)


@pytest.mark.parametrize("model", [5, "gpt2", {}, torch.nn.Identity()])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(ct.InputError, match=r"^model must be a wrapped model"):
        graph_of(model)


@pytest.mark.parametrize("scores", [5, None, [1], {"a": 1}])
def test_what_are_no_scores(scores: Any) -> None:
    with pytest.raises(ct.FormatError, match=r"^The scores must be PruneScores"):
        graph_for(scores, None)
