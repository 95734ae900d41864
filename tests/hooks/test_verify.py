"""A model whose arithmetic is not the anatomy's is refused, with what differs and by how much."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace import Anatomy
from tests.footprint import footprint
from tests.models import CASES, hooked, native, tokens

REFUSAL = re.compile(
    r"^The anatomy found for this (?P<model>\w+) does not reproduce it: (?P<what>.+) differs by "
    r"(?P<amount>\S+) relative to its size \(allowed for torch\.(?P<dtype>\w+): (?P<allowed>\S+)\)\. "
    r"Patching it would "
    r"give wrong results, so it is refused\. If hooks on the model change these tensors, wrap it "
    r"before they are added; wrap\(model, verify=False\) skips this check\.$"
)


def scaled(
    place: str, factor: float = 1.5, dtype: torch.dtype = torch.float32
) -> Callable[[], Any]:
    """A model with a permanent hook that scales what passes a place."""

    def build() -> Any:
        model = hooked().to(dtype)

        def scale(tensor: Tensor, hook: Any) -> Tensor:
            return tensor * factor

        model.add_hook(place, scale, is_permanent=True)
        return model

    return build


def stream(reader: str) -> str:
    return f"the residual stream that {reader} reads"


def computes(heads: str) -> str:
    return f"what {heads} computes from the residual stream"


DIFFERENT: dict[str, tuple[Callable[[], Any], str, str]] = {
    "attention's output is scaled": (
        scaled("blocks.0.hook_attn_out"),
        "HookedTransformer",
        stream("A1.0.Q"),
    ),
    "the last layer's attention output is scaled": (
        scaled("blocks.1.hook_attn_out"),
        "HookedTransformer",
        stream("Resid End"),
    ),
    "the stream is scaled": (
        scaled("blocks.1.hook_resid_pre"),
        "HookedTransformer",
        stream("A1.0.Q"),
    ),
    "a norm is scaled": (
        scaled("blocks.1.ln1.hook_normalized"),
        "HookedTransformer",
        computes("A1.0.V … A1.3.V"),
    ),
    "queries are scaled": (
        scaled("blocks.0.attn.hook_q"),
        "HookedTransformer",
        computes("A0.0.Q … A0.3.Q"),
    ),
    "values are scaled": (
        scaled("blocks.1.attn.hook_v"),
        "HookedTransformer",
        computes("A1.0.V … A1.3.V"),
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_model_that_does_otherwise_is_refused(what: str) -> None:
    build, kind, tensor = DIFFERENT[what]
    model = build()
    with torch.no_grad():
        model(tokens(1))
    before = footprint(model)
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model)
    said = REFUSAL.match(str(caught.value))
    assert said is not None, str(caught.value)
    assert (said["model"], said["dtype"], said["allowed"]) == (kind, "float32", "0.001")
    assert float(said["amount"]) > 1e-2
    if not tensor.startswith("what A1.0.V"):
        # The largest difference is named; which of Q, K and V that is may change with the weights.
        assert said["what"].split(" that ")[0] == tensor.split(" that ")[0]
    assert footprint(model) == before
    assert ct.wrap(model, verify=False).n_edges > 0, "the check can be skipped"


def test_the_tensor_that_differs_most_is_named() -> None:
    with pytest.raises(
        ct.AnatomyError, match=r"it: what A0\.0\.Q … A0\.3\.Q computes from .* 0\.\d+ rel"
    ):
        ct.wrap(scaled("blocks.0.attn.hook_q")())
    with pytest.raises(
        ct.AnatomyError, match=r"it: the residual stream that Resid End reads differs by"
    ):
        ct.wrap(scaled("blocks.1.hook_resid_post")())


def test_a_small_difference_is_seen() -> None:
    """One per cent is no rounding."""
    with pytest.raises(ct.AnatomyError):
        ct.wrap(scaled("blocks.1.attn.hook_k", 1.01)())
    assert ct.wrap(scaled("blocks.1.attn.hook_k", 1 + 1e-6)()).n_edges == 110, "rounding is not"


def test_trusting_an_unverified_model_shows_in_its_record() -> None:
    model = ct.wrap(scaled("blocks.0.hook_attn_out")(), verify=False)
    assert model.trace(tokens(1)).reconstruction_error() > 1e-2


PLACES_FOR_NAN: dict[str, Callable[[Any], Tensor]] = {
    "W_E": lambda m: m.embed.W_E,
    "first W_Q": lambda m: m.blocks[0].attn.W_Q,
    "last W_Q": lambda m: m.blocks[1].attn.W_Q,
    "last W_O": lambda m: m.blocks[1].attn.W_O,
    "last W_in": lambda m: m.blocks[1].mlp.W_in,
    "last b_out": lambda m: m.blocks[1].mlp.b_out,
}


@pytest.mark.parametrize("place", PLACES_FOR_NAN)
def test_a_model_with_nan_in_it_is_refused(place: str) -> None:
    model = hooked()
    with torch.no_grad():
        PLACES_FOR_NAN[place](model)[...] = float("nan")
    with pytest.raises(ct.AnatomyError, match="differs by nan"):
        ct.wrap(model)


def test_grouped_heads_cannot_go_unsplit() -> None:
    for build in (CASES["hooked grouped"].build, CASES["bridge Llama"].build):
        with pytest.raises(ct.AnatomyError) as caught:
            ct.wrap(build(), separate_qkv=False)
        assert str(caught.value) == (
            "separate_qkv=False needs one key-value head per query head; this model has 2 for 4. Wrap "
            "it with separate_qkv=True."
        )


@pytest.mark.parametrize("build", [hooked, native], ids=["hooked", "native"])
def test_a_context_window_shorter_than_the_example(build: Callable) -> None:
    if build is hooked:
        model = ct.wrap(hooked(n_ctx=2))
        ids = tokens(1, seq=2)
        assert model.trace(ids).reconstruction_error() < 1e-5
    else:
        model = ct.wrap(native())
        assert model.trace(tokens(1)).reconstruction_error() < 1e-5


EVERY_DTYPE = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)


@EVERY_DTYPE
@pytest.mark.parametrize("name", CASES)
def test_no_precision_is_refused(name: str, dtype: torch.dtype) -> None:
    model = ct.wrap(CASES[name].build().to(dtype))
    assert model.trace(tokens(1)).logits.dtype == dtype


def without(what: str, kind: str) -> Callable[[Anatomy], Anatomy]:
    """An anatomy that forgets something at the sites of a kind."""

    def forget(right: Anatomy) -> Anatomy:
        if what in ("norm's gain", "bias of readers"):
            dests = []
            for site in right.dests:
                readers = []
                for reader in site.readers:
                    if site.kind == kind and what == "norm's gain":
                        reader = replace(reader, norm=_plain_layer_norm)
                    elif site.kind == kind:
                        reader = replace(reader, bias=lambda: None)
                    readers.append(reader)
                dests.append(replace(site, readers=tuple(readers)))
            return replace(right, dests=tuple(dests))
        changed = {"b_O": {"bias": lambda: None}, "5 %": {"scale": 1.05}}[what]
        sources = [
            replace(site, **changed) if site.kind == kind else site for site in right.sources
        ]
        return replace(right, sources=tuple(sources))

    return forget


def _plain_layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


WRONG: dict[str, tuple[Callable[[Anatomy], Anatomy], str]] = {
    "a forgotten b_O": (without("b_O", "attention"), stream("MLP 0")),
    "heads that write 5 % more": (without("5 %", "attention"), stream("MLP 0")),
    "an MLP that writes 5 % more": (without("5 %", "mlp"), stream("A1.0.Q")),
    "a norm without its gain": (
        without("norm's gain", "attention"),
        computes("A0.0.Q … A0.3.Q"),
    ),
    "a forgotten b_Q": (without("bias of readers", "attention"), computes("A0.0.Q … A0.3.Q")),
}


@EVERY_DTYPE
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_anatomy_is_refused_in_every_precision(what: str, dtype: torch.dtype) -> None:
    """What is allowed is the rounding of the model's own type, and no more."""
    mistake, tensor = WRONG[what]
    model = hooked().to(dtype)
    right = ct.wrap(model).anatomy
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model, anatomy=mistake(right))
    said = REFUSAL.match(str(caught.value))
    assert said is not None, str(caught.value)
    assert said["what"] == tensor
    assert f"torch.{said['dtype']}" == str(dtype)


