"""Every edge patched alone, in batches, against passes that patch one edge each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.plan import flat_scores
from tests.families.models import tokens
from tests.models import CASES, TYPICAL, wrapped

SEQ = 4
ONE, OTHER = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
RIGHT, WRONG = torch.tensor([1, 2]), torch.tensor([3, 4])


def difference(logits: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(2)
    return (logits[rows, -1, RIGHT] - logits[rows, -1, WRONG]).mean()


def one_by_one(model: ct.PatchableModel, numbers: list[int], **options: Any) -> list[float]:
    clean = difference(model.trace(ONE).logits)
    traces = [model.trace(ONE, edges=[model.edges[n]], **options) for n in numbers]
    return [float(difference(trace.logits) - clean) for trace in traces]


@pytest.mark.parametrize("name", CASES)
def test_each_edge_alone(name: str) -> None:
    model = wrapped(name)
    scores = flat_scores(model.graph, ct.exact_scores(model, (ONE, OTHER, RIGHT, WRONG)))
    numbers = list(range(0, model.n_edges, 7))
    expected = one_by_one(model, numbers, corrupt=OTHER)
    assert scores[numbers].tolist() == pytest.approx(expected, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("name", TYPICAL)
def test_at_positions_and_other_ablations(name: str) -> None:
    model = wrapped(name, SEQ)
    ablation = ct.AblationType.ZERO
    data = {"clean": ONE, "answers": RIGHT, "wrong_answers": WRONG}
    scores = ct.exact_scores(model, data, ablation=ablation)
    flat = flat_scores(model.graph, scores)
    numbers = list(range(3, model.n_edges, 41))
    expected = one_by_one(model, numbers, ablation=ablation)
    assert flat[numbers].tolist() == pytest.approx(expected, rel=1e-3, abs=2e-4)


def test_some_edges_in_batches_of_any_size() -> None:
    model = wrapped(TYPICAL[0], SEQ)
    data = (ONE, OTHER, RIGHT, WRONG)
    every = flat_scores(model.graph, ct.exact_scores(model, data))
    asked = "A0.*->MLP *"
    for rows in (1, 5, 64):
        some = flat_scores(model.graph, ct.exact_scores(model, data, edges=asked, rows=rows))
        chosen = torch.zeros(model.n_edges, dtype=torch.bool)
        chosen[list(model.graph.numbers(asked))] = True
        assert (some[~chosen] == 0).all()
        torch.testing.assert_close(some[chosen], every[chosen], rtol=1e-3, atol=1e-5)


def test_prompts_count_alike_in_unequal_batches() -> None:
    model = wrapped(TYPICAL[0])
    whole = ct.exact_scores(model, (ONE, OTHER, RIGHT, WRONG))
    halves = [
        (ONE[i : i + 1], OTHER[i : i + 1], RIGHT[i : i + 1], WRONG[i : i + 1]) for i in (0, 1)
    ]
    parts = ct.exact_scores(model, halves)
    by_method = ct.score_edges(model, (ONE, OTHER, RIGHT, WRONG), method="exact")
    for name, score in whole.items():
        torch.testing.assert_close(parts[name], score, rtol=1e-3, atol=1e-5)
        assert torch.equal(by_method[name], score)


def test_the_known_circuit_of_the_bundled_model_comes_first() -> None:
    """A head of the second layer writes the name at the last position, which it finds where the name
    stood: so the demo's picture and the script that trained the model have it."""
    model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
    table = model.trace(CLEAN, corrupt=CORRUPT).top(20, by="score", edges="*->*", scores=scores)
    last = table[table["dest"] == "Resid End"]
    assert set(last["seq_idx"]) == {14}
    assert last.iloc[0]["layer"] == 1
    assert last.iloc[0]["score"] < 0
    names = table[(table["src"] == "Resid Start") & table["token"].isin(["Mary", "John"])]
    assert len(names) >= 2


def test_in_double_precision() -> None:
    model = ct.wrap(CASES[TYPICAL[0]].build().to(torch.float64))
    data = (ONE, OTHER, RIGHT, WRONG)
    found = ct.exact_scores(model, data, "logit_diff", edges="*->Resid End")
    own = ct.exact_scores(
        model, data, lambda logits, batch: difference(logits), edges="*->Resid End"
    )
    for key, score in found.items():
        assert score.dtype == torch.float64
        torch.testing.assert_close(score, own[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", [ct.exact_scores, ct.acdc, ct.faithfulness])
def test_a_model_that_is_not_wrapped(call: Any) -> None:
    options = {ct.acdc: {"threshold": 1.0}, ct.faithfulness: {"scores": {}}}.get(call, {})
    with pytest.raises(ct.InputError, match=r"^Expected a wrapped model, ct\.wrap\(model\)"):
        call(CASES[TYPICAL[0]].build(), (ONE, OTHER, RIGHT, WRONG), **options)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"edges": "A9.*->MLP 1"}, ct.EdgeError, "No source matches"),
        ({"rows": 0}, ct.InputError, "rows must be"),
        ({"metric": "accuracy"}, ct.InputError, "metric must be one of"),
        ({"ablation": "zero"}, ct.InputError, "AblationType"),
    ],
)
def test_what_cannot_be_scored(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ct.exact_scores(wrapped(TYPICAL[0]), (ONE, OTHER, RIGHT, WRONG), **options)
