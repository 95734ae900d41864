"""Every family of decoder models: a small random one of each, from its Hugging Face configuration.

Nothing is downloaded. All weights are perturbed, biases and norm weights too, so that a forgotten
term shows. Nothing here needs HookedTransformer, and only `bridge` a TransformerLens that has one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers

N_LAYERS, N_HEADS, D_HEAD, D_MLP, D_VOCAB, N_CTX = 2, 4, 4, 20, 23, 16
N_KV_HEADS = 2
D_MODEL = N_HEADS * D_HEAD
"""What Hugging Face asks of most families."""
SPREAD = 0.3
"""Standard deviation of what is added to every weight: attention is far from uniform with it."""

_SIZES: dict[str, Any] = {
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT_SIZES: dict[str, Any] = {
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_embd": D_MODEL,
    "n_inner": D_MLP,
    "vocab_size": D_VOCAB,
    "n_positions": N_CTX,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": N_KV_HEADS}
_HEADED: dict[str, Any] = {**_GROUPED, "head_dim": D_HEAD}
_BLOOM_SIZES: dict[str, Any] = {
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "hidden_size": D_MODEL,
    "vocab_size": D_VOCAB,
}
_OPT_SIZES: dict[str, Any] = {**_SIZES, "ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL}

CONFIGS: dict[str, Callable[[], Any]] = {
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(**_GPT_SIZES),
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(**_GROUPED),
    "MistralForCausalLM": lambda: transformers.MistralConfig(**_GROUPED),
    "Qwen2ForCausalLM": lambda: transformers.Qwen2Config(**_GROUPED),
    "Qwen3ForCausalLM": lambda: transformers.Qwen3Config(**_HEADED),
    "GPTNeoXForCausalLM": lambda: transformers.GPTNeoXConfig(**_SIZES),
    "GPTJForCausalLM": lambda: transformers.GPTJConfig(**_GPT_SIZES, rotary_dim=2),
    "Gemma2ForCausalLM": lambda: transformers.Gemma2Config(**_HEADED, sliding_window=4),
    "Gemma3ForCausalLM": lambda: transformers.Gemma3TextConfig(**_HEADED, sliding_window=4),
    "Olmo2ForCausalLM": lambda: transformers.Olmo2Config(**_GROUPED, attention_bias=True),
    "Phi3ForCausalLM": lambda: transformers.Phi3Config(**_GROUPED),
    "MixtralForCausalLM": lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=3),
    "OPTForCausalLM": lambda: transformers.OPTConfig(**_OPT_SIZES),
    "BloomForCausalLM": lambda: transformers.BloomConfig(**_BLOOM_SIZES),
    "GraniteForCausalLM": lambda: transformers.GraniteConfig(
        **_GROUPED, residual_multiplier=0.4, embedding_multiplier=2.0, logits_scaling=3.0
    ),
}
"""The architectures that must be exact, by the names Hugging Face gives them."""

OPENAI_GPT = transformers.OpenAIGPTConfig(
    n_layer=N_LAYERS, n_head=N_HEADS, n_embd=D_MODEL, vocab_size=D_VOCAB, n_positions=N_CTX
)
"""The first GPT normalises the stream itself, after each addition."""
GRANITE_PLAIN = transformers.GraniteConfig(**_GROUPED)
T5 = transformers.T5Config(
    d_model=D_MODEL, d_kv=D_HEAD, d_ff=D_MLP, num_layers=1, num_heads=N_HEADS, vocab_size=D_VOCAB
)
COHERE = transformers.CohereConfig(**_GROUPED)
"""Scales its logits. Its bridge computes other logits than Hugging Face (40 % apart, 3.9 and 4.3),
so it has no place among the families compared with Hugging Face."""

PARALLEL = ("GPTNeoXForCausalLM", "GPTJForCausalLM")
"""Attention and MLP of a block read the same stream in these."""
NOT_ROTATED = ("GPT2LMHeadModel", "OPTForCausalLM", "BloomForCausalLM")
"""These have no rotary embeddings."""
ROTATED_UNSEEN = ("GPTNeoXForCausalLM", "GPTJForCausalLM", "Phi3ForCausalLM")
"""Bridges of these do not show rotated queries and keys."""


def perturbed(model: Any, spread: float = SPREAD) -> Any:
    """Add seeded noise to every weight, biases and norms too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((noise * spread).to(parameter.dtype))
    return model.eval()


def hugging_face(architecture: str, config: Any = None) -> Any:
    """A Hugging Face model from its configuration alone; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIGS[architecture]() if config is None else config
        config._attn_implementation = "eager"
        return perturbed(getattr(transformers, architecture)(config))


def bridge(architecture: str, config: Any = None) -> Any:
    """A TransformerBridge around a Hugging Face model."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = hugging_face(architecture, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(
            model, architecture=architecture, hf_config=model.config, tokenizer=None
        )


def tokens(seed: int, batch: int = 2, seq: int = 6) -> torch.Tensor:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, D_VOCAB, (batch, seq), generator=generator)
