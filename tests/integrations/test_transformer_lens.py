"""What is specific to TransformerLens: which models are known, and how their parts are found."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.integrations.transformer_lens import anatomy
from tests.models import CASES, D_HEAD, N_HEADS, hooked, shared, tokens


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), nn.Sequential(), nn.Identity()])
def test_other_modules_are_left_to_others(thing: nn.Module) -> None:
    assert anatomy(thing) is None


def test_a_class_of_that_name_from_elsewhere_is_no_hooked_transformer() -> None:
    class HookedTransformer(nn.Module):
        """The name alone."""

    assert anatomy(HookedTransformer()) is None


def test_a_subclass_is_known() -> None:
    from transformer_lens import HookedTransformer

    class Mine(HookedTransformer):
        """As people write to add a method."""

    model = shared("hooked LN")
    mine = Mine(model.cfg)
    mine.load_state_dict(model.state_dict())
    edges = ["A0.1->A1.2.Q"]
    trace = ct.wrap(mine).trace(tokens(1), corrupt=tokens(2), edges=edges)
    assert_close(
        trace.logits, ct.wrap(model).trace(tokens(1), corrupt=tokens(2), edges=edges).logits
    )


@pytest.mark.parametrize("name", CASES)
def test_sources_and_destinations_of_a_layer(name: str) -> None:
    found, case = anatomy(shared(name)), CASES[name]
    kinds = ["embed"] + (["attention"] if case.attn_only else ["attention", "mlp"]) * 2
    assert [site.kind for site in found.sources] == kinds
    names = [site.module_name for site in found.dests]
    layer = ["hook_q_input", "hook_k_input", "hook_v_input"] + ["hook_mlp_in"] * (
        not case.attn_only
    )
    expected = [f"blocks.{number}.{hook}" for number in (0, 1) for hook in layer]
    assert names == [*expected, "blocks.1.hook_resid_post"]
    assert [len(site.names) for site in found.dests][:3] == [
        N_HEADS,
        case.n_kv_heads,
        case.n_kv_heads,
    ]
    seen = [site.n_sources for site in found.dests if site.kind == "mlp"]
    per_layer = N_HEADS + 1
    first = [1, 1 + per_layer] if case.parallel else [1 + N_HEADS, 1 + per_layer + N_HEADS]
    assert seen == ([] if case.attn_only else first)


@pytest.mark.parametrize("name", CASES)
def test_the_output_weights_have_a_row_of_heads(name: str) -> None:
    model = shared(name)
    for site in anatomy(model).sources:
        weight = site.weight()
        if site.kind == "attention":
            assert weight.shape == (N_HEADS, D_HEAD, model.cfg.d_model)
        else:
            assert weight is None
            assert site.bias() is None


def test_new_weights_are_seen_without_wrapping_again() -> None:
    """A model is wrapped once and trained on: the weights are looked up in each pass."""
    model = ct.wrap(hooked())
    attn = model.wrapped_model.blocks[0].attn
    attn.W_O = nn.Parameter(attn.W_O.detach() * 2)
    attn.b_O = nn.Parameter(attn.b_O.detach() + 1)
    attn.W_Q = nn.Parameter(attn.W_Q.detach() * -1)
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=["A0.1->A1.2.Q", "Resid Start->A0.3.Q"])
    anew = ct.wrap(model.wrapped_model)
    expected = anew.trace(
        tokens(1), corrupt=tokens(2), edges=["A0.1->A1.2.Q", "Resid Start->A0.3.Q"]
    )
    assert torch.equal(trace.logits, expected.logits)
    assert trace.reconstruction_error() < 1e-5


def test_a_soft_cap_on_the_logits_is_in_the_record() -> None:
    model = ct.wrap(hooked(output_logits_soft_cap=2.0))
    with torch.no_grad(), model.patch():
        logits = model(tokens(1))
    assert logits.abs().max() < 2.0
    assert_close(model.last_trace.logits, logits)


@pytest.mark.parametrize("text", ["a prompt", ["a prompt", "another"]])
def test_text_without_a_tokenizer(text: str | list[str]) -> None:
    found = anatomy(shared("hooked LN"))
    with pytest.raises(ct.InputError) as caught:
        found.to_tokens(text)
    assert str(caught.value) == (
        "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
    )
    assert found.to_strings is None


def test_the_core_imports_no_foreign_software_but_torch_and_pandas() -> None:
    """Importing is cheap and changes nothing elsewhere."""
    code = (
        "import sys, torch; threads = torch.get_num_threads(); import circuit_trace; "
        "heavy = {'transformer_lens', 'transformers', 'plotly', 'kaleido', 'IPython', 'matplotlib'}; "
        "assert torch.get_num_threads() == threads and torch.is_grad_enabled(); "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