@EVERY_DTYPE
@pytest.mark.parametrize(
    "place", ["blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_k"]
)
def test_five_per_cent_are_no_rounding(place: str, dtype: torch.dtype) -> None:
    model = scaled(place, 1.05, dtype)()
    if place == "blocks.1.hook_mlp_out":  # what is recorded there is what the stream takes
        assert ct.wrap(model).n_edges == 110
        return
    with pytest.raises(ct.AnatomyError, match="differs by 0"):
        ct.wrap(model)


def gated(dtype: torch.dtype) -> Any:
    """Attention whose output passes a gate that reads the stream, as in AFMoE."""
    model = hooked().to(dtype)
    seen: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    width = model.cfg.n_heads * model.cfg.d_head
    gate = torch.randn(model.cfg.d_model, width, generator=generator).to(dtype)

    def see(tensor: Tensor, hook: Any) -> None:
        seen[:] = [tensor]

    def close(z: Tensor, hook: Any) -> Tensor:
        return z * torch.sigmoid(seen[0] @ gate).view_as(z)

    model.add_hook("blocks.1.hook_resid_pre", see, is_permanent=True)
    model.add_hook("blocks.1.attn.hook_z", close, is_permanent=True)
    return model


@EVERY_DTYPE
def test_a_layer_that_reads_the_stream_where_no_destination_is_known_is_refused(
    dtype: torch.dtype,
) -> None:
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(gated(dtype))
    found = REFUSAL.match(str(caught.value))
    assert found
    assert found["what"].startswith("what A1.0 … A1.3 writes when all that it reads is replayed")


def test_a_head_that_writes_to_the_output_past_the_stream_is_refused() -> None:
    """The unembedding of this one reads the embedding as well."""
    model = native()
    seen: list[Tensor] = []

    def see(_module: Any, _args: Any, output: Tensor) -> None:
        seen[:] = [output]

    def add(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] + seen[0],)

    model.original_model.tok_embed.register_forward_hook(see)
    model.original_model.head.register_forward_pre_hook(add)
    with pytest.raises(ct.AnatomyError, match=r"it: the model's output when all that it reads is"):
        ct.wrap(model)


def test_a_huge_position_does_not_hide_a_difference_at_others() -> None:
    model = scaled("blocks.0.hook_attn_out")()
    with torch.no_grad():
        model.W_E[0] *= 1e6
    with pytest.raises(ct.AnatomyError, match="the residual stream that MLP 0 reads"):
        ct.wrap(model)


def test_a_weight_that_cannot_be_read_by_head_is_no_foreign_error() -> None:
    """As in bridges of models whose layers have heads of several sizes."""
    model = hooked()
    right = ct.wrap(model).anatomy

    def fails() -> Tensor:
        raise ValueError("Cannot split (32, 16)")

    sources = [
        replace(site, weight=fails) if site.kind == "attention" else site for site in right.sources
    ]
    with pytest.raises(ct.AnatomyError, match=r"failed with ValueError: Cannot split \(32, 16\)"):
        ct.wrap(model, anatomy=replace(right, sources=tuple(sources)))
