"""What is specific to TransformerLens: which models are known, and how their parts are found."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

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
    attn = model.wrapped_model.blocks[0].attn  # pyright: ignore[reportAttributeAccessIssue]
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


def spliced(place: str, *, error: bool) -> Any:
    """A HookedTransformer with something put in a hook point's place, as SAELens does it."""
    from transformer_lens.hook_points import HookPoint

    class Autoencoder(nn.Module):
        """Passes on half of what comes in, or with its error all of it."""

        def __init__(self) -> None:
            super().__init__()
            self.hook_sae_output = HookPoint()
            self.sae = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hook_sae_output(x if error else 0.5 * x)

    Autoencoder.__module__ = "sae_lens.analysis"
    model = hooked()
    owner, _, name = place.rpartition(".")
    setattr(model.get_submodule(owner), name, Autoencoder())
    model.setup()
    assert place not in model.hook_dict
    return model


@pytest.mark.parametrize("place", ["blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"])
@pytest.mark.parametrize("error", [False, True])
def test_an_autoencoder_where_a_source_writes_is_traced(place: str, error: bool) -> None:
    """Against a hook that does what it does."""
    model, twin = spliced(place, error=error), hooked()
    trace = ct.wrap(model).trace(tokens(1), corrupt=tokens(2), edges=["*->*"])
    with torch.no_grad():
        expected = twin.run_with_hooks(
            tokens(2), fwd_hooks=[(place, lambda x, hook: x if error else 0.5 * x)]
        )
    assert_close(trace.logits, expected, rtol=1e-5, atol=1e-5)
    assert trace.reconstruction_error() < 1e-5


@pytest.mark.parametrize(
    "place", ["blocks.1.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.1.hook_resid_post"]
)
def test_an_autoencoder_in_the_stream_is_refused_by_name(place: str) -> None:
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(spliced(place, error=False))
    assert str(caught.value).endswith(
        f"A sparse autoencoder stands at {place!r} (Autoencoder): where it replaces the residual "
        "stream, or what is computed from it, no sum of sources is left to patch. Take it out with "
        "reset_saes(), or let it add its error (use_error_term=True)."
    )
    exact = ct.wrap(spliced(place, error=True))
    assert exact.trace(tokens(1)).reconstruction_error() < 1e-5


def test_a_compiled_model_says_what_to_wrap() -> None:
    compiled = torch.compile(hooked(), backend="eager")
    with pytest.raises(
        ct.AnatomyError,
        match=r"torch\.compile\(model\) returns\. Wrap .* ct\.wrap\(compiled\._orig_mod\)",
    ):
        ct.wrap(compiled)
    assert ct.wrap(compiled._orig_mod).n_edges > 0


def test_a_model_without_obstacles_has_none() -> None:
    assert all(anatomy(shared(name)).caveats == () for name in CASES)


@pytest.mark.parametrize("n_ctx", [1, 2, 8, 50])
def test_the_example_is_of_all_the_vocabulary(n_ctx: int) -> None:
    ids = anatomy(hooked(n_ctx=n_ctx, d_vocab=1000)).example()
    assert ids.shape == (1, min(n_ctx, 8))
    assert len(set(ids[0].tolist())) == ids.shape[1]
    assert n_ctx < 8 or (ids.min() < 150 and ids.max() > 850)
