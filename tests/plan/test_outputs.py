"""What every source wrote, as a mapping."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import D_HEAD, N_HEADS, TYPICAL, hooked, tokens, wrapped

TOKENS = tokens(3)


@pytest.fixture(params=TYPICAL)
def model(request: pytest.FixtureRequest) -> ct.PatchableModel:
    return wrapped(request.param)


def test_it_is_an_ordered_mapping_from_names_to_stream_vectors(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    d_model = model.cfg.d_model
    assert list(outputs) == [src.name for src in model.srcs]
    assert len(outputs) == len(model.srcs) == 11
    assert (outputs.batch, outputs.seq) == (2, 6)
    assert all(value.shape == (2, 6, d_model) for value in outputs.values())
    assert "A0.1" in outputs
    assert "A0.1.Q" not in outputs
    assert 3 not in outputs


def test_get_gives_the_default_as_every_mapping_does(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    assert torch.equal(outputs.get("A0.1"), outputs["A0.1"])
    assert outputs.get("A9.9") is None


def test_heads_are_z_times_the_output_weights(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    _, cache = model.wrapped_model.run_with_cache(TOKENS)  # pyright: ignore[reportCallIssue]
    for layer in range(2):
        z = cache[f"blocks.{layer}.attn.hook_z"].view(2, 6, N_HEADS, D_HEAD)
        for head in range(N_HEADS):
            weight = model.wrapped_model.blocks[layer].attn.W_O[head]  # pyright: ignore[reportAttributeAccessIssue]
            assert_close(outputs[f"A{layer}.{head}"], (z[:, :, head] @ weight).detach())
        assert_close(outputs[f"MLP {layer}"], cache[f"blocks.{layer}.hook_mlp_out"])
    assert_close(outputs["Resid Start"], cache["blocks.0.hook_resid_pre"])


def test_heads_are_stored_as_narrow_as_the_model_computes_them(model: ct.PatchableModel) -> None:
    sites = model.source_outputs(TOKENS).sites
    assert [tuple(site.code.shape) for site in sites[:3]] == [
        (2, 6, 1, model.cfg.d_model),
        (2, 6, N_HEADS, D_HEAD),
        (2, 6, 1, model.cfg.d_model),
    ]


def test_stack_is_all_of_them_in_order(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    stacked = outputs.stack()
    assert stacked.shape == (11, 2, 6, model.cfg.d_model)
    for row, value in zip(stacked, outputs.values(), strict=True):
        assert_close(row, value)


def test_vectors_of_some_sources_for_one_prompt(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    chosen = [model.srcs[number] for number in (7, 0, 3, 5, 2)]
    got = outputs.vectors(chosen, batch_idx=1)
    assert_close(got, torch.stack([outputs[src.name][1] for src in chosen]))
    zero = model.source_outputs(TOKENS, ct.AblationType.ZERO)
    assert zero.vectors(chosen, batch_idx=1).count_nonzero() == 0


def test_an_unknown_source() -> None:
    outputs = wrapped("hooked LN").source_outputs(TOKENS)
    with pytest.raises(ct.EdgeError) as caught:
        outputs["A9.9"]
    assert str(caught.value) == (
        "There is no source 'A9.9'; the sources run from 'Resid Start' to 'MLP 1'."
    )


def test_it_shows_what_it_is() -> None:
    model = wrapped("hooked LN")
    assert repr(model.source_outputs(TOKENS)) == (
        "<SourceOutputs: 11 sources, batch 2, seq 6, resample>"
    )


def test_nothing_needs_a_gradient(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs(TOKENS)
    assert not any(value.requires_grad for value in outputs.values())
    assert not outputs.stack().requires_grad


CHANGED = (
    "The model's output weights were changed in place after this pass was recorded, so what its heads "
    "wrote can no longer be computed: a record keeps them as narrow as the model does (hook_z). Make "
    "tables, figures and tensors before such a step, or trace again."
)


def test_heads_cannot_be_asked_for_once_their_weights_have_changed() -> None:
    model = ct.wrap(hooked())
    outputs = model.source_outputs(TOKENS)
    stacked, start = outputs.stack(), outputs["Resid Start"].clone()
    with torch.no_grad():
        model.wrapped_model.blocks[1].attn.W_O.mul_(2)  # pyright: ignore[reportAttributeAccessIssue]
    for ask in (lambda: outputs["A1.0"], outputs.stack):
        with pytest.raises(ct.InputError) as caught:
            ask()
        assert str(caught.value) == CHANGED
    assert torch.equal(outputs["Resid Start"], start), "what needs no weight stays"
    assert torch.equal(outputs["A0.1"], stacked[2]), "nor do weights of another layer matter"


WAYS_TO_CHANGE_WEIGHTS = {
    "in place": lambda weight: weight.mul_(2),
    "one element": lambda weight: weight[0, 0].zero_(),
    "copied over": lambda weight: weight.copy_(torch.ones_like(weight)),
    "through .data": lambda weight: weight.data.mul_(2),
}


@pytest.mark.parametrize("way", WAYS_TO_CHANGE_WEIGHTS)
def test_no_way_to_change_weights_in_place_gives_wrong_numbers(way: str) -> None:
    model = ct.wrap(hooked())
    outputs = model.source_outputs(TOKENS)
    with torch.no_grad():
        WAYS_TO_CHANGE_WEIGHTS[way](model.wrapped_model.blocks[0].attn.W_O)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ct.InputError) as caught:
        outputs["A0.1"]
    assert str(caught.value) == CHANGED


def test_new_weights_in_their_place_leave_the_record_right() -> None:
    model = ct.wrap(hooked())
    outputs = model.source_outputs(TOKENS)
    before = outputs["A0.1"].clone()
    attn = model.wrapped_model.blocks[0].attn  # pyright: ignore[reportAttributeAccessIssue]
    attn.W_O = torch.nn.Parameter(torch.zeros_like(attn.W_O))
    assert torch.equal(outputs["A0.1"], before)
    assert model.source_outputs(TOKENS)["A0.1"].count_nonzero() == 0


@pytest.mark.parametrize("shape", [(2, 5), (3, 6), (1, 6)])
def test_outputs_for_another_batch_are_refused(shape: tuple[int, int]) -> None:
    model = wrapped("hooked LN")
    outputs = model.source_outputs(tokens(4, *shape))
    with pytest.raises(ct.InputError) as caught:
        model.trace(TOKENS, patched=outputs, edges=["A0.1->Resid End"])
    assert str(caught.value) == (
        f"The patched outputs (resample) are for a batch of {shape[0]} × {shape[1]} tokens, but this "
        "pass runs 2 × 6. Clean and corrupt prompts must have the same number of prompts and of "
        "tokens."
    )
