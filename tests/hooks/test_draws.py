"""Passes that draw random numbers: refused wherever the noise would count as an effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import circuit_trace as ct
from tests.models import CASES, HAS_BRIDGE, TYPICAL, tokens

CLEAN = tokens(1)
SAME = (CLEAN, CLEAN.clone())
PAIR = (CLEAN, tokens(2))
EDGES = ["A0.1->A1.2.Q", "MLP 0->Resid End"]

REFUSED = (
    "The model draws random numbers as it runs (dropout in training mode?), so no two passes agree: "
    "call model.eval() first."
)

ASKS: dict[str, Callable[[ct.PatchableModel], Any]] = {
    "trace": lambda m: m.trace(CLEAN, corrupt=SAME[1], edges=EDGES),
    "trace alone": lambda m: m.trace(CLEAN),
    "source_outputs": lambda m: m.source_outputs(CLEAN),
    "source_outputs of a dataset": lambda m: m.source_outputs(
        [CLEAN], ct.AblationType.TOKENWISE_MEAN_CLEAN
    ),
    "exact": lambda m: ct.exact_scores(m, PAIR, "loss", edges="*->Resid End", bar=False),
    "faithfulness": lambda m: ct.faithfulness(
        m, PAIR, {one.name: torch.ones(one.shape) for one in m.graph.modules}, "loss", bar=False
    ),
    "acdc": lambda m: ct.acdc(m, PAIR, "loss", threshold=0.1, bar=False),
    **{
        method: lambda m, method=method: ct.score_edges(
            m, PAIR, "loss", method=method, steps=2, bar=False
        )
        for method in ("eap", "eap-ig", "mask-gradient", "magnitude", "exact")
    },
}


def with_noise(place: str) -> Any:
    """A model that draws: its own dropout in training, or a module of it that draws always."""
    if place == "a hook's":
        hooked = CASES[TYPICAL[0]].build()
        hooked.blocks[0].hook_mlp_out.register_forward_hook(
            lambda _module, _args, output: output + 0.1 * torch.randn_like(output)
        )
        return hooked
    hooked = CASES["bridge GPT-2"].build()
    if place == "one submodule's":
        next(one for one in hooked.modules() if isinstance(one, nn.Dropout) and one.p).train()
    else:
        hooked.train()
    return hooked


@pytest.mark.parametrize("what", ASKS)
@pytest.mark.parametrize(
    "place",
    ["a hook's"] + ["the whole model's", "one submodule's"] * HAS_BRIDGE,
)
def test_noise_is_refused_and_the_users_random_numbers_stay(place: str, what: str) -> None:
    """Of two identical prompts no edge has an effect."""
    hooked = with_noise(place)
    with torch.no_grad():
        assert not torch.equal(hooked(CLEAN), hooked(CLEAN)), "the check of the check"
    model = ct.wrap(hooked, verify=False)
    before = torch.get_rng_state()
    with pytest.raises(ct.InputError) as caught:
        ASKS[what](model)
    assert str(caught.value).removeprefix("Batch 0: ") == REFUSED
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.has_open_patch


def test_a_run_to_resume_is_refused_before_it_draws(tmp_path: Path) -> None:
    model = ct.wrap(with_noise("a hook's"), verify=False)
    before = torch.get_rng_state()
    with pytest.raises(ct.InputError, match="draws random numbers"):
        ct.score_edges(model, PAIR, "loss", resume=tmp_path / "sums", bar=False)
    assert torch.equal(torch.get_rng_state(), before)


def effects(model: ct.PatchableModel) -> list[Tensor]:
    """What identical prompts give by each way that has an effect to give."""
    trace = ASKS["trace"](model)
    found = [trace.edge(edge).delta for edge in EDGES]
    found.append(trace.logits - model.trace(CLEAN).logits)
    for method in ("exact", "eap", "mask-gradient", "magnitude"):
        same = model.source_outputs(CLEAN)  # data of identical pairs alone is refused
        scores = ct.score_edges(model, SAME, "loss", method=method, patched=same, bar=False)
        found.extend(scores.values())
    return found


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("training", [False, True])
def test_without_noise_identical_prompts_have_no_effect(name: str, training: bool) -> None:
    """A model in training mode that drops nothing is as good as any."""
    hooked = CASES[name].build()
    theirs = getattr(hooked, "original_model", hooked)  # a bridge's modules are not all of them
    for one in (*hooked.modules(), *theirs.modules()):
        if isinstance(one, nn.Dropout):
            one.p = 0.0
    hooked.train(training)
    before = torch.get_rng_state()
    for effect in effects(ct.wrap(hooked)):
        torch.testing.assert_close(effect, torch.zeros_like(effect), rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_may_be_learned_with_dropout() -> None:
    """A pass of the user's own inside `patch` draws as it would without."""
    hooked = with_noise("a hook's")
    patched = ct.wrap(CASES[TYPICAL[0]].build()).source_outputs(tokens(2))
    model = ct.wrap(hooked, verify=False)
    mask = torch.zeros((), requires_grad=True)
    torch.manual_seed(3)
    plain = hooked(CLEAN).detach()
    torch.manual_seed(3)
    with model.patch(patched, edges={EDGES[0]: mask}):
        logits = model(CLEAN)
    torch.testing.assert_close(logits.detach(), plain)
    logits.logsumexp(-1).sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs() > 0
