"""The real model in bfloat16, the type that such models come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import circuit_trace as ct
from tests.real.tasks import IOI

LAYERS = range(20, 30)
"""Of what these layers' heads write, the end of the stream gets that of the corrupt prompt."""


def late_heads(own: Any, prompt: str) -> Tensor:
    """What they write in all, in float32, from TransformerLens' cache."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in LAYERS]
    _, cache = own.run_with_cache(own.to_tokens(prompt), names_filter=lambda name: name in names)
    written = (
        cache[name].flatten(2).float() @ own.blocks[layer].attn.W_O.flatten(0, 1).float()
        for layer, name in zip(LAYERS, names, strict=True)
    )
    return torch.stack(list(written)).sum(0)


def logits_of(own: Any, stream: Tensor) -> Tensor:
    """The final norm (RMSNorm, Zhang & Sennrich 2019) and the unembedding in float32."""
    norm, unembed = own.ln_final.original_component, own.unembed
    scale = (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return stream / scale * norm.weight.float() @ unembed.W_U.float()


@torch.no_grad()
def test_it_is_wrapped_and_patched(folder: Path) -> None:
    """As near to float32 arithmetic on the same stream as TransformerLens' own hook at its end."""
    model_bridge = pytest.importorskip("transformer_lens.model_bridge")
    boot = model_bridge.TransformerBridge.boot_transformers
    own = boot(str(folder), device="cpu", dtype=torch.bfloat16)
    change = late_heads(own, IOI.corrupt) - late_heads(own, IOI.clean)
    end, tokens = "blocks.29.hook_resid_post", own.to_tokens(IOI.clean)
    _, cache = own.run_with_cache(tokens, names_filter=lambda name: name == end)
    exact = logits_of(own, cache[end].float() + change)
    hooked = own.run_with_hooks(tokens, fwd_hooks=[(end, lambda x, hook: x + change.to(x))])
    trace = ct.wrap(own).trace(IOI.clean, corrupt=IOI.corrupt, edges=["A2?.*->Resid End"])
    assert trace.logits is not None
    assert trace.reconstruction_error() < 0.05
    moved = (exact - logits_of(own, cache[end].float())).norm()
    theirs, ours = (hooked.float() - exact).norm(), (trace.logits.float() - exact).norm()
    assert theirs < 0.2 * moved
    assert ours < 1.5 * theirs
