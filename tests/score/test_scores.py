"""Scores show themselves in a line, and are a dict to everything else, other tools' files included."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from copy import copy, deepcopy
from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from circuit_trace import EdgeScores
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT

NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> ct.PatchableModel:
    return ct.wrap(ct.load_model("bundled"))


def everything_that_returns_scores(model: ct.PatchableModel, folder: Path) -> dict[str, object]:
    from circuit_trace.integrations.auto_circuit import patchable_model
    from circuit_trace.integrations.networkx import from_networkx, to_networkx

    pairs = (CLEAN, CORRUPT, *ANSWERS)
    scores = ct.score_edges(model, pairs)
    formats = {"a.pkl": None, "b.graphml": None, "c.json": "eap_ig"}
    for name, chosen in formats.items():
        ct.save_scores(scores, folder / name, model=model, format=chosen)
    theirs = patchable_model(ct.load_model("bundled"), factorized=True, separate_qkv=True)
    return {
        "score_edges": scores,
        "exact": ct.exact_scores(model, pairs, edges=["A1.0->Resid End"]),
        "acdc": ct.acdc(model, (CLEAN, CORRUPT), threshold=0.5).circuit,
        "circuit": ct.circuit(scores, n_edges=20),
        "masks": model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"]).masks,
        "saved by torch": ct.load_scores(folder / "a.pkl"),
        "graphml": ct.load_scores(folder / "b.graphml"),
        "json": ct.load_scores(folder / "c.json"),
        "networkx": from_networkx(to_networkx(scores, model)),
        "auto-circuit's new": theirs.new_prune_scores(1.0),
        "auto-circuit's circuit": theirs.circuit_prune_scores(["A1.0->Resid End"], bool=True),
        "auto-circuit's masks": theirs.current_patch_masks_as_prune_scores(),
    }


def test_every_way_to_get_scores_shows_a_line(model: ct.PatchableModel, tmp_path: Path) -> None:
    for name, scores in everything_that_returns_scores(model, tmp_path).items():
        assert isinstance(scores, dict), name
        assert all(isinstance(one, torch.Tensor) for one in scores.values()), name
        shown = repr(scores)
        shape = r"<(EdgeScores: [\d,]+ edges, [\d,]+ not zero, largest \|score\| \S+|Circuit: .+)>"
        assert re.fullmatch(shape, shown), name


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ({}, "<EdgeScores: 0 edges, 0 not zero, largest |score| 0>"),
        ({NAME: torch.zeros(3)}, "<EdgeScores: 3 edges, 0 not zero, largest |score| 0>"),
        (
            {NAME: torch.tensor([[1, -7, 0]]), "other": torch.ones(2, 600) * 5.25},
            "<EdgeScores: 1,203 edges, 1,202 not zero, largest |score| 7>",
        ),
        (
            {NAME: torch.tensor([True, False])},
            "<EdgeScores: 2 edges, 1 not zero, largest |score| 1>",
        ),
        (
            {NAME: torch.tensor([float("nan")], requires_grad=True)},
            "<EdgeScores: 1 edges, 1 not zero, largest |score| nan>",
        ),
        ({NAME: "no tensor"}, "{'blocks.1.hook_resid_post': 'no tensor'}"),
    ],
)
def test_the_line(held: dict, line: str) -> None:
    assert repr(EdgeScores(held)) == line


def test_copies_are_scores_too() -> None:
    scores = EdgeScores({NAME: torch.ones(3)})
    for one in (scores.copy(), copy(scores)):
        assert type(one) is EdgeScores
        assert one[NAME] is scores[NAME]
    deep = deepcopy(scores)
    assert type(deep) is EdgeScores
    assert torch.equal(deep[NAME], scores[NAME])
    deep[NAME].zero_()
    assert scores[NAME].sum() == 3


def test_files_hold_nothing_of_ours(tmp_path: Path) -> None:
    """auto-circuit, or anything else, reads them where this library is not installed."""
    scores = EdgeScores({NAME: torch.arange(3.0)})
    for read in (pickle.loads(pickle.dumps(scores)), _through_torch(scores)):
        assert isinstance(read, dict)
        assert list(read) == [NAME]
        assert torch.equal(read[NAME], scores[NAME])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        asked_for = [
            str(argument)
            for _, argument, _ in pickletools.genops(pickle.dumps(scores, protocol))
            if isinstance(argument, str)
        ]
        assert not any("circuit_trace" in one for one in asked_for)


def _through_torch(scores: EdgeScores) -> dict[str, torch.Tensor]:
    saved = io.BytesIO()
    torch.save(scores, saved)
    return torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
