"""One pass forward and backward: what it leaves on the model (nothing), and whose gradients it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.hooks import scope
from circuit_trace.plan import PromptPairs
from circuit_trace.score import differences, methods, pull_back
from circuit_trace.score.gradients import gradients
from circuit_trace.score.metrics import read_metric
from tests.footprint import footprint, hooks_of
from tests.models import CASES, TWO, TYPICAL, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
BATCH = PromptPairs(CLEAN, CORRUPT)


def metric(logits: Tensor, batch: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def scores(model: ct.PatchableModel, **options: Any) -> dict[str, Tensor]:
    return ct.score_edges(model, (CLEAN, CORRUPT), metric, **options)


@pytest.fixture(params=TWO)
def model(request: pytest.FixtureRequest) -> ct.PatchableModel:
    """A model of this test's own, that has run before."""
    built = CASES[request.param].build()
    with torch.no_grad():
        built(CLEAN)
    return ct.wrap(built)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations", "mask-gradient"])
def test_the_model_is_left_as_it_was(model: ct.PatchableModel, method: str) -> None:
    before = footprint(model.wrapped_model)
    scores(model, method=method)
    assert footprint(model.wrapped_model) == before
    with pytest.raises(ct.NoTraceError):
        _ = model.last_trace


@pytest.mark.parametrize("method", ["eap", "eap-ig-activations", "mask-gradient"])
def test_nothing_is_left_after_an_error(model: ct.PatchableModel, method: str) -> None:
    before = footprint(model.wrapped_model)

    def fails(logits: Tensor, batch: Any) -> Tensor:
        raise ZeroDivisionError

    def stops(module: Any, args: Any, output: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        ct.score_edges(model, (CLEAN, CORRUPT), fails, method=method)
    assert footprint(model.wrapped_model) == before
    handle = model.wrapped_model.blocks[1].register_forward_hook(stops)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        scores(model, method=method)
    handle.remove()
    assert footprint(model.wrapped_model) == before


@pytest.mark.parametrize("method", ["eap", "eap-ig", "mask-gradient"])
def test_frozen_weights_change_nothing(model: ct.PatchableModel, method: str) -> None:
    expected = scores(model, method=method)
    model.wrapped_model.requires_grad_(False)
    found = scores(model, method=method)
    assert not any(p.requires_grad for p in model.wrapped_model.parameters())
    for key, score in expected.items():
        assert_close(found[key], score)


def _zero_one_head(model: Any, in_place: bool) -> Any:
    def edit(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor if in_place else tensor.clone()
        tensor[:, :, 2] = 0
        return tensor

    return edit


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("key", ["attn.hook_q", "attn.hook_z", "hook_resid_pre", "hook_mlp_out"])
def test_users_hooks_stay_and_are_felt(model: ct.PatchableModel, key: str, in_place: bool) -> None:
    hooked = model.wrapped_model
    plain = scores(model)
    hooked.add_hook(f"blocks.1.{key}", _zero_one_head(hooked, in_place))  # pyright: ignore[reportCallIssue]
    if "resid" in key and in_place:
        model = ct.wrap(hooked, verify=False)
    found, expected = scores(model), scores(model, method="mask-gradient")
    hooked.reset_hooks()  # pyright: ignore[reportCallIssue]
    for name, score in expected.items():
        assert_close(found[name], score, rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(found[name], plain[name], atol=1e-3) for name in plain)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_where_the_user_has_none(context: Any) -> None:
    model = wrapped(TYPICAL[0])
    expected = scores(model)
    with context():
        pair = (CLEAN.clone(), CORRUPT.clone())
        found = ct.score_edges(model, pair, metric)
        assert not torch.is_grad_enabled()
    for key, score in expected.items():
        assert_close(found[key], score)


def test_autocast_comes_close() -> None:
    model = wrapped(TYPICAL[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(model)
    expected = scores(model)
    ours, theirs = (torch.cat([s.flatten() for s in one.values()]) for one in (found, expected))
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.98


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("module", [differences, pull_back])
def test_parts_one_by_one_are_all_of_them(
    name: str, seq_len: int | None, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapped(name, seq_len)
    expected = scores(model, method="eap-ig", steps=2)
    norms = scores(model, method="magnitude")
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 1})
    for key, score in scores(model, method="magnitude").items():
        assert_close(score, norms[key])
    found = scores(model, method="eap-ig", steps=2)
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_norms_are_pulled_back_as_autograd_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(name, SEQ)
    expected = scores(model)
    monkeypatch.setattr(pull_back.PullBack, "_norm", lambda *_: None)
    for key, score in scores(model).items():
        assert_close(expected[key], score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TYPICAL)
def test_a_norm_may_be_odd_in_some_of_the_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(name, SEQ)
    expected = scores(model, method="eap-ig", steps=3)
    apart = pull_back.PullBack._norm

    def not_in_the_second(self: Any, *args: Any) -> Any:
        return None if self.n_runs == 2 else apart(self, *args)

    monkeypatch.setattr(pull_back.PullBack, "_norm", not_in_the_second)
    for key, score in scores(model, method="eap-ig", steps=3).items():
        assert_close(expected[key], score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TYPICAL)
def test_more_runs_than_are_added_up_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(name, SEQ)
    expected = scores(model, method="eap-ig", steps=5)
    monkeypatch.setattr(methods, "RUNS_AT_ONCE", 2)
    for key, score in scores(model, method="eap-ig", steps=5).items():
        assert_close(expected[key], score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TYPICAL)
def test_no_norm_needs_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_back, "_add_by_autograd", None)  # it would be called
    assert scores(wrapped(name))


def test_the_gradient_at_the_end_is_that_of_what_follows() -> None:
    """The last reader is the stream itself: unembedding by hand gives its gradient."""
    model = wrapped(TYPICAL[0])
    run = gradients(model, BATCH, read_metric(metric))
    found = torch.empty(1, SEQ, *CLEAN.shape[:1], model.cfg.d_model)
    back = pull_back.PullBack(model.anatomy.dests)
    back.add(run)
    back.into(len(model.anatomy.dests) - 1, slice(None), found)
    unembed = model.anatomy.unembed
    assert unembed is not None
    end = model.trace(CLEAN).dest("Resid End").input.requires_grad_()
    value = metric(unembed.norm(end) @ unembed.weight(), None).sum()
    expected = torch.autograd.grad(value, end)[0]
    assert_close(found[0].transpose(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_a_norm_that_next_to_nothing_comes_into(size: float) -> None:
    """Its bias alone comes out, and the masks' gradient knows what it does to what is added."""
    bare = CASES["hooked LN"].build() if "hooked LN" in CASES else CASES["bridge GPT-2"].build()
    with torch.no_grad():
        bare.pos_embed.W_pos.zero_()
        bare.embed.W_E[CLEAN[0, 2]] = size
    for seq_len in (None, SEQ):
        model = ct.wrap(bare, seq_len=seq_len)
        expected = scores(model, method="mask-gradient")
        largest = max(float(score.abs().max()) for score in expected.values())
        for key, score in scores(model).items():
            assert_close(score, expected[key], rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("method", ["eap", "mask-gradient"])
@pytest.mark.parametrize("place", ["attn.hook_z", "hook_resid_pre", "attn.hook_q"])
def test_hooks_that_cut_the_gradient(model: ct.PatchableModel, method: str, place: str) -> None:
    handle = model.wrapped_model.hook_dict[f"blocks.1.{place}"].register_forward_hook(  # pyright: ignore[reportAttributeAccessIssue]
        lambda module, args, output: torch.zeros_like(output)
    )
    found = scores(model, method=method)
    handle.remove()
    assert sum(float(score.abs().sum()) for score in found.values()) > 0
    assert all(score.isfinite().all() for score in found.values())


@pytest.mark.parametrize("method", ["eap", "mask-gradient", "exact"])
def test_an_interrupt_while_hooks_are_taken_off_leaves_none(
    model: ct.PatchableModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, take_off = hooks_of(model.wrapped_model), scope._take_off
    for when in (1, 2, 5, 13, 30):
        calls = []

        def interrupted(hook: scope.Hook, calls: list = calls, when: int = when) -> None:
            calls.append(hook)
            if len(calls) == when:
                raise KeyboardInterrupt
            take_off(hook)

        with monkeypatch.context() as patch:
            patch.setattr(scope, "_take_off", interrupted)
            with pytest.raises(KeyboardInterrupt):
                scores(model, method=method)
        assert hooks_of(model.wrapped_model) == before


def test_a_metric_blind_to_the_model_has_no_gradient() -> None:
    model = wrapped(TYPICAL[0])
    with pytest.raises(ct.InputError, match=r"^Batch 0: The metric has no gradient: it must be"):
        ct.score_edges(model, (CLEAN, CORRUPT), lambda logits, batch: logits[:, -1, 3].detach())


def test_a_metric_of_the_first_position_alone_scores_only_it() -> None:
    model = wrapped(TYPICAL[0], SEQ)
    found = ct.score_edges(model, (CLEAN, CORRUPT), lambda logits, batch: logits[:, 0, 3])
    for name, score in found.items():
        assert score[1:].abs().max() == 0
        # The first position attends to itself alone, whatever its query and key.
        assert bool(score[0].abs().max() > 0) == (not name.endswith(("q_input", "k_input")))
