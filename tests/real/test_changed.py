"""An adapter that is switched on after the real model was wrapped is noticed, at its real size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from tests.changes import Lora
from tests.real.tasks import FACT

LAYER = 10


@pytest.mark.parametrize("letter", ["v", "o"])
def test_a_small_adapter_that_was_switched_on(
    bridge: Any, model: ct.PatchableModel, letter: str
) -> None:
    """It moves what it is on by a few per mille."""
    component = getattr(bridge.blocks[LAYER].attn, letter)
    before = component._modules["_original_component"]
    edges = [f"MLP 3->A{LAYER}.1.V", f"A{LAYER}.4->MLP 20"]
    expected = model.trace(FACT.clean, corrupt=FACT.corrupt, edges=edges)
    component._modules["_original_component"] = Lora(before, 0.0005)
    try:
        with pytest.raises(ct.AnatomyError, match=rf"In this pass what A{LAYER}\..* differs by"):
            model.trace(FACT.clean, corrupt=FACT.corrupt, edges=edges)
        with pytest.raises(ct.AnatomyError, match=rf"In this pass what A{LAYER}\..* differs by"):
            ct.score_edges(model, FACT.data, method="eap")
    finally:
        component._modules["_original_component"] = before
    again = model.trace(FACT.clean, corrupt=FACT.corrupt, edges=edges)
    assert torch.equal(again.logits, expected.logits)
