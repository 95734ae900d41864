"""Small random models of every kind in scope, and an independent twin of each for the oracle.

All weights are random and large, biases and norm weights too, so that a forgotten term shows. A
model is built anew from the same seed each time; `shared` keeps one per test session for tests that
leave it as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch

import circuit_trace as ct
from tests.families.models import (
    D_HEAD,
    D_MLP,
    D_MODEL,
    D_VOCAB,
    N_CTX,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    SPREAD,
    bridge,
    hugging_face,
    perturbed,
    tokens,
)
from tests.oracle import Oracle, Shape

TRANSFORMER_LENS = int(version("transformer-lens").split(".")[0])
HAS_HOOKED, HAS_BRIDGE = TRANSFORMER_LENS <= 3, TRANSFORMER_LENS >= 3
"""Which classes the installed TransformerLens has: 2 the older one, 3 both, 4 the newer."""

HOOKED_D_MODEL = 10
"""The HookedTransformers have a width of their own."""


@dataclass(frozen=True)
class Case:
    """A kind of model: how to build it, and a twin of the same weights that the oracle may edit."""

    build: Callable[[], Any]
    twin: Callable[[], Any]
    attn_only: bool = False
    parallel: bool = False
    n_kv_heads: int = N_HEADS


def hooked_config(**options: Any) -> Any:
    sizes: dict[str, Any] = {
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "d_head": D_HEAD,
        "d_model": HOOKED_D_MODEL,
        "d_mlp": D_MLP,
        "d_vocab": D_VOCAB,
        "n_ctx": N_CTX,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "seed": 0,
        "device": "cpu",
    }
    from transformer_lens import HookedTransformerConfig

    return HookedTransformerConfig(**{**sizes, **options})


def hooked(*, spread: float = SPREAD, **options: Any) -> Any:
    """A HookedTransformer with noise on every weight."""
    from transformer_lens import HookedTransformer

    return perturbed(HookedTransformer(hooked_config(**options)), spread)


def folded() -> Any:
    """A HookedTransformer whose norm weights were folded and whose writing weights were centred."""
    model = hooked()
    model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    assert model.cfg.normalization_type == "LNPre"
    return model


def ungrouped() -> Any:
    """Shared key-value heads that are shown once for each query head, as MIB's scripts set it."""
    model = hooked(n_key_value_heads=N_KV_HEADS)
    model.set_ungroup_grouped_query_attention(True)
    return model


def native(**options: Any) -> Any:
    """A bridge around TransformerLens' own small model."""
    from transformer_lens.model_bridge import TransformerBridge

    config = hooked_config(**options).to_dict()
    kept = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab", "n_ctx", "act_fn")
    sizes = {key: config[key] for key in (*kept, "normalization_type", "n_key_value_heads", "seed")}
    return perturbed(TransformerBridge.boot_native({**sizes, "d_model": D_MODEL}))


def hooked_twin_of_native(**options: Any) -> Any:
    """A HookedTransformer with a native bridge's weights, moved over by hand."""
    own = {
        name.replace("._original_component", ""): tensor
        for name, tensor in native(**options).original_model.state_dict().items()
    }
    twin = hooked(**options, d_model=D_MODEL)
    state = {
        "embed.W_E": own["tok_embed.weight"],
        "pos_embed.W_pos": own["pos.weight"],
        "unembed.W_U": own["head.weight"].T,
        "unembed.b_U": own["head.bias"],
    }
    _move_norm(state, "ln_final", own, "ln_out")
    grouped = twin.cfg.n_key_value_heads is not None
    for layer in range(N_LAYERS):
        here, there = f"blocks.{layer}.", f"layers.{layer}."
        for letter in "QKV":
            prefix = "_" if grouped and letter in "KV" else ""
            weight = own[f"{there}attn.{letter.lower()}.weight"]
            bias = own[f"{there}attn.{letter.lower()}.bias"]
            per_head = weight.view(-1, D_HEAD, D_MODEL).transpose(1, 2)
            state[f"{here}attn.{prefix}W_{letter}"] = per_head
            state[f"{here}attn.{prefix}b_{letter}"] = bias.view(-1, D_HEAD)
        state[f"{here}attn.W_O"] = own[f"{there}attn.o.weight"].T.reshape(N_HEADS, D_HEAD, D_MODEL)
        state[f"{here}attn.b_O"] = own[f"{there}attn.o.bias"]
        state[f"{here}mlp.W_in"] = own[f"{there}mlp.fc_in.weight"].T
        state[f"{here}mlp.b_in"] = own[f"{there}mlp.fc_in.bias"]
        state[f"{here}mlp.W_out"] = own[f"{there}mlp.fc_out.weight"].T
        state[f"{here}mlp.b_out"] = own[f"{there}mlp.fc_out.bias"]
        _move_norm(state, f"{here}ln1", own, f"{there}ln1")
        _move_norm(state, f"{here}ln2", own, f"{there}ln2")
    return _loaded(twin, state)


def _move_norm(state: dict, here: str, own: dict, there: str) -> None:
    state[f"{here}.w"] = own[f"{there}.weight"]
    if f"{there}.bias" in own:
        state[f"{here}.b"] = own[f"{there}.bias"]


def hooked_twin_of_gptj() -> Any:
    """A HookedTransformer with a GPT-J's weights, by TransformerLens' own conversion."""
    from transformer_lens.pretrained.weight_conversions.gptj import convert_gptj_weights

    twin = hooked(
        d_model=D_MODEL,
        act_fn="gelu_new",
        parallel_attn_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=2,
        rotary_adjacent_pairs=True,
    )
    return _loaded(twin, convert_gptj_weights(hugging_face("GPTJForCausalLM"), twin.cfg))


