"""An adapter that is switched on after the real model was wrapped is traced, at its real size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.changes import Lora
from tests.real.tasks import FACT

LAYER = 10
EDGES = [f"MLP 3->A{LAYER}.1.V", f"A{LAYER}.4->MLP 20", f"A{LAYER}.*->Resid End"]


def found(model: ct.PatchableModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The patched pass and a score of every edge into the end of the stream."""
    trace = model.trace(FACT.clean, corrupt=FACT.corrupt, edges=EDGES)
    scores = ct.score_edges(model, FACT.data, method="eap")
    assert trace.reconstruction_error() < 1e-4
    return trace.logits, scores["blocks.29.hook_resid_post"]


@pytest.mark.parametrize("letter", ["v", "o"])
def test_a_small_adapter_that_was_switched_on(
    bridge: Any, model: ct.PatchableModel, letter: str
) -> None:
    """It moves what it is on by a few per mille; the oracle has its product added to the weights."""
    component = getattr(bridge.blocks[LAYER].attn, letter)
    linear = component._modules["_original_component"]
    plain_logits, _ = found(model)
    adapter = Lora(linear, 0.0005)
    component._modules["_original_component"] = adapter
    try:
        logits, scores = found(model)
    finally:
        component._modules["_original_component"] = linear
    before = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight += (adapter.a @ adapter.b).T
    try:
        merged_logits, merged_scores = found(ct.wrap(bridge, verify=False))
    finally:
        with torch.no_grad():
            linear.weight.copy_(before)
    assert float((merged_logits - plain_logits).abs().max()) > 1e-2
    assert_close(logits, merged_logits, rtol=0, atol=2e-3)
    assert_close(scores, merged_scores, rtol=0, atol=2e-3 * float(merged_scores.abs().max()))
    assert torch.equal(found(model)[0], plain_logits)
