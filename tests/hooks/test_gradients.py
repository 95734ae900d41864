"""Gradients through a patched pass: of the model's weights, and of the masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import CASES, TYPICAL, oracle, shape_of, shared, tokens, wrapped
from tests.oracle import Ask

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
ASKED = {"A0.1->A1.2.Q": 1.0, "A0.2->A1.0.V": 0.5, "A0.3->MLP 1": -0.5, "MLP 0->Resid End": 1.0}

IN_DOUBLE = ("hooked LN", "hooked grouped", "bridge GPT-2")
"""Models that compute all of a pass in double precision, as finite differences need."""


@pytest.fixture(params=TYPICAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def metric(logits: Tensor) -> Tensor:
    """A logit difference, as papers use."""
    return (logits[:, -1, 3] - logits[:, -1, 5]).sum()


def masks_of(model: ct.PatchableModel, value: float = 0.0, dtype: Any = None) -> dict[str, Tensor]:
    lead = () if model.seq_len is None else (model.seq_len,)
    return {
        module.name: torch.full((*lead, *module.shape), value, dtype=dtype, requires_grad=True)
        for module in model.graph.modules
    }


def patched_metric(model: ct.PatchableModel, patched: ct.SourceOutputs, **asked: Any) -> Tensor:
    with model.patch(patched, **asked):
        return metric(model(CLEAN))


def test_logits_with_gradients_are_those_without(name: str) -> None:
    model = wrapped(name)
    with model.patch(model.source_outputs(CORRUPT), edges=ASKED):
        with_gradients = model(CLEAN)
        with torch.no_grad():
            without = model(CLEAN)
    assert with_gradients.requires_grad
    assert not without.requires_grad
    assert_close(with_gradients.detach(), without, rtol=1e-5, atol=1e-5)


def test_logits_can_be_differentiated_after_the_context_has_closed(name: str) -> None:
    hooked = CASES[name].build()
    model = ct.wrap(hooked)
    patched_metric(model, model.source_outputs(CORRUPT), edges=ASKED).backward()
    gradients = [p.grad for p in hooked.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 1


@pytest.mark.parametrize("name", IN_DOUBLE)
def test_gradients_of_weights_agree_with_finite_differences(name: str) -> None:
    hooked = CASES[name].build().to(torch.float64)
    model = ct.wrap(hooked)
    parameters = list(hooked.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def value() -> Tensor:
        zero = model.source_outputs(CORRUPT, ct.AblationType.ZERO)  # whatever the weights are
        return patched_metric(model, zero, edges=ASKED)

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            moved_value = float(value())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(step * d)
        return moved_value

    found = torch.autograd.grad(value(), parameters, allow_unused=True)
    slope = sum(
        float((g * d).sum()) for g, d in zip(found, direction, strict=True) if g is not None
    )
    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-5)
    assert abs(slope) > 1


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", IN_DOUBLE)
def test_gradients_of_masks_agree_with_finite_differences(name: str, seq_len: int | None) -> None:
    model = ct.wrap(CASES[name].build().to(torch.float64), seq_len=seq_len)
    patched = model.source_outputs(CORRUPT)
    masks = masks_of(model, 0.4, torch.float64)
    found = torch.autograd.grad(patched_metric(model, patched, masks=masks), list(masks.values()))
    generator = torch.Generator().manual_seed(0)
    direction = {k: torch.randn(m.shape, generator=generator).double() for k, m in masks.items()}

    def moved(step: float) -> float:
        with torch.no_grad():
            there = {key: mask + step * direction[key] for key, mask in masks.items()}
            return float(patched_metric(model, patched, masks=there))

    slope = sum(float((g * d).sum()) for g, d in zip(found, direction.values(), strict=True))
    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-5)
    assert abs(slope) > 1e-3


def test_masks_of_single_edges_get_their_gradients(name: str) -> None:
    model = wrapped(name)
    patched = model.source_outputs(CORRUPT)
    values = {edge: torch.tensor(mask, requires_grad=True) for edge, mask in ASKED.items()}
    found = torch.autograd.grad(patched_metric(model, patched, edges=values), list(values.values()))
    masks = {m.name: torch.zeros(m.shape) for m in model.graph.modules}
    for edge, mask in ASKED.items():
        found_edge = model.edge(edge)
        row = masks[found_edge.dest.module_name]
        row[(found_edge.dest.slot, found_edge.src.idx) if row.ndim == 2 else found_edge.src.idx] = (
            mask
        )
    for mask in masks.values():
        mask.requires_grad_()
    whole = patched_metric(model, patched, masks=masks)
    all_of_them = dict(zip(masks, torch.autograd.grad(whole, list(masks.values())), strict=True))
    for (edge, _), gradient in zip(values.items(), found, strict=True):
        found_edge = model.edge(edge)
        row = all_of_them[found_edge.dest.module_name]
        index = (found_edge.dest.slot, found_edge.src.idx) if row.ndim == 2 else found_edge.src.idx
        assert_close(gradient, row[index], rtol=1e-4, atol=1e-5)
        assert abs(float(gradient)) > 1e-4


def attribution(name: str, seq_len: int | None) -> dict[str, Tensor]:
    """Edge attribution patching with TransformerLens' hooks: (P − C) · ∂metric/∂input, per edge."""
    second = oracle(name)
    clean, corrupt = second.run(CLEAN).wrote, second.run(CORRUPT).wrote
    inputs: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def apart(tensor: Tensor, hook: Any) -> Tensor:
            # A bridge hands the MLP the stream itself: only a copy is read by nothing else.
            inputs[key] = tensor.clone()
            return inputs[key]

        return apart

    hooks = [(key, keep(key)) for key in second.shape.modules]
    value = metric(second.model.run_with_hooks(CLEAN, fwd_hooks=hooks))
    gradients = dict(zip(inputs, torch.autograd.grad(value, list(inputs.values())), strict=True))
    scores = {}
    for key, dests in second.shape.modules.items():
        sources = second.shape.before(dests[0])
        change = torch.stack([corrupt[source] - clean[source] for source in sources])
        gradient = gradients[key] if gradients[key].ndim == 4 else gradients[key][:, :, None]
        score = torch.einsum("nbpd,bphd->phn", change, gradient)
        score = score if seq_len else score.sum(0)
        scores[key] = score if gradients[key].ndim == 4 else score.squeeze(-2)
    return scores


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", [*TYPICAL, "hooked parallel", "hooked grouped", "bridge GPT-NeoX"])
def test_at_mask_0_the_gradient_is_edge_attribution_patching(
    name: str, seq_len: int | None
) -> None:
    model = wrapped(name, seq_len)
    masks = masks_of(model)
    value = patched_metric(model, model.source_outputs(CORRUPT), masks=masks)
    assert_close(value.detach(), metric(shared(name)(CLEAN)).detach(), rtol=1e-5, atol=1e-5)
    found = dict(zip(masks, torch.autograd.grad(value, list(masks.values())), strict=True))
    expected = attribution(name, seq_len)
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert found[key].shape == score.shape
        assert_close(found[key], score, rtol=1e-4, atol=1e-4)
        assert score.abs().max() > 1e-3, "there is something to tell apart"


