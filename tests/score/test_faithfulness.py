"""Curves of circuits against passes with the masks of each circuit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.plan import unflat_scores
from circuit_trace.score.faithfulness import MIB_SIZES
from tests.families.models import tokens
from tests.models import TYPICAL, wrapped

SEQ = 4
ONE, OTHER = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
RIGHT, WRONG = torch.tensor([1, 2]), torch.tensor([3, 4])
DATA = (ONE, OTHER, RIGHT, WRONG)


def differences(logits: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(2)
    return (logits[rows, -1, RIGHT] - logits[rows, -1, WRONG]).double()


def scores_of(model: ct.PatchableModel) -> ct.PruneScores:
    generator = torch.Generator().manual_seed(0)
    return unflat_scores(model.graph, torch.randn(model.n_edges, generator=generator))


@pytest.mark.parametrize("patch", ["complement", "circuit"])
@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", TYPICAL)
def test_each_size_is_a_pass_with_its_masks(name: str, seq_len: int | None, patch: str) -> None:
    model = wrapped(name, seq_len)
    scores, sizes = scores_of(model), (0, 30, 80, model.n_edges)
    curve = ct.faithfulness(model, DATA, scores, sizes=sizes, patch=patch)
    for place, n in enumerate(sizes):
        circuit = ct.circuit(scores, n_edges=n, model=model)
        assert curve.n_edges[place] == sum(int(mask.sum()) for mask in circuit.values())
        masks = circuit if patch == "circuit" else {k: 1 - mask for k, mask in circuit.items()}
        expected = differences(model.trace(ONE, corrupt=OTHER, masks=masks).logits)
        torch.testing.assert_close(curve.values[place], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TYPICAL)
def test_all_and_nothing(name: str) -> None:
    model = wrapped(name)
    curve = ct.faithfulness(model, DATA, scores_of(model), sizes=(0.0, 1.0))
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(curve.clean, differences(model.trace(ONE).logits), **close)
    torch.testing.assert_close(curve.corrupt, differences(model.trace(OTHER).logits), **close)
    torch.testing.assert_close(curve.values[0], curve.corrupt, **close)
    torch.testing.assert_close(curve.values[1], curve.clean, **close)
    assert curve.faithfulness.tolist() == pytest.approx([0, 1], abs=1e-3)
    assert curve.cmd >= 0
    assert curve.cpr + curve.cmd == pytest.approx(1, abs=2e-3)  # a straight line from 0 to 1


def by_hand() -> ct.Faithfulness:
    """Two prompts, three sizes: the means are 1, 3 and 5, clean 5 and corrupt 1."""
    values = torch.tensor([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]], dtype=torch.float64)
    return ct.Faithfulness(
        "m", "complement", "top", (0.0, 0.5, 1.0), (0, 5, 10), 10, values, values[2], values[0]
    )


def test_areas_and_spread_by_hand() -> None:
    curve = by_hand()
    assert curve.faithfulness.tolist() == [0, 0.5, 1]
    assert curve.cpr == pytest.approx(0.5)
    assert curve.cmd == pytest.approx(0.5)
    assert curve.std.tolist() == pytest.approx([2**0.5] * 3)
    assert curve.standard_error.tolist() == pytest.approx([1.0] * 3)
    table = curve.table()
    assert table["mean"].tolist() == [1, 3, 5]
    assert table["n_edges"].tolist() == [0, 5, 10]


def test_batches_and_sizes_when_none_are_given() -> None:
    model = wrapped(TYPICAL[0])
    halves = [tuple(part[i : i + 1] for part in DATA) for i in (0, 1)]
    whole = ct.faithfulness(model, DATA, scores_of(model))
    parts = ct.faithfulness(model, halves, scores_of(model))
    assert whole.fractions == MIB_SIZES
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-3, atol=1e-4)


def test_it_draws(tmp_path: Path) -> None:
    figure = by_hand().draw(file_path=tmp_path / "curve.html")
    assert (tmp_path / "curve.html").stat().st_size > 1000
    line = figure.data[-1]  # behind it the band of its errors
    assert (list(line.x), list(line.y)) == ([0.5, 1.0], [0.5, 1.0])  # no place for 0 on its axis
    with pytest.raises(ct.FigureError, match="A curve is no graph"):
        by_hand().draw(file_path=tmp_path / "curve.dot")


WRONG_WAYS: dict[str, tuple[Callable[[ct.PatchableModel], Any], type[Exception], str]] = {
    "no sizes": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), sizes=()),
        ct.InputError,
        "sizes must be one or more",
    ),
    "too large": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), sizes=(0.5, 1.5)),
        ct.InputError,
        "from 0 to 1; got 1.5",
    ),
    "no such patch": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), patch="all"),
        ct.InputError,
        "'complement' or 'circuit'",
    ),
    "nothing changes": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), lambda logits, _: logits[:, 0, 0] * 0),
        ct.InputError,
        "the same with no edge patched and with every edge",
    ),
    "the same prompts": (
        lambda m: ct.faithfulness(m, (ONE, ONE, RIGHT, WRONG), scores_of(m)),
        ct.InputError,
        "Each corrupt prompt is the same as its clean prompt",
    ),
    "no area": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), sizes=(0.5, 1), patch="circuit").cpr,
        ct.InputError,
        "patch='complement'",
    ),
    "all zero": (
        lambda m: ct.faithfulness(m, DATA, {k: v * 0 for k, v in scores_of(m).items()}),
        ct.MaskError,
        "all zero",
    ),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", WRONG_WAYS)
def test_what_cannot_be_measured(case: str) -> None:
    ask, error, message = WRONG_WAYS[case]
    with pytest.raises(error) as caught:
        ask(wrapped(TYPICAL[0]))
    assert message in str(caught.value)
