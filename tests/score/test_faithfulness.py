"""Curves of circuits against passes with the masks of each circuit."""

# pyright: reportAttributeAccessIssue=false
# Plotly does not say what its figures hold.

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuit_trace as ct
from circuit_trace.plan import unflat_scores
from circuit_trace.score.faithfulness import MIB_SIZES, usual_sizes
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


def circuit_of(scores: ct.PruneScores, **options: Any) -> ct.Circuit:
    """A circuit, whatever is said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.circuit(scores, **options)


@pytest.mark.parametrize("patch", ["complement", "circuit"])
@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", TYPICAL)
def test_each_size_is_a_pass_with_its_masks(name: str, seq_len: int | None, patch: str) -> None:
    model = wrapped(name, seq_len)
    scores, sizes = scores_of(model), (0, 30, 80, model.n_edges)
    curve = ct.faithfulness(model, DATA, scores, sizes=sizes, patch=patch)  # pyright: ignore[reportCallIssue]
    for place, n in enumerate(sizes):
        circuit = circuit_of(scores, n_edges=n, model=model)
        assert curve.n_edges[place] == sum(int(mask.sum()) for mask in circuit.values()) == n
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
    assert whole.n_edges == (1, 2, 5, 10, 20, 50, 100, 110)
    assert whole.fractions == tuple(n / 110 for n in whole.n_edges)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sizes", [None, MIB_SIZES], ids=["usual", "MIB"])
def test_areas_over_the_part_of_all_edges(sizes: Any) -> None:
    model = wrapped(TYPICAL[0], SEQ)
    curve = ct.faithfulness(model, DATA, scores_of(model), sizes=sizes)
    clean, corrupt = (differences(model.trace(tokens).logits).mean() for tokens in (ONE, OTHER))
    if sizes is None:
        parts = np.array([n for n in (1, 2, 5, 10, 20, 50, 100, 200, 440)]) / 440
    else:
        parts = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    heights = ((curve.values.mean(1) - corrupt) / (clean - corrupt)).numpy()
    widths = np.diff(parts)
    assert curve.cpr == pytest.approx(np.sum(widths * (heights[1:] + heights[:-1]) / 2), abs=1e-3)
    off = np.abs(1 - heights)
    assert curve.cmd == pytest.approx(np.sum(widths * (off[1:] + off[:-1]) / 2), abs=1e-3)


def test_several_score_sets() -> None:
    model = wrapped(TYPICAL[0])
    other = {name: score.flip(-1) for name, score in scores_of(model).items()}
    both = {"random": scores_of(model), "others": other}
    options: Any = {"sizes": (10, 40), "circuit": "greedy", "rank_by": "lowest"}
    curves = ct.faithfulness(model, DATA, both, **options)
    assert list(curves) == ["random", "others"]
    for name, scores in both.items():
        alone = ct.faithfulness(model, DATA, scores, **options)
        circuit = circuit_of(scores, n_edges=40, method="greedy", rank_by="lowest")
        masks = {module: 1 - mask for module, mask in circuit.items()}
        expected = differences(model.trace(ONE, corrupt=OTHER, masks=masks).logits)
        torch.testing.assert_close(curves[name].values[1], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(curves[name].values, alone.values, rtol=1e-4, atol=1e-5)
        assert curves[name].n_edges == alone.n_edges == (10, 40)
    assert curves.table()["scores"].tolist() == ["random", "random", "others", "others"]
    assert curves.table()["mean"].tolist() == [float(m) for c in curves.values() for m in c.mean]
    figure = curves.draw(display_ipython=False)
    lines = [one for one in figure.data if one.showlegend]
    assert [(one.name, list(one.x)) for one in lines] == [
        ("random", [10, 40]),
        ("others", [10, 40]),
    ]
    assert repr(curves) == "<FaithfulnessCurves: random, others>"


def test_edges_without_a_score_come_with_the_whole_model_only() -> None:
    model = wrapped(TYPICAL[0])
    end = "blocks.1.hook_resid_post"
    into_end = {end: torch.ones(11)}
    curve = ct.faithfulness(model, DATA, into_end, sizes=(1, 50, 110))
    assert curve.n_edges == (1, 1, 110)  # the stream's start to its end, and no other is connected
    torch.testing.assert_close(curve.values[2], curve.clean, rtol=1e-3, atol=1e-4)
    (_, line) = curve.draw().data
    assert list(line.x) == [1, 110]


@pytest.mark.parametrize("log", [True, False])
def test_it_draws(tmp_path: Path, log: bool) -> None:
    figure = by_hand().draw(file_path=tmp_path / "curve.html", log=log)
    assert (tmp_path / "curve.html").stat().st_size > 1000
    line = figure.data[-1]  # behind it the band of its errors
    assert (list(line.x), list(line.y)) == ([5, 10], [0.5, 1.0])  # no edges are no circuit
    assert figure.layout.xaxis.title.text == "edges in the circuit, of 10"
    with pytest.raises(ct.FigureError, match="A curve is no graph"):
        by_hand().draw(file_path=tmp_path / "curve.dot")


def test_ticks_of_a_large_graph() -> None:
    sizes = usual_sizes(1_059_765)
    assert sizes[:4] == (1, 2, 5, 10)
    assert sizes[-3:] == (500_000, 1_000_000, 1_059_765)
    values = torch.linspace(0, 1, len(sizes))[:, None].double()
    fractions = tuple(n / sizes[-1] for n in sizes)
    curve = ct.Faithfulness(
        "m", "complement", "top", fractions, sizes, sizes[-1], values, values[-1], values[0]
    )
    axis = curve.draw().layout.xaxis
    assert (axis.type, axis.tickformat) == ("log", ",d")
    assert list(axis.tickvals) == [10**power for power in range(7)]


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
        lambda m: ct.faithfulness(m, DATA, scores_of(m), patch="all"),  # pyright: ignore[reportCallIssue]
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
    "only empty circuits": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), sizes=(0, 0.001)).draw(),
        ct.FigureError,
        "All circuits of the curve are empty",
    ),
    "one of several": (
        lambda m: ct.faithfulness(m, DATA, {"a": scores_of(m), "b": {"wrong": torch.ones(3)}}),
        ct.MaskError,
        "Score set 'b': The scores name the module 'wrong'",
    ),
    "scores beside a score set": (
        lambda m: ct.faithfulness(m, DATA, {"a": scores_of(m), "b": torch.ones(3)}),  # pyright: ignore[reportCallIssue]
        ct.MaskError,
        "Score set 'b': The scores must be PruneScores",
    ),
    "named by numbers": (
        lambda m: ct.faithfulness(m, DATA, {1: scores_of(m), 2: scores_of(m)}),  # pyright: ignore[reportCallIssue]
        ct.InputError,
        "Name the score sets by text, as in {'eap': scores}; got 1",
    ),
    "no such ranking": (
        lambda m: ct.faithfulness(m, DATA, scores_of(m), rank_by="signed"),  # pyright: ignore[reportCallIssue]
        ct.InputError,
        "rank_by='absolute' or 'highest' or 'lowest'; got 'signed'",
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
