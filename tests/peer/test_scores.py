"""Scores by auto-circuit 1.0.1 itself, in one process and on the same weights.

Its `mask_gradient_prune_scores` takes the gradient of a loss, less the metric, and adds up the means
of its batches. So its scores are ours times the number of batches, with the other sign.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import tokens
from tests.peer.test_auto_circuit import SEQ, both

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")

from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import AblationType as PeersAblation

N_BATCHES = 2


def dataset() -> tuple[PromptDataLoader, list[tuple[torch.Tensor, ...]]]:
    """Four prompt pairs with one right and one wrong answer each, in batches of two."""
    right, wrong = ([torch.tensor([n + k]) for n in range(4)] for k in (1, 6))
    prompts = PromptDataset(tokens(5, batch=4), tokens(6, batch=4), right, wrong)
    loader = PromptDataLoader(prompts, seq_len=SEQ, diverge_idx=0, batch_size=2, shuffle=False)
    pairs = [
        (
            batch.clean,
            batch.corrupt,
            torch.as_tensor(batch.answers),
            torch.as_tensor(batch.wrong_answers),
        )
        for batch in loader
    ]
    assert len(pairs) == N_BATCHES
    return loader, pairs


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", ["hooked LN", "hooked LNPre", "hooked attention-only"])
@pytest.mark.parametrize(
    ("asked", "peers"),
    [
        ({"method": "eap"}, {"mask_val": 0.0}),
        ({"method": "mask-gradient", "mask_value": 0.4}, {"mask_val": 0.4}),
        (
            {"method": "eap", "ablation": ct.AblationType.ZERO},
            {"mask_val": 0.0, "ablation_type": PeersAblation.ZERO, "clean_corrupt": None},
        ),
    ],
    ids=["eap", "at 0.4", "zero"],
)
def test_the_same_scores(
    name: str, seq_len: int | None, asked: dict[str, Any], peers: dict[str, Any]
) -> None:
    ours, theirs = both(name, seq_len)
    theirs.out_slice = (slice(None), -1)
    loader, pairs = dataset()
    for wrapper in theirs.dest_wrappers:
        wrapper.patch_mask.grad = None  # they add up over calls
    expected = mask_gradient_prune_scores(
        model=theirs,
        dataloader=loader,
        official_edges=None,
        grad_function="logit",
        answer_function="avg_diff",
        **peers,
    )
    found = ct.score_edges(ours, pairs, "logit_diff", **asked)
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert_close(-N_BATCHES * found[key], score, rtol=1e-4, atol=1e-4)
    assert max(float(score.abs().max()) for score in expected.values()) > 1e-3
