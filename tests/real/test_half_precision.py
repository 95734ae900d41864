"""The real model in the types that such models come in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from tests.real.tasks import IOI

EDGES = {"late heads": ["A2?.*->Resid End"], "an MLP": ["MLP 28->Resid End", "MLP 27->MLP 28"]}


def difference(model: ct.PatchableModel, edges: list[str]) -> float:
    """The task's logit difference when these edges are patched."""
    logits = model.trace(IOI.clean, corrupt=IOI.corrupt, edges=edges).logits
    assert logits is not None
    right, wrong = (
        int(model.to_tokens(text[0], prepend_bos=False)[0, 0]) for text in (IOI.answers, IOI.wrong)
    )
    return float(logits[0, -1, right] - logits[0, -1, wrong])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_wrapped_and_patched(
    folder: Path, model: ct.PatchableModel, dtype: torch.dtype
) -> None:
    """Against float32; the model's own logits are multiples of 1/16 in bfloat16."""
    model_bridge = pytest.importorskip("transformer_lens.model_bridge")
    half = ct.wrap(
        model_bridge.TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=dtype)
    )
    for edges in EDGES.values():
        assert difference(half, edges) == pytest.approx(difference(model, edges), abs=0.3)
    assert difference(model, EDGES["late heads"]) < 3, "this patch does something"
