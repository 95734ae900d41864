"""The same patches by auto-circuit 1.0.1 itself, in one process and on the same weights.

It runs on TransformerLens 2 alone: `make test-compat` makes an environment for it.
"""

from __future__ import annotations

import copy
import os
import random
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import CASES, HAS_BRIDGE, tokens

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")

from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import AblationType as PeersAblation
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.visualize import draw_seq_graph as peers_draw

SEQ, BATCH = 6, 2
CLEAN, CORRUPT = tokens(1), tokens(2)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
MODELS = ("hooked LN", "hooked LNPre", "hooked parallel", "hooked attention-only")


class Both(NamedTuple):
    """A model wrapped by us, and a copy of it wrapped by the peer, which rewrites what it wraps."""

    ours: ct.PatchableModel
    theirs: Any


@cache
def both(name: str, seq_len: int | None = None, separate_qkv: bool = True) -> Both:
    model = CASES[name].build()
    twin = copy.deepcopy(model)
    twin.set_use_attn_result(True)
    if not twin.cfg.attn_only:
        twin.set_use_hook_mlp_in(True)
    twin.set_use_split_qkv_input(separate_qkv)
    twin.set_use_attn_in(not separate_qkv)
    theirs = patchable_model(twin, factorized=True, seq_len=seq_len, separate_qkv=separate_qkv)
    return Both(ct.wrap(model, seq_len=seq_len, separate_qkv=separate_qkv), theirs)


def dataset() -> tuple[PromptDataLoader, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Prompt pairs as the peer takes them, and as we do."""
    answers = [torch.tensor([0])] * 4
    prompts = PromptDataset(tokens(5, batch=4), tokens(6, batch=4), answers, answers)
    loader = PromptDataLoader(prompts, seq_len=SEQ, diverge_idx=0, batch_size=2, shuffle=False)
    return loader, [(batch.clean, batch.corrupt) for batch in loader]


models = pytest.mark.parametrize("name", MODELS)
positions = pytest.mark.parametrize("seq_len", [None, SEQ])


@models
@positions
def test_the_same_graph(name: str, seq_len: int | None) -> None:
    ours, theirs = both(name, seq_len)
    assert ours.n_edges == len(theirs.edges)
    by_name = {(edge.seq_idx, edge.name): edge for edge in theirs.edges}
    assert by_name.keys() == {(edge.seq_idx, edge.name) for edge in ours.edges}
    masks = ours.trace(CLEAN).masks
    shapes = {w.module_name: tuple(w.patch_mask.shape) for w in theirs.dest_wrappers}
    assert shapes == {name: tuple(mask.shape) for name, mask in masks.items()}
    sources = sorted(theirs.srcs, key=lambda src: src.src_idx)
    assert [src.name for src in sources] == [src.name for src in ours.srcs]


@models
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("n_edges", [0, 1, 10, None])
@positions
def test_the_same_pass(
    name: str, seq_len: int | None, n_edges: int | None, separate_qkv: bool
) -> None:
    ours, theirs = both(name, seq_len, separate_qkv)
    names = sorted((edge.seq_idx or 0, edge.name) for edge in theirs.edges)
    chosen = random.Random(3).sample(names, len(names) if n_edges is None else n_edges)
    edges = [one if seq_len else one[1] for one in chosen]
    picked = {(edge.seq_idx or 0, edge.name): edge for edge in theirs.edges}
    patched = src_ablations(theirs, CORRUPT, PeersAblation.RESAMPLE)
    with torch.no_grad(), patch_mode(theirs, patched, [picked[one] for one in chosen]):
        expected = theirs(CLEAN)
        wrapper = next(one for one in theirs.dest_wrappers if "resid_post" in one.module_name)
        current = wrapper.curr_src_outs.clone()
    trace = ours.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    assert_close(trace.logits, expected, **CLOSE)
    assert_close(trace.current.stack(), current, **CLOSE)
    assert_close(ours.source_outputs(CORRUPT).stack(), patched.clone(), **CLOSE)


@models
@pytest.mark.parametrize("ablation", [kind.name for kind in ct.AblationType])
def test_the_same_ablations(name: str, ablation: str) -> None:
    ours, theirs = both(name)
    kind, peers = ct.AblationType[ablation], PeersAblation[ablation]
    loader, pairs = dataset()
    data: Any = (loader, pairs) if kind.mean_over_dataset else (CORRUPT, CORRUPT)
    expected = src_ablations(theirs, data[0], peers).clone()
    found = ours.source_outputs(data[1], kind).stack()
    assert_close(found.expand_as(expected), expected, **CLOSE)


@models
@positions
def test_fractional_masks(name: str, seq_len: int | None) -> None:
    ours, theirs = both(name, seq_len)
    generator = torch.Generator().manual_seed(0)
    masks = {
        wrapper.module_name: torch.rand(wrapper.patch_mask.shape, generator=generator)
        for wrapper in sorted(theirs.dest_wrappers, key=lambda one: one.module_name)
    }
    patched = src_ablations(theirs, CORRUPT, PeersAblation.RESAMPLE)
    with torch.no_grad(), patch_mode(theirs, patched):
        for wrapper in theirs.dest_wrappers:
            wrapper.patch_mask.data = masks[wrapper.module_name].clone()
        expected = theirs(CLEAN)
    assert_close(ours.trace(CLEAN, corrupt=CORRUPT, masks=masks).logits, expected, **CLOSE)


def links_of(figure: Any) -> set[tuple[str, str]]:
    """The edges that a figure draws, and their scores or masks, as both write them: the first and
    the last line of a label. The peer's ghost links have no label."""
    labels = [label for sankey in figure.data for label in sankey.link.label if label]
    lines = [label.replace("score ", "").replace("mask ", "").split("<br>") for label in labels]
    return {(line[0], line[-1]) for line in lines}


@pytest.mark.parametrize("name", ["hooked LN", "hooked attention-only"])
@positions
def test_the_same_links_from_scores(name: str, seq_len: int | None) -> None:
    ours, theirs = both(name, seq_len)
    generator = torch.Generator().manual_seed(1)
    scores = {
        module: torch.randn(mask.shape, generator=generator)
        for module, mask in ours.trace(CLEAN).masks.items()
    }
    for threshold in (0.5, 1.5):
        mine = ct.draw_seq_graph(ours, scores, threshold, display_ipython=False)
        peers = peers_draw(theirs, scores, threshold, display_ipython=False)
        assert links_of(mine) == links_of(peers)
        assert len(links_of(mine)) > 3


@positions
def test_the_same_links_of_a_pass(seq_len: int | None) -> None:
    ours, theirs = both("hooked LN", seq_len)
    edges = ["A0.1->A1.2.Q", "MLP 0->Resid End", "Resid Start->A0.0.V"]
    patched = src_ablations(theirs, CORRUPT, PeersAblation.RESAMPLE)
    with torch.no_grad(), patch_mode(theirs, patched, edges):
        theirs(CLEAN)
        peers = peers_draw(theirs, display_ipython=False)
    trace = ours.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    mine = ct.draw_seq_graph(trace, display_ipython=False)
    assert links_of(mine) == links_of(peers) == {(edge, "1.00") for edge in edges}


def test_this_is_the_environment_without_a_bridge() -> None:
    assert not HAS_BRIDGE
