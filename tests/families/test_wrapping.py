"""What stands in a model and changes nothing of what it is: half precision, experts, adapters, packed and
offloaded weights. And models that are no decoders, which are refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

import circuit_trace as ct
from tests.families.models import CONFIGS, D_HEAD, D_MODEL, N_HEADS, bridge, hugging_face, tokens
from tests.families.oracle import FamilyOracle, shape_of
from tests.footprint import footprint

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
DENSE = [name for name in CONFIGS if name != "MixtralForCausalLM"]
"""Experts in half precision need widths that are multiples of 16 bytes."""

EXPERTS: dict[str, Callable[..., Any]] = {
    "MixtralForCausalLM": lambda **sizes: transformers.MixtralConfig(**sizes, num_local_experts=8),
    "OlmoeForCausalLM": lambda **sizes: transformers.OlmoeConfig(
        **sizes, num_experts=16, num_experts_per_tok=4
    ),
    "Qwen3MoeForCausalLM": lambda **sizes: transformers.Qwen3MoeConfig(
        **sizes,
        head_dim=16,  # pyright: ignore[reportCallIssue]
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
    ),
}


def bridged(model: Any, architecture: str) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(
        model.eval(), architecture=architecture, hf_config=model.config, tokenizer=None
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", DENSE)
def test_a_family_in_half_precision(architecture: str, dtype: torch.dtype) -> None:
    """Against the same edges in float32."""
    half, full = ct.wrap(bridge(architecture).to(dtype)), ct.wrap(bridge(architecture))
    edges = ["A0.1->A1.2.Q", "MLP 0->MLP 1", "Resid Start->Resid End"]
    found = half.trace(tokens(1), corrupt=tokens(2), edges=edges).logits
    expected = full.trace(tokens(1), corrupt=tokens(2), edges=edges).logits
    assert found is not None
    assert found.dtype == dtype
    plain = full.trace(tokens(1)).logits
    assert plain is not None
    assert (found.float() - expected).norm() < 0.2 * (plain - expected).norm()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("architecture", EXPERTS)
def test_experts_in_half_precision(architecture: str, seed: int) -> None:
    """Sixteen layers: two passes that differ by rounding choose other experts in the later ones."""
    torch.manual_seed(seed)
    config = EXPERTS[architecture](
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
        intermediate_size=64,
        vocab_size=200,
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    own = bridged(model.to(torch.bfloat16), architecture)
    wrapped = ct.wrap(own)
    with torch.no_grad():
        expected = own(tokens(1))
    assert torch.equal(wrapped.trace(tokens(1)).logits, expected)

    def reads_elsewhere(_module: Any, args: tuple[Tensor], output: Any) -> Any:
        return output * (1 + 0.1 * torch.sigmoid(streams[0]))

    streams: list[Tensor] = []
    own.blocks[3].hook_in.register_forward_hook(lambda *seen: streams.insert(0, seen[2]))
    own.blocks[3].mlp.original_component.register_forward_hook(reads_elsewhere)
    with pytest.raises(ct.AnatomyError, match="what MLP 3 writes when all that it reads is replay"):
        ct.wrap(own)


class Adapted(nn.Module):
    """A linear layer with an adapter beside it, as LoRA (Hu et al. 2021) has it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(0.3 * torch.randn(base.in_features, 2, generator=generator))
        self.b = nn.Parameter(0.3 * torch.randn(2, base.out_features, generator=generator))

    @property
    def weight(self) -> Tensor:
        """The layer's own, as peft shows it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.a @ self.b

    def in_one(self) -> nn.Module:
        """What an adapted layer is once the adapter is in the weight."""
        with torch.no_grad():
            self.base_layer.weight += (self.a @ self.b).T
        return self.base_layer


class Packed(nn.Module):
    """A linear layer of 8-bit weights, unpacked in each pass."""

    def __init__(self, base: nn.Module, *, rounds_input: bool = False) -> None:
        super().__init__()
        self.scale = base.weight.detach().abs().max() / 127  # pyright: ignore[reportCallIssue]
        packed = (base.weight.detach() / self.scale).round().to(torch.int8)  # pyright: ignore[reportCallIssue]
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias, self.rounds_input = base.bias, rounds_input

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds_input:
            size = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
            x = (x / size).round() * size
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    def in_one(self) -> nn.Module:
        """A plain layer of the weights as they are unpacked."""
        out_features, in_features = self.weight.shape
        plain = nn.Linear(in_features, out_features, bias=self.bias is not None)
        with torch.no_grad():
            plain.weight.copy_(self.weight * self.scale)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain


def replaced(model: Any, letters: str, make: Callable[[Any], nn.Module]) -> Any:
    """The model with other modules for some of its attention's projections."""
    for layer in model.model.layers:
        for letter in letters:
            name = f"{letter}_proj"
            setattr(layer.self_attn, name, make(getattr(layer.self_attn, name)))
    return model


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma2ForCausalLM"]
)
@pytest.mark.parametrize("kind", [Adapted, Packed])
def test_projections_that_do_not_show_their_weights(
    architecture: str, kind: Callable[[Any], Any]
) -> None:
    """Against plain Hugging Face of the merged or unpacked weights, biases (Qwen 2) and all."""
    model = ct.wrap(bridged(replaced(hugging_face(architecture), "qkvo", kind), architecture))
    plain = replaced(hugging_face(architecture), "qkvo", lambda base: kind(base).in_one())
    second = FamilyOracle(plain, architecture, shape_of(architecture, plain.config, False))
    asks = second.shape.asks((1.0, 0.5, -0.3), n=30, seed=3)
    corrupt = second.run(tokens(2))
    expected = second.run(tokens(1), corrupt.wrote, asks)
    trace = model.trace(tokens(1), corrupt=tokens(2), masks=second.shape.prune_scores(asks))
    assert_close(trace.logits, expected.logits, **CLOSE)
    for name, wrote in expected.wrote.items():
        assert_close(trace.current[name], wrote, **CLOSE)
    assert trace.reconstruction_error() < 1e-5


