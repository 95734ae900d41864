"""Whatever way a model is run, what is patched and recorded is what happened in that pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.footprint import footprint
from tests.models import CASES, HAS_HOOKED, TYPICAL, shared, tokens, wrapped

CLEAN, CORRUPT = tokens(1), tokens(2)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
EDGES = ["A0.1->A1.2.Q", "Resid Start->A1.1.V", "MLP 0->Resid End", "A1.0->MLP 1"]


@pytest.mark.skipif(not HAS_HOOKED, reason="past_kv_cache is HookedTransformer's")
@pytest.mark.parametrize("name", ["hooked LN", "hooked rotary, gated MLP", "hooked grouped"])
def test_a_prefix_from_the_key_value_cache(name: str) -> None:
    """Patching after a cached prefix is patching the later positions of the whole prompt."""
    from transformer_lens import cache as of_lens

    hooked, prefix = shared(name), tokens(3, seq=4)
    whole = [torch.cat([prefix, suffix], dim=1) for suffix in (CLEAN, CORRUPT)]
    edges = [(seq_idx, edge) for seq_idx in range(4, 10) for edge in EDGES]
    expected = wrapped(name, 10).trace(whole[0], corrupt=whole[1], edges=edges)

    cached = of_lens.key_value_cache.TransformerLensKeyValueCache.init_cache(  # pyright: ignore[reportAttributeAccessIssue]
        hooked.cfg, "cpu", len(prefix)
    )
    model, mask = wrapped(name), torch.ones_like(CLEAN)
    with torch.no_grad():
        hooked(prefix, past_kv_cache=cached, attention_mask=torch.ones_like(prefix))
        cached.freeze()
        with model.patch():
            model(CORRUPT, past_kv_cache=cached, attention_mask=mask)
        with model.patch(model.last_trace.current, edges=EDGES):
            logits = model(CLEAN, past_kv_cache=cached, attention_mask=mask)
    assert_close(logits, expected.logits[:, 4:], **CLOSE)
    assert model.last_trace.reconstruction_error() < 1e-5
    received = model.last_trace.edge("A1.0->MLP 1").received
    assert_close(received, expected.patched["A1.0"][:, 4:], **CLOSE)


@pytest.mark.parametrize("name", [name for name in TYPICAL if name.startswith("bridge")])
def test_dropout_in_training_is_the_pass_own(name: str) -> None:
    """In `patch`, where masks may be learned that way; `trace` and scores refuse it."""
    hooked = CASES[name].build()
    for module in hooked.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    hooked.train()
    model = ct.wrap(hooked)
    with torch.no_grad():
        torch.manual_seed(5)
        plain = hooked(CLEAN)
        torch.manual_seed(5)
        with model.patch():
            recorded = model(CLEAN)
        torch.manual_seed(6)
        with model.patch(model.last_trace.current, edges=EDGES):
            model(CLEAN)
    assert hooked.training
    assert torch.equal(recorded, plain), "recording draws no random numbers"
    assert model.last_trace.reconstruction_error() < 1e-5
    assert {edge.name for edge in model.last_trace.edges} == set(EDGES)


def test_two_threads_with_two_models() -> None:
    """Neither sees the other's patch: hooks and records belong to a wrapper."""
    models = [ct.wrap(CASES[TYPICAL[0]].build()) for _ in range(2)]
    asked: list[list[str]] = [EDGES[:2], EDGES[2:]]

    def traces(which: int) -> list[torch.Tensor]:
        return [
            models[which].trace(CLEAN, corrupt=CORRUPT, edges=asked[which]).logits
            for _ in range(20)
        ]

    alone = [traces(which)[0] for which in (0, 1)]
    assert not torch.equal(*alone)
    with ThreadPoolExecutor(2) as pool:
        for logits, expected in zip(pool.map(traces, (0, 1)), alone, strict=True):
            assert all(torch.equal(one, expected) for one in logits)


@pytest.mark.parametrize("name", TYPICAL)
def test_two_wrappers_of_one_model_in_turn(name: str) -> None:
    hooked = shared(name)
    before = footprint(hooked)
    whole, by_position = ct.wrap(hooked), ct.wrap(hooked, seq_len=6)
    first = whole.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    second = by_position.trace(CLEAN, patched=whole.source_outputs(CORRUPT), edges=EDGES)
    assert_close(second.logits, first.logits, **CLOSE)
    assert whole.last_trace is first
    assert footprint(hooked) == before


@pytest.mark.parametrize("how", ["keyword", "positional", "embedding hook"])
def test_users_hooks_around_a_patch_see_what_is_used(how: str) -> None:
    """What a user's hook changes upstream is what the sources wrote in this pass."""
    hooked = CASES[TYPICAL[0]].build()
    model = ct.wrap(hooked)
    seen: list[Any] = []

    def halve(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(hook.name)
        return tensor / 2

    where = "hook_embed" if how == "embedding hook" else "blocks.0.hook_mlp_out"
    patched = model.source_outputs(CORRUPT)
    with model.patch(patched, edges=EDGES), hooked.hooks(fwd_hooks=[(where, halve)]):
        model(CLEAN) if how == "positional" else model(input=CLEAN)
    trace = model.last_trace
    assert seen == [where], "fires once"
    assert trace.reconstruction_error() < 1e-5
    source = "Resid Start" if how == "embedding hook" else "MLP 0"
    plain = model.trace(CLEAN).current[source]
    assert (trace.current[source] - plain).abs().max() > 1e-2
