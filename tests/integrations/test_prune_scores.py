"""auto-circuit's files: as such, nested, chosen by key, and refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.integrations.prune_scores import holds_scores, read_prune_scores, select_scores
from tests.integrations.circuits import (
    AT_2,
    GROUPED,
    PLAIN,
    UNSPLIT,
    assert_same,
    read,
    refused,
    saved,
    scores_for,
    write,
)

GRAPHS = {"plain": PLAIN, "at positions": AT_2, "grouped": GROUPED, "unsplit": UNSPLIT}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", GRAPHS)
def test_round_trip(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    graph = GRAPHS[kind]
    scores = scores_for(graph).items()
    kept = {name: score.clamp(-9, 9).to(dtype) for name, score in scores}
    file = write(kept, tmp_path / "scores.pkl")
    assert_same(read(file), kept)
    assert_same(read(file, graph), kept)
    assert torch.load(file, weights_only=True).keys() == kept.keys()


def test_some_modules_of_any_model(tmp_path: Path) -> None:
    scores = {"layers.0.inputs": torch.tensor([0.5, -1.0])}
    assert_same(read(write(scores, tmp_path / "s.pkl")), scores)


def test_what_is_written_shares_nothing(tmp_path: Path) -> None:
    whole = torch.nn.Parameter(torch.zeros(1_000_000))
    scores = {"blocks.0.hook_mlp_in": whole[:4], "blocks.1.hook_mlp_in": torch.ones(8).bool()}
    file = write(scores, tmp_path / "s.pkl")
    assert file.stat().st_size < 5_000
    found = read(file)
    assert not found["blocks.0.hook_mlp_in"].requires_grad
    assert found["blocks.1.hook_mlp_in"].dtype == torch.float32


ONE, TWO = {"m": torch.ones(2)}, {"m": torch.zeros(2)}
NESTED = {"ioi": {"EAP": ONE, "ACDC": TWO}, "greater": {"EAP": TWO}}


@pytest.mark.parametrize(
    ("data", "select", "expected"),
    [
        (ONE, None, ONE),
        ({"ioi": {"EAP": ONE}}, None, ONE),
        (NESTED, ("ioi", "EAP"), ONE),
        (NESTED, "ACDC", TWO),
        (NESTED, ("greater",), TWO),
        ({"a": ONE, "b": TWO}, "b", TWO),
    ],
)
def test_selecting(data: Any, select: Any, expected: Any, tmp_path: Path) -> None:
    assert holds_scores(data)
    assert select_scores(data, select) is expected
    assert_same(read(saved(data, tmp_path / "nested.pkl"), select=select), expected)


def test_an_ambiguous_choice_lists_what_there_is(tmp_path: Path) -> None:
    file = saved(NESTED, tmp_path / "nested.pkl")
    there = "of ('ioi', 'EAP'), ('ioi', 'ACDC'), ('greater', 'EAP')."
    assert refused(file) == (
        f"This file holds 3 sets of scores, and none is chosen. Choose one by select=, {there}"
    )
    assert refused(file, select="EAP") == (
        f"This file holds 3 sets of scores, and 'EAP' fits 2 of them. Choose one by select=, {there}"
    )
    assert "('ioi', 'SP') fits 0 of them" in refused(file, select=("ioi", "SP"))


REFUSED: dict[str, tuple[Any, str]] = {
    "no tensor among tensors": (
        {"m": torch.ones(1), "n": 1},
        r"scores of 'n' are no tensor but int",
    ),
    "a key that is no text": ({1: torch.ones(1)}, r"scores of 1 are no tensor but Tensor"),
    "complex": (
        {"m": torch.ones(1, dtype=torch.complex64)},
        r"asks for 'torch\.ComplexFloatStorage'",
    ),
    "no dimension": ({"m": torch.tensor(1.0)}, r"must be a dense tensor .* got torch\.float32"),
    "four dimensions": ({"m": torch.ones(1, 1, 1, 1)}, r"must be a dense tensor"),
    "not finite": ({"m": torch.tensor([1.0, torch.nan])}, r"hold nan: expected finite"),
    "ACDC's infinity": ({"m": torch.tensor([1.0, torch.inf])}, r"hold inf: .*auto-circuit's ACDC"),
    "billions of zeros": ({"m": torch.zeros(1).expand(10**5, 10**6)}, r"more numbers, \(100000, 1"),
    "nothing": ({}, r"none of the formats that are known"),
    "a list": ([torch.ones(1)], r"none of the formats that are known: it holds \[a Tensor\]"),
    "a tensor": (torch.ones(1), r"none of the formats that are known: it holds a Tensor"),
    "nested too deep": (
        {"a": {"b": {"c": {"d": {"e": {"f": ONE}}}}}},
        r"nests dicts deeper than 4",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path) -> None:
    data, message = REFUSED[kind]
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(saved(data, tmp_path / "scores.pt"))


def test_dicts_that_stand_in_many_places() -> None:
    shared: dict[Any, Any] = {}
    for _ in range(4):
        shared = dict.fromkeys(range(1_000), shared)
    with pytest.raises(ct.FormatError, match=r"or too many"):
        holds_scores(shared)


def test_a_file_for_another_model(tmp_path: Path) -> None:
    file = write(scores_for(PLAIN), tmp_path / "s.pkl")
    assert refused(file, GROUPED).startswith(
        "The scores in this file of 'blocks.0.hook_q_input' have"
    )
    assert "wrap the model without seq_len" in refused(file, AT_2)
    assert "which this model's graph does not have" in refused(file, UNSPLIT)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_refused_with_the_way_out(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "scores.pkl"
    file.write_bytes(pickle.dumps(scores_for(PLAIN), protocol))
    assert refused(file).startswith(
        "This is a plain Python pickle (or a file of torch before 1.6)."
    )
    torch.save(scores_for(PLAIN), file, _use_new_zipfile_serialization=False)
    assert "write it again with torch.save" in refused(file)


def test_scores_do_not_say_what_belongs(tmp_path: Path) -> None:
    file = write(scores_for(PLAIN), tmp_path / "s.pkl")
    assert refused(file, in_graph=True).startswith("PruneScores do not say which edges belong")


@pytest.mark.parametrize("scores", [5, {}, None, {"m": 1.0}, {"m": torch.tensor([torch.nan])}])
@pytest.mark.usefixtures("as_a_user")
def test_scores_that_are_not_written(scores: Any, tmp_path: Path) -> None:
    with pytest.raises(ct.FormatError):
        ct.save_scores(scores, tmp_path / "s.pkl")
    assert list(tmp_path.iterdir()) == []


def test_with_a_model_the_mask_checks_speak() -> None:
    with pytest.raises(ct.MaskError, match=r"^The scores in this file name the module 'm'"):
        read_prune_scores(dict(ONE), PLAIN)
