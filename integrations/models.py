"""Load models: the small trained one that ships with this package, or any that TransformerLens has.

`bundled` was trained by `examples/train_bundled_model.py` on indirect-object sentences. Its weights
lie in HookedTransformer's format, and become a HookedTransformer (TransformerLens 2.16 to 3.x) or a
TransformerBridge (3.x and 4.x) with the same logits.
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import einops
import torch
from safetensors.torch import load
from torch import Tensor, nn

from circuit_trace.errors import CircuitTraceError, InputError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    LensModel = HookedTransformer | TransformerBridge
else:
    LensModel = nn.Module  # which of the two classes exists depends on the installed version

BUNDLED = "bundled"
"""The name under which `load_model` knows the model that ships with this package."""

END_OF_TEXT = "<|endoftext|>"
"""The token that begins every prompt of the bundled model and fills up the short ones."""

UNKNOWN_WORD = "<|unknown|>"
"""The token that stands for every word outside the bundled model's vocabulary."""

ModelKind = Literal["hooked", "bridge"]

_BRIDGE_LAYOUTS = {
    "W_E": ("weight", "word model -> word model"),
    "W_pos": ("weight", "pos model -> pos model"),
    "W_Q": ("q.weight", "head model d_head -> (head d_head) model"),
    "W_K": ("k.weight", "head model d_head -> (head d_head) model"),
    "W_V": ("v.weight", "head model d_head -> (head d_head) model"),
    "W_O": ("o.weight", "head d_head model -> model (head d_head)"),
    "b_Q": ("q.bias", "head d_head -> (head d_head)"),
    "b_K": ("k.bias", "head d_head -> (head d_head)"),
    "b_V": ("v.bias", "head d_head -> (head d_head)"),
    "b_O": ("o.bias", "model -> model"),
    "W_in": ("in.weight", "model mlp -> mlp model"),
    "b_in": ("in.bias", "mlp -> mlp"),
    "W_out": ("out.weight", "mlp model -> model mlp"),
    "b_out": ("out.bias", "model -> model"),
    "W_U": ("weight", "model word -> word model"),
    "b_U": ("bias", "word -> word"),
    "w": ("weight", "model -> model"),
    "b": ("bias", "model -> model"),
}
"""How HookedTransformer ends a weight's name: how TransformerBridge does, and lays out the weight.

TransformerLens' own converter, `tl_checkpoint_conversion`, came with 4.x: this serves 3.x as well.
"""


def load_model(name: str, kind: ModelKind | None = None) -> LensModel:
    """Load the bundled model, or any other by the name that TransformerLens knows it by.

    >>> model = load_model("bundled")
    >>> model.cfg.n_layers
    2

    Args:
        name: "bundled", which needs no network, or a name such as "gpt2", fetched from the
            Hugging Face hub.
        kind: "hooked" for a HookedTransformer, "bridge" for a TransformerBridge; None takes the
            first that the installed TransformerLens has.

    Raises:
        InputError: TransformerLens has no model of this name or kind, or the hub cannot be reached.
    """
    if name == BUNDLED:
        return load_bundled_model(kind)
    kind = _checked_kind(kind)
    try:
        if kind == "hooked":
            from transformer_lens import HookedTransformer

            return HookedTransformer.from_pretrained(name)
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InputError(
            f"The model {name!r} could not be loaded: {reason}. Expected {BUNDLED!r}, which needs "
            "no network, or a name such as 'gpt2', which the Hugging Face hub is asked for."
        ) from error


def load_bundled_model(kind: ModelKind | None = None) -> LensModel:
    """Load the trained model and the tokenizer that ship with this package, on the CPU, offline.

    >>> model = load_bundled_model()
    >>> tokens = model.to_tokens("When Mary and John went to the store , John gave a drink to")
    >>> model.to_string(model(tokens)[0, -1].argmax())
    'Mary'

    Args:
        kind: "hooked" for a HookedTransformer, "bridge" for a TransformerBridge; None for the
            first of the two that the installed TransformerLens has.

    Raises:
        InputError: No such kind.
        CircuitTraceError: The installed TransformerLens cannot build that kind.
    """
    kind = _checked_kind(kind)
    config = json.loads(_data("config.json"))
    weights = load(_data("model.safetensors"))
    # Building a model draws its initial weights, which are then replaced: draw them aside, so
    # that the caller's random numbers stay what they were.
    with torch.random.fork_rng(devices=[]):
        build = _build_hooked if kind == "hooked" else _build_bridge
        return build(config, weights, _load_tokenizer()).eval()


def _checked_kind(kind: ModelKind | None) -> ModelKind:
    if kind not in (None, "hooked", "bridge"):
        raise InputError(f"kind must be 'hooked', 'bridge' or None, got {kind!r}")
    available = available_kinds()
    if kind is not None and kind not in available:
        raise CircuitTraceError(
            f"TransformerLens {version('transformer-lens')} cannot build the model as {kind!r}. Use "
            f"kind={available[0]!r}, or install transformer-lens>=3.9,<4, which has both kinds."
        )
    return kind or available[0]


def available_kinds() -> tuple[ModelKind, ...]:
    """Return the kinds of model that the installed TransformerLens can build, the preferred first.

    >>> load_bundled_model(available_kinds()[0]).cfg.n_heads
    4
    """
    kinds: list[ModelKind] = []
    try:
        from transformer_lens import HookedTransformer  # noqa: F401

        kinds.append("hooked")
    except ImportError:  # TransformerLens 4
        pass
    try:
        from transformer_lens.model_bridge import TransformerBridge

        if hasattr(TransformerBridge, "boot_native"):
            kinds.append("bridge")
    except ImportError:  # TransformerLens 2
        pass
    return tuple(kinds)


def _data(file_name: str) -> bytes:
    """Read a file of the bundled model."""
    return (files("circuit_trace.demo") / "data" / file_name).read_bytes()


def _load_tokenizer() -> PreTrainedTokenizerFast:
    """Load the word-level tokenizer in the form that TransformerLens expects."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_buffer(_data("tokenizer.json")),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN_WORD,
        # Without these two, TransformerLens asks the hub for a tokenizer that prepends BOS.
        name_or_path=BUNDLED,
        add_bos_token=True,
    )


def _build_hooked(
    config: dict[str, Any], weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast
) -> HookedTransformer:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with warnings.catch_warnings():
        # 3.x announces that 4.x has no HookedTransformer: there we build a bridge.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(
            HookedTransformerConfig(**config, model_name=BUNDLED, device="cpu", init_weights=False),
            tokenizer=tokenizer,
        )
    model.load_state_dict({**dict(model.named_buffers()), **weights})
    return model


def _build_bridge(
    config: dict[str, Any], weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast
) -> TransformerBridge:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(
        TransformerBridgeConfig(**config, device="cpu", init_weights=False),
        tokenizer=tokenizer,
        device="cpu",
        model_name=BUNDLED,
    )
    model.load_state_dict(_bridge_weights(weights))
    return model


def _bridge_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and rearrange weights from HookedTransformer's format to TransformerBridge's."""
    renamed = {}
    for name, value in weights.items():
        owner, _, last = name.rpartition(".")
        bridge_last, axes = _BRIDGE_LAYOUTS[last]
        renamed[f"{owner}.{bridge_last}"] = einops.rearrange(value, axes).contiguous()
    return renamed