@pytest.mark.parametrize("kind", [Adapted, Packed])
def test_they_are_traced_in_bfloat16(kind: Callable[[Any], Any]) -> None:
    own = replaced(hugging_face("LlamaForCausalLM").to(torch.bfloat16), "qkvo", kind)
    model = ct.wrap(bridged(own.to(torch.bfloat16), "LlamaForCausalLM"))
    assert model.trace(tokens(1)).reconstruction_error() < 2e-2


def test_offloaded_weights() -> None:
    """accelerate keeps them elsewhere and brings them for each pass of a module."""
    accelerate = pytest.importorskip("accelerate")
    own = bridge("LlamaForCausalLM")
    edges = ["A0.1->A1.2.Q", "MLP 0->A1.0.V", "A1.3->Resid End"]
    expected = ct.wrap(own).trace(tokens(1), corrupt=tokens(2), edges=edges).logits
    accelerate.cpu_offload(own.original_model, execution_device="cpu")
    assert {one.device.type for one in own.parameters()} >= {"meta"}
    trace = ct.wrap(own).trace(tokens(1), corrupt=tokens(2), edges=edges)
    assert_close(trace.logits, expected, **CLOSE)


def test_weights_that_round_what_they_read_are_refused_by_name() -> None:
    own = replaced(
        hugging_face("LlamaForCausalLM"), "q", lambda one: Packed(one, rounds_input=True)
    )
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(bridged(own, "LlamaForCausalLM"))
    assert "what A0.0.Q … A0.3.Q computes" in str(caught.value)
    assert str(caught.value).endswith(
        "The weights of 'blocks.0.self_attn.q_proj' (Packed) are quantised: those that only pack their "
        "weights are traced, those that round what they read as well cannot be. Load the model in "
        "bfloat16, or dequantise it."
    )


