"""Files of auto-circuit's own making are read, and it loads and draws what is written for it."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from tests.models import tokens

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")

from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.misc import load_cache, save_cache
from auto_circuit.utils.tensor_ops import prune_scores_threshold

from tests.peer.test_auto_circuit import CORRUPT, MODELS, SEQ, both


def scores_of_theirs(theirs: Any) -> dict[str, torch.Tensor]:
    """PruneScores as auto-circuit makes them: a tensor per module, on its own model."""
    generator = torch.Generator().manual_seed(0)
    return {
        wrapper.module_name: torch.randn(wrapper.patch_mask.shape, generator=generator)
        for wrapper in theirs.dest_wrappers
    }


def cached(data: Any, folder: Path) -> Path:
    """A file that auto-circuit wrote."""
    save_cache(data, str(folder), "scores")
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", MODELS)
def test_their_scores_are_read(name: str, seq_len: int | None, tmp_path: Path) -> None:
    ours, theirs = both(name, seq_len)
    scores = scores_of_theirs(theirs)
    file = cached(scores, tmp_path)
    for model in (None, ours):
        found = ct.load_scores(file, model)
        assert found.keys() == scores.keys()
        assert all(torch.equal(found[key], scores[key]) for key in scores)


def test_their_nested_scores_are_read(tmp_path: Path) -> None:
    _, theirs = both("hooked LN")
    scores = scores_of_theirs(theirs)
    nested = {"task": {"EAP": scores, "Random": {n: s * 0 for n, s in scores.items()}}}
    found = ct.load_scores(cached(nested, tmp_path), select=("task", "EAP"))
    assert all(torch.equal(found[key], scores[key]) for key in scores)


def test_a_defaultdict_of_theirs_is_refused_with_the_way_out(tmp_path: Path) -> None:
    file = cached(defaultdict(dict, task={}), tmp_path)
    with pytest.raises(
        ct.FormatError, match=r"asks for 'collections\.defaultdict'.*dict\(…\) of a"
    ):
        ct.load_scores(file)


@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_they_load_what_is_written(seq_len: int | None, tmp_path: Path) -> None:
    ours, theirs = both("hooked LN", seq_len)
    scores = scores_of_theirs(theirs)
    ct.save_scores(scores, tmp_path / "scores.pkl", ours)
    loaded = load_cache(str(tmp_path), "scores.pkl")
    assert all(torch.equal(loaded[key], scores[key]) for key in scores)
    threshold = prune_scores_threshold(loaded, 20)
    edges = [edge for edge in theirs.edges if edge.prune_score(loaded).abs() >= threshold]
    masks = {name: (score.abs() >= threshold).float() for name, score in scores.items()}
    patched = src_ablations(theirs, CORRUPT)
    with torch.no_grad(), patch_mode(theirs, patched, edges):
        expected = theirs(tokens(1))
    trace = ours.trace(tokens(1), corrupt=CORRUPT, masks=masks)
    torch.testing.assert_close(trace.logits, expected, rtol=1e-5, atol=3e-5)