def _loaded(twin: Any, state: dict) -> Any:
    result = twin.load_state_dict(state, strict=False)
    parameters = {name for name, _ in twin.named_parameters()}
    assert not parameters & set(result.missing_keys), result.missing_keys
    assert not result.unexpected_keys, result.unexpected_keys
    return twin


def _hooked_case(**options: Any) -> Case:
    return Case(
        build=partial(hooked, **options),
        twin=partial(hooked, **options),
        attn_only=options.get("attn_only", False),
        parallel=options.get("parallel_attn_mlp", False),
        n_kv_heads=options.get("n_key_value_heads", N_HEADS),
    )


def _bridge_case(architecture: str, **facts: Any) -> Case:
    return Case(partial(bridge, architecture), partial(bridge, architecture), **facts)


_HOOKED: dict[str, Case] = {
    "hooked LN": _hooked_case(),
    "hooked LNPre": _hooked_case(normalization_type="LNPre"),
    "hooked RMS": _hooked_case(normalization_type="RMS"),
    "hooked RMSPre": _hooked_case(normalization_type="RMSPre"),
    "hooked no norm": _hooked_case(normalization_type=None, spread=0.15),
    "hooked folded": Case(folded, folded),
    "hooked parallel": _hooked_case(parallel_attn_mlp=True),
    "hooked attention-only": _hooked_case(attn_only=True),
    "hooked grouped": _hooked_case(n_key_value_heads=N_KV_HEADS),
    "hooked ungrouped": Case(ungrouped, ungrouped),
    "hooked rotary, gated MLP": _hooked_case(
        positional_embedding_type="rotary", rotary_dim=2, gated_mlp=True, act_fn="silu"
    ),
    "hooked norms after too": _hooked_case(
        normalization_type="RMS",
        use_normalization_before_and_after=True,
        n_key_value_heads=N_KV_HEADS,
        attn_scores_soft_cap=50.0,
        output_logits_soft_cap=30.0,
        use_attn_scale=False,
    ),
    "hooked norms after alone": _hooked_case(
        normalization_type="RMS",
        original_architecture="Olmo2ForCausalLM",
        positional_embedding_type="rotary",
        rotary_dim=D_HEAD,
        d_model=D_MODEL,
    ),
}
_BRIDGES: dict[str, Case] = {
    "bridge GPT-2": _bridge_case("GPT2LMHeadModel"),
    "bridge GPT-NeoX": _bridge_case("GPTNeoXForCausalLM", parallel=True),
    "bridge Llama": _bridge_case("LlamaForCausalLM", n_kv_heads=N_KV_HEADS),
}
_BRIDGES_AGAINST_HOOKED: dict[str, Case] = {
    "bridge GPT-J": Case(partial(bridge, "GPTJForCausalLM"), hooked_twin_of_gptj, parallel=True),
    "bridge native": Case(native, hooked_twin_of_native),
    "bridge native, grouped RMS": Case(
        partial(native, normalization_type="RMS", n_key_value_heads=N_KV_HEADS),
        partial(hooked_twin_of_native, normalization_type="RMS", n_key_value_heads=N_KV_HEADS),
        n_kv_heads=N_KV_HEADS,
    ),
}

CASES: dict[str, Case] = {
    **(_HOOKED if HAS_HOOKED else {}),
    **(_BRIDGES if HAS_BRIDGE else {}),
    **(_BRIDGES_AGAINST_HOOKED if HAS_HOOKED and HAS_BRIDGE else {}),
}
if TRANSFORMER_LENS == 2:  # it knows no OLMo 2
    del CASES["hooked norms after alone"]
"""Every kind of model that must be exact, of those that the installed TransformerLens has."""

TYPICAL = tuple(name for name in ("hooked LN", "bridge GPT-2", "bridge Llama") if name in CASES)
"""One of each way in which hooks and weights are laid out, for tests that need no more."""


TWO = TYPICAL[:2]
"""One of each class, for tests of hooks and contexts."""


@cache
def shared(name: str) -> Any:
    """The model of that name, one for all tests; they must leave it as it was.

    It has run before: bridges, and transformers under them, put hooks of their own on in a first pass.
    """
    model = CASES[name].build()
    with torch.no_grad():
        model(tokens(0))
        model.run_with_cache(tokens(0))
    return model


@cache
def wrapped(name: str, seq_len: int | None = None, separate_qkv: bool = True) -> ct.PatchableModel:
    """The shared model of that name, wrapped once for all tests."""
    return ct.wrap(shared(name), seq_len=seq_len, separate_qkv=separate_qkv)


def shape_of(name: str, seq_len: int | None = None, separate_qkv: bool = True) -> Shape:
    """The numbers that fix the graph of the model of that name."""
    case = CASES[name]
    return Shape(
        N_LAYERS, N_HEADS, case.n_kv_heads, case.attn_only, case.parallel, separate_qkv, seq_len
    )


@cache
def oracle(name: str, separate_qkv: bool = True) -> Oracle:
    """The second opinion on the model of that name."""
    return Oracle(CASES[name].twin(), shape_of(name, None, separate_qkv))


def copy_of(model: Any) -> Any:
    """A HookedTransformer of the same weights that shares nothing."""
    return copy.deepcopy(model)