def test_masks_learn_over_contexts() -> None:
    model = ct.wrap(CASES["hooked LN"].build())
    masks, patched = masks_of(model), model.source_outputs(CORRUPT)
    optimizer = torch.optim.SGD(masks.values(), lr=0.05)
    values = []
    for _ in range(4):
        value = patched_metric(model, patched, masks=masks)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.1


def test_masks_learn_inside_one_context() -> None:
    """As a training loop is written first: open the patch, then loop."""
    model = ct.wrap(CASES["hooked LN"].build())
    masks, patched = masks_of(model), model.source_outputs(CORRUPT)
    optimizer = torch.optim.SGD(masks.values(), lr=0.05)
    values = []
    with model.patch(patched, masks=masks):
        for _ in range(4):
            value = metric(model(CLEAN))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.1


def test_the_record_of_a_pass_with_gradients_has_none(name: str) -> None:
    model = wrapped(name)
    masks = masks_of(model, 0.5)
    patched_metric(model, model.source_outputs(CORRUPT), masks=masks)
    trace = model.last_trace
    flow = trace.edge("A0.1->A1.2.Q")
    tensors = {
        "logits": trace.logits,
        "current": trace.current["A0.1"],
        "patched": trace.patched["A0.1"],
        "received": flow.received,
        "delta": flow.delta,
        "stack": trace.current.stack(),
        "destination": trace.dest("MLP 1").received,
        **trace.masks,
    }
    assert {key: t.requires_grad for key, t in tensors.items()} == dict.fromkeys(tensors, False)
    assert trace.reconstruction_error() < 1e-5


@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_inference_mode(seq_len: int | None) -> None:
    model = wrapped("hooked LN", seq_len)
    expected = model.trace(CLEAN, corrupt=CORRUPT, edges=ASKED)
    with torch.inference_mode():
        trace = model.trace(CLEAN, corrupt=CORRUPT, edges=ASKED)
    assert torch.equal(trace.logits, expected.logits)
    assert torch.equal(trace.edge("A0.1->A1.2.Q").received, expected.edge("A0.1->A1.2.Q").received)
    assert trace.reconstruction_error() < 1e-5
    assert trace.table().equals(expected.table())


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("n", [1, 20, None])
def test_with_gradients_the_oracle_agrees_too(
    name: str, n: int | None, seq_len: int | None
) -> None:
    """Autograd takes another way through the sums than a pass without it."""
    asks = shape_of(name, seq_len).asks((-0.5, 0.5, 1.0), n=n, seed=3)
    edges = {a.name if a.seq_idx is None else (a.seq_idx, a.name): a.mask for a in asks}
    model, second = wrapped(name, seq_len), oracle(name)
    with model.patch(model.source_outputs(CORRUPT), edges=edges):
        logits = model(CLEAN)
    expected = second.run(CLEAN, second.run(CORRUPT).wrote, [Ask(*ask) for ask in asks])
    assert logits.requires_grad
    assert_close(logits.detach(), expected.logits, rtol=1e-5, atol=3e-5)


def test_weights_that_read_a_frozen_stream_learn_as_usual() -> None:
    """Nothing before the first layer learns, so its input needs no gradient, but its weights do."""
    edges = [f"Resid Start->A0.{head}.{letter}" for head, letter in enumerate("QKV")]
    found = []
    for is_frozen in (False, True):
        model = CASES["hooked LN"].build().requires_grad_(True)
        model.embed.requires_grad_(not is_frozen)
        model.pos_embed.requires_grad_(not is_frozen)
        wrapper = ct.wrap(model)
        with wrapper.patch(wrapper.source_outputs(CORRUPT), edges=edges):
            metric(model(CLEAN)).backward()
        attention = model.blocks[0].attn
        found.append([attention.W_Q.grad, attention.W_K.grad, attention.W_V.grad])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert all(bool(grad.any()) for grad in found[1])