def test_an_adapter_that_the_bridge_leaves_out_is_refused() -> None:
    """GPT-NeoX has one matrix of queries, keys and values, which the bridge splits."""
    own = hugging_face("GPTNeoXForCausalLM")
    with torch.no_grad():
        plain = own(tokens(1)).logits
    for layer in own.gpt_neox.layers:
        layer.attention.query_key_value = Adapted(layer.attention.query_key_value)
    with torch.no_grad():
        adapted = own(tokens(1)).logits
    both = bridged(own, "GPTNeoXForCausalLM")
    with torch.no_grad():
        assert_close(both(tokens(1)), plain, **CLOSE)
    assert (plain - adapted).abs().max() > 0.1
    with pytest.raises(
        ct.AnatomyError, match=r"computes layer 0 without the adapter .*merge_and_un"
    ):
        ct.wrap(both)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_a_plain_hugging_face_model_is_told_how_to_be_wrapped(architecture: str) -> None:
    """What the error says is run as it stands."""
    model = hugging_face(architecture)
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model)
    said = re.fullmatch(
        rf"This {architecture} is a model of Hugging Face's transformers, which has no hook points\. "
        r"Bridge it first: (from \S+ import \w+); wrap\((.+)\)\.",
        str(caught.value),
    )
    assert said is not None, str(caught.value)
    with torch.no_grad():
        expected = model(tokens(1)).logits
    names: dict[str, Any] = {"model": model, "tokenizer": None}
    exec(said[1], names)
    trace = ct.wrap(eval(said[2], names)).trace(tokens(1))
    assert_close(trace.logits, expected, **CLOSE)


_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": N_HEADS,
    "hidden_size": D_MODEL,
    "intermediate_size": 20,
}
_TEXT: dict[str, Any] = {**_SIZES, "vocab_size": 50, "num_key_value_heads": 2, "pad_token_id": 0}
NO_DECODERS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "no attention": (
        "MambaForCausalLM",
        lambda: transformers.MambaConfig(
            num_hidden_layers=2, hidden_size=D_MODEL, vocab_size=50, state_size=4
        ),
        "has no attention",
    ),
    "an encoder and a decoder": (
        "BartForConditionalGeneration",
        lambda: transformers.BartConfig(
            vocab_size=50,
            d_model=D_MODEL,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=N_HEADS,
            decoder_attention_heads=N_HEADS,
        ),
        "is not built as decoder models are",
    ),
    "sound": (
        "ASTForAudioClassification",
        lambda: transformers.ASTConfig(**_SIZES, num_mel_bins=16, max_length=32),
        "the pass that checks its anatomy, on example tokens, failed with IndexError: ",
    ),
    "images": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**_SIZES, image_size=16, patch_size=8),
        "the pass that checks its anatomy, on example tokens, failed with ValueError: ",
    ),
    "a norm that the bridge misses": (
        "OPTForCausalLM",
        lambda: transformers.OPTConfig(
            **_TEXT, ffn_dim=20, word_embed_proj_dim=D_MODEL, _remove_final_layer_norm=True
        ),
        "failed with RuntimeError: Original component not set for",
    ),
    "queries with a gate": (
        "Qwen3NextForCausalLM",
        lambda: transformers.Qwen3NextConfig(
            **_TEXT,
            head_dim=D_HEAD,
            layer_types=["full_attention"] * 2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
        ),
        r"PerLayerGeometryError: Cannot split|is \[1, 8, 4, 4\] \(batch, seq, heads, width\), but",
    ),
    "norms after the stream": (
        "BertForMaskedLM",
        lambda: transformers.BertConfig(**_SIZES, vocab_size=50),
        "does not reproduce it",
    ),
}


@pytest.mark.parametrize("what", NO_DECODERS)
def test_no_decoder_ends_in_a_foreign_error(what: str) -> None:
    architecture, config, reason = NO_DECODERS[what]
    own = bridge(architecture, config())
    with suppress(
        Exception
    ):  # bridges put hooks of their own on in a first pass, also a failing one
        own(tokens(0))
    before = footprint(own)
    with pytest.raises(ct.AnatomyError, match=reason):
        ct.wrap(own)
    assert footprint(own) == before
