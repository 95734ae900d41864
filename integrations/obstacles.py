"""What stands in a model that may keep it from being traced, by name, and the way out.

Most of these can be traced at some places and not at others, which only the check tells. What is said
here is added to the error where it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from torch import nn


def obstacles(model: nn.Module) -> tuple[str, ...]:
    """A sentence about each kind of obstacle in the model, with the first place where it stands.

    >>> import circuit_trace as ct
    >>> obstacles(ct.load_model("bundled"))
    ()
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for is_one, sentence in KINDS:
            if sentence not in found and is_one(module):
                place = name.replace("._original_component", "")
                found[sentence] = sentence.format(name=place, kind=type(module).__name__)
    return tuple(found.values())


def is_adapter(module: nn.Module) -> bool:
    """Whether a layer of peft applies an adapter beside the weight that it shows."""
    return (
        "base_layer" in vars(module)["_modules"]
        and not getattr(module, "merged", False)
        and not getattr(module, "disable_adapters", False)
    )


def _is_spliced(module: nn.Module) -> bool:
    return any(base.__module__.startswith("sae_lens.") for base in type(module).__mro__) and (
        hasattr(module, "sae") or hasattr(module, "encode")
    )


def _is_quantised(module: nn.Module) -> bool:
    """Weights in integers, in a type of fewer than 16 bits, or packed in a tensor of another kind."""
    return any(
        not one.is_floating_point()
        or one.dtype.itemsize < 2
        or not type(one).__module__.startswith("torch.")
        for one in module.parameters(recurse=False)
    )


def _is_offloaded(module: nn.Module) -> bool:
    return any(one.device.type == "meta" for one in module.parameters(recurse=False))


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


KINDS: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (
        is_adapter,
        "An adapter that is not merged stands at {name!r} ({kind}): merge it into the weights before "
        "the model is bridged, with model.merge_and_unload().",
    ),
    (
        _is_spliced,
        "A sparse autoencoder stands at {name!r} ({kind}): where it replaces the residual stream, or "
        "what is computed from it, no sum of sources is left to patch. Take it out with reset_saes(), "
        "or let it add its error (use_error_term=True).",
    ),
    (
        _is_quantised,
        "The weights of {name!r} ({kind}) are quantised: those that only pack their weights are traced, "
        "those that round what they read as well cannot be. Load the model in bfloat16, or dequantise "
        "it.",
    ),
    (
        _is_offloaded,
        "The weights of {name!r} ({kind}) are offloaded (on the meta device): load the model into "
        "memory if they cannot be fetched.",
    ),
    (
        _is_compiled,
        "{name!r} ({kind}) is compiled by torch.compile, and a compiled pass does not run hooks that "
        "come later: wrap the model before it is compiled.",
    ),
)
"""How to tell each kind, and what to say of it."""


def not_bridged(model: nn.Module) -> str | None:
    """How to get from a model of another library to one that can be wrapped, None for the rest."""
    kinds = {base.__name__: base.__module__.partition(".")[0] for base in type(model).__mro__}
    if kinds.get("PeftModel") == "peft":
        return (
            "This is a PeftModel. Merge its adapter first, model = model.merge_and_unload(), then "
            "bridge the Hugging Face model that this returns and wrap the bridge."
        )
    if kinds.get("PreTrainedModel") == "transformers":
        return _bridge_it(model)
    return None


def _bridge_it(model: nn.Module) -> str:
    kind, name = type(model).__name__, getattr(model, "name_or_path", "")
    if int(version("transformer-lens").partition(".")[0]) < 3:
        how = f"HookedTransformer.from_pretrained({name or 'name'!r}, hf_model=model)"
        where = "transformer_lens"
    elif name:
        how = f"TransformerBridge.boot_transformers({name!r}, hf_model=model)"
        where = "transformer_lens.model_bridge"
    else:
        how = f"build_bridge_from_module(model, {kind!r}, hf_config=model.config, tokenizer=tokenizer)"
        where = "transformer_lens.model_bridge.sources"
    call = how.partition("(")[0].partition(".")[0]
    return (
        f"This {kind} is a model of Hugging Face's transformers, which has no hook points. Bridge it "
        f"first: from {where} import {call}; wrap({how})."
    )
