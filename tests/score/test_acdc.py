"""ACDC's search against a loop that patches one edge more in each pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.plan import flat_scores
from tests.families.models import tokens
from tests.models import CASES, TYPICAL, wrapped

OTHERS = ("hooked grouped", "hooked parallel", "hooked norms after alone", "hooked norms after too")
MODELS = [*TYPICAL, *(name for name in OTHERS if name in CASES)]
SEQ = 4
ONE, OTHER = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
RIGHT, WRONG = torch.tensor([1, 2]), torch.tensor([3, 4])


def kl(model: ct.PatchableModel) -> Callable[[torch.Tensor], float]:
    before = model.trace(ONE).logits[:, -1].log_softmax(-1)

    def of(logits: torch.Tensor) -> float:
        after = logits[:, -1].log_softmax(-1)
        return float((before.exp() * (before - after)).sum(-1).mean())

    return of


def difference(logits: torch.Tensor) -> float:
    rows = torch.arange(2)
    return float((logits[rows, -1, RIGHT] - logits[rows, -1, WRONG]).mean())


def naive(
    model: ct.PatchableModel, metric: Callable[[torch.Tensor], float], threshold: float, sign: float
) -> set[int]:
    """The edges that stay, by a pass for each."""
    gone: list[int] = []
    value = metric(model.trace(ONE).logits)
    by_dest: dict[str, list[int]] = {}
    for number in range(model.n_edges):
        by_dest.setdefault(model.edges[number].dest.name, []).append(number)
    for dest in reversed(model.dests):
        for number in sorted(by_dest[dest.name], key=lambda n: -model.edges[n].src.idx):
            edges = [model.edges[n] for n in [*gone, number]]
            after = metric(model.trace(ONE, corrupt=OTHER, edges=edges).logits)
            if sign * (after - value) < threshold:
                gone.append(number)
                value = after
    return set(range(model.n_edges)) - set(gone)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threshold", [0.003, 0.05])
def test_what_stays_by_kl(name: str, threshold: float) -> None:
    model = wrapped(name)
    found = ct.acdc(model, (ONE, OTHER), threshold=threshold, rows=7)
    kept = set(flat_scores(model.graph, found.circuit).nonzero()[:, 0].tolist())
    assert kept == naive(model, kl(model), threshold, 1.0)
    assert found.n_edges == len(kept)
    assert 0 < len(kept) < model.n_edges
    rest = [model.edges[n] for n in range(model.n_edges) if n not in kept]
    patched = model.trace(ONE, corrupt=OTHER, edges=rest)
    assert found.metric == pytest.approx(kl(model)(patched.logits), rel=1e-3, abs=1e-5)
    assert found.clean == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 64])
def test_a_metric_that_is_good_when_high(rows: int) -> None:
    model = wrapped(TYPICAL[0])
    data = (ONE, OTHER, RIGHT, WRONG)
    found = ct.acdc(model, data, "logit_diff", threshold=0.02, rows=rows)
    kept = set(flat_scores(model.graph, found.circuit).nonzero()[:, 0].tolist())
    assert kept == naive(model, difference, 0.02, -1.0)
    assert found.clean == pytest.approx(difference(model.trace(ONE).logits), rel=1e-4)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must be a number above 0"),
        ({"threshold": float("nan")}, "threshold must be a number above 0"),
        ({"threshold": 0.1, "metric": lambda logits, batch: logits[:, -1, 0]}, "better='lower'"),
        ({"threshold": 0.1, "rows": 0}, "rows must be"),
        ({"threshold": 0.1, "metric": "accuracy"}, "metric must be one of"),
    ],
)
def test_what_cannot_be_searched(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ct.InputError, match=message):
        ct.acdc(wrapped(TYPICAL[0]), (ONE, OTHER), **options)
