"""The anatomy of TransformerLens models: HookedTransformer (2.16 to 3.x), TransformerBridge (3.x, 4.x).

The two name their hook points and weights alike; they differ in how a norm is computed without
firing its hook points, and in the layout of the raw tensors, which the core reshapes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from circuit_trace.anatomy import (
    Anatomy,
    DestSite,
    HeadsPoint,
    HeadTensor,
    Point,
    PostNorm,
    Reader,
    SourceSite,
    Unembed,
)
from circuit_trace.errors import AnatomyError, InputError
from circuit_trace.graph import Reads, Stream, Writes

from .obstacles import is_adapter, not_bridged, obstacles
from .projections import Projection

EXAMPLE_TOKENS = 8
"""Length of the prompt that an anatomy is verified with: longer than any off-by-one."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio, modulo 1, are spread evenly however many there are."""

Norm = Callable[[Tensor], Tensor]


def anatomy(model: nn.Module, *, separate_qkv: bool = True) -> Anatomy | None:
    """Return the anatomy of a HookedTransformer or TransformerBridge, None for anything else.

    >>> import circuit_trace as ct
    >>> found = anatomy(ct.load_model("bundled"))
    >>> [site.names[0] for site in found.sources]
    ['Resid Start', 'A0.0', 'MLP 0', 'A1.0', 'MLP 1']

    Raises:
        AnatomyError: One of the two, but not built of decoder blocks that this file knows; or a
            model that becomes one of the two when it is bridged, merged or not compiled.
    """
    for class_name, norm in (
        ("HookedTransformer", _hooked_norm),
        ("TransformerBridge", _bridge_norm),
    ):
        if is_a(model, class_name):
            try:
                return _Builder(model, norm, separate_qkv).build()
            except (AttributeError, LookupError, RuntimeError, ValueError) as error:
                reason = (
                    f"This {class_name} is not built as decoder models are (blocks of attention and "
                    f"MLP between one embedding and one unembedding), so it cannot be traced: {error}"
                )
                raise AnatomyError(" ".join((reason, *obstacles(model)))) from error
    bridging = not_bridged(model)
    if bridging is not None:
        raise AnatomyError(bridging)
    return None


def is_a(model: nn.Module, class_name: str) -> bool:
    """Whether the model is of that TransformerLens class, without importing TransformerLens."""
    return any(
        base.__name__ == class_name and base.__module__.startswith("transformer_lens")
        for base in type(model).__mro__
    )


def _hooked_norm(norm: Any, x: Tensor) -> Tensor:
    """What HookedTransformer's LayerNorm, LayerNormPre, RMSNorm, RMSNormPre or Identity computes.

    The same operations as their `forward`, less the two hook points inside; in full precision in
    one step, where only the order of additions differs.
    """
    kind = type(norm).__name__
    if isinstance(norm, nn.Identity):
        return x
    dtype = norm.cfg.dtype
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    if dtype in (torch.float32, torch.float64) and x.dtype == dtype:
        if kind.startswith("LayerNorm"):
            return layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
        normed = rms_norm(x, x.shape[-1:], weight, norm.eps)
        return normed if bias is None else normed + bias
    wide = x if dtype in (torch.float32, torch.float64) else x.float()
    if kind.startswith("LayerNorm"):
        wide = wide - wide.mean(-1, keepdim=True)
    scale = (wide.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    normed = (wide / scale).to(dtype)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _bridge_norm(norm: Any, x: Tensor) -> Tensor:
    """What a bridge's norm computes: the module it wraps, which has no hook points."""
    return norm.original_component(x)


@dataclass(frozen=True)
class _Builder:
    """Reads a model's blocks into source and destination sites."""

    model: Any
    norm: Callable[[Any, Tensor], Tensor]
    separate_qkv: bool

    def build(self) -> Anatomy:
        cfg = self.model.cfg
        blocks = self.model.blocks
        hooks: dict[str, nn.Module] = dict(self.model.hook_dict)
        n_kv_heads, parallel = self._n_kv_heads, bool(cfg.parallel_attn_mlp)
        stream = Stream(cfg.n_heads, n_kv_heads, parallel, self.separate_qkv)
        (start,) = stream.sources
        sources = [_source(start, self._hook(hooks, "blocks.0.hook_resid_pre"))]
        dests: list[DestSite] = []
        for layer, block in enumerate(blocks):
            if not hasattr(block, "attn"):
                raise AnatomyError(
                    f"Block {layer} of this {type(self.model).__name__} has no attention ('attn'); "
                    "only decoder blocks of attention and MLPs can be traced."
                )
            inputs, heads = stream.add_attention()
            dests += self._attention_inputs(hooks, block, layer, inputs)
            sources.append(self._attention_output(hooks, block, layer, heads))
            if hasattr(block, "mlp"):
                into, out = stream.add_mlp()
                dests.append(self._mlp_input(hooks, block, layer, into))
                sources.append(self._mlp_output(hooks, block, layer, out))
        ended = stream.end()
        end = self._hook(hooks, ended.module_name)
        dests.append(_dest(ended, end, (Reader(end),)))
        return Anatomy(
            sources=tuple(sources),
            dests=tuple(dests),
            example=partial(_example, self.model),
            logits=Point(self.model.unembed),
            tokens=Point(self.model.embed, "input"),
            finish_logits=self._finish_logits,
            to_tokens=partial(_to_tokens, self.model),
            to_strings=_strings_of(getattr(self.model, "tokenizer", None)),
            unembed=self._unembed(),
            cfg=cfg,
            caveats=obstacles(self.model),
            # HookedTransformer's unembedding copies W_U in each pass.
            without_logits={"return_type": None} if self.norm is _hooked_norm else {},
            pad_token=_pad_token(self.model),
            settings=partial(_settings, self.model),
        )

    @cached_property
    def _finish_logits(self) -> Callable[[Tensor], Tensor]:
        """Holds numbers, not the model."""
        return partial(_finish_logits, *_after_unembedding(self.model))

    def _unembed(self) -> Unembed:
        """The final norm and the unembedding; holds these modules, not the model."""
        unembed, final = self.model.unembed, getattr(self.model, "ln_final", None)
        return Unembed(
            norm=partial(self.norm, final) if final is not None else lambda stream: stream,
            weight=lambda: unembed.W_U,
            bias=lambda: getattr(unembed, "b_U", None),
            finish=self._finish_logits,
            to_ids=_ids_of(getattr(self.model, "tokenizer", None)),
        )

    def _hook(self, hooks: dict[str, nn.Module], name: str) -> Point:
        """The hook point of that name, or what was put in its place, such as a sparse autoencoder."""
        if name in hooks:
            return Point(hooks[name])
        place = _part(self.model, name)
        if not isinstance(place, nn.Module):
            raise AnatomyError(
                f"This {type(self.model).__name__} has no hook point {name!r}, which every decoder "
                "model that can be traced has."
            )
        return Point(place)

    def _attention_output(
        self, hooks: dict[str, nn.Module], block: Any, layer: int, heads: Writes
    ) -> SourceSite:
        projection = Projection(block.attn, "O", self.model.cfg.n_heads, self.model.cfg)
        return _source(
            heads,
            self._hook(hooks, f"blocks.{layer}.attn.hook_z"),
            weight=projection.weight,
            bias=projection.bias,
            norm=self._norm_after_attention(block),
            scale=self._residual_scale,
            total=self._total(block.attn),
            attention=self._attention(hooks, layer),
        )

    def _total(self, attn: Any) -> Point | None:
        """What a bridge's output projection computes, before hooks see it. HookedTransformer has no
        module for it that could be another one than its weights tell."""
        shown = getattr(getattr(attn, "o", None), "hook_out", None)
        return Point(shown, "input") if isinstance(shown, nn.Module) else None

    def _attention(self, hooks: dict[str, nn.Module], layer: int) -> dict[HeadTensor, HeadsPoint]:
        """Where a layer's pattern, queries, keys and values pass, of those points that it has.

        Some bridges have points for rotated queries and keys that nothing passes (GPT-NeoX, Phi-3).
        """
        n_q, n_kv = self.model.cfg.n_heads, self._n_kv_heads
        is_bridge = self.norm is _bridge_norm  # its rotated tensors are Hugging Face's
        layouts: dict[HeadTensor, tuple[int, bool]] = {
            "pattern": (n_q, True),
            "q": (n_q, False),
            "k": (n_kv, False),
            "v": (n_kv, False),
            "rot_q": (n_q, is_bridge),
            "rot_k": (n_kv, is_bridge),
        }
        return {
            what: HeadsPoint(Point(hooks[name]), *layout)
            for what, layout in layouts.items()
            if (name := f"blocks.{layer}.attn.hook_{what}") in hooks
        }

    @property
    def _n_kv_heads(self) -> int:
        """How many keys and values pass: in an ungrouped model one for each query head."""
        cfg = self.model.cfg
        shared = getattr(cfg, "n_key_value_heads", None)
        return cfg.n_heads if self._is_ungrouped or not shared else shared

    @property
    def _is_ungrouped(self) -> bool:
        """A setting of HookedTransformer's; a bridge has it too, but does not heed it."""
        is_hooked = self.norm is _hooked_norm
        return is_hooked and getattr(self.model.cfg, "ungroup_grouped_query_attention", False)

    def _mlp_output(
        self, hooks: dict[str, nn.Module], block: Any, layer: int, mlp: Writes
    ) -> SourceSite:
        """What the MLP adds: `hook_mlp_out` lies behind a norm after it, but where the stream takes
        a multiple of it (Granite) only in some versions, so there the MLP's own output is scaled."""
        is_scaled = getattr(self.model.cfg, "residual_multiplier", None) is not None
        out = Point(block.mlp) if is_scaled else self._hook(hooks, f"blocks.{layer}.hook_mlp_out")
        return _source(mlp, out, scale=self._residual_scale)

    @property
    def _residual_scale(self) -> float:
        return float(getattr(self.model.cfg, "residual_multiplier", None) or 1)

    def _attention_inputs(
        self, hooks: dict[str, nn.Module], block: Any, layer: int, inputs: Sequence[Reads]
    ) -> list[DestSite]:
        cfg = self.model.cfg
        norm = self._norm_before_attention(block)
        n_kv_heads = self._n_kv_heads
        readers: list[Reader] = []
        for letter in "QKV":
            n_heads = cfg.n_heads if letter == "Q" else n_kv_heads
            projection = Projection(block.attn, letter, n_heads, cfg, not self._is_ungrouped)
            point = self._hook(hooks, f"blocks.{layer}.attn.hook_{letter.lower()}")
            readers.append(Reader(point, norm, projection.weight, projection.bias))
        _check_no_adapter_is_lost(block, layer)
        stream = self._hook(hooks, f"blocks.{layer}.hook_resid_pre")
        if self.separate_qkv:
            return [
                _dest(one, stream, (reader,)) for one, reader in zip(inputs, readers, strict=True)
            ]
        if n_kv_heads != cfg.n_heads:
            raise AnatomyError(
                f"separate_qkv=False needs one key-value head per query head; this model has "
                f"{n_kv_heads} for {cfg.n_heads}. Wrap it with separate_qkv=True."
            )
        (together,) = inputs
        return [_dest(together, stream, tuple(readers))]

    def _norm_before_attention(self, block: Any) -> Norm:
        """The block's first norm, whichever module it is when called, if it has one."""
        if not _normalises_before(block):
            return lambda x: x
        return lambda x: self.norm(block.ln1, x)

    def _norm_after_attention(self, block: Any) -> PostNorm | None:
        """The norm between attention and the stream: `ln1_post` (Gemma 2, 3), or `ln1` (OLMo 2)."""
        name = "ln1" if _normalises_after(block) else "ln1_post"
        if not hasattr(block, name):
            return None
        norm = getattr(block, name)
        return PostNorm(
            Point(norm, "input"), Point(norm), lambda x: self.norm(getattr(block, name), x)
        )

    def _mlp_input(
        self, hooks: dict[str, nn.Module], block: Any, layer: int, into: Reads
    ) -> DestSite:
        if not _normalises_before(block):
            stream = Point(block.mlp, "input")  # it reads the stream as it is
            reader = Reader(stream)
        elif hasattr(block, "ln2"):
            stream = Point(block.ln2, "input")
            reader = Reader(stream)
        else:  # the MLP reads what ln1 made for attention, as in GPT-J
            stream = self._hook(hooks, f"blocks.{layer}.hook_resid_pre")
            reader = Reader(Point(block.mlp, "input"), self._norm_before_attention(block))
        return _dest(into, stream, (reader,))


def _source(writes: Writes, point: Point, **more: Any) -> SourceSite:
    """Where the nodes of a graph write in the model."""
    return SourceSite(writes.names, writes.kind, writes.depth, point, writes.layer, **more)


def _dest(reads: Reads, stream: Point, readers: tuple[Reader, ...]) -> DestSite:
    """Where the nodes of a graph read in the model."""
    return DestSite(**asdict(reads), stream=stream, readers=readers)


def _normalises_before(block: Any) -> bool:
    """Whether `ln1` stands before attention; then the MLP has a norm before it as well."""
    return hasattr(block, "ln1") and not _normalises_after(block)


def _normalises_after(block: Any) -> bool:
    """Whether `ln1` and `ln2` stand after attention and MLP, as TransformerLens has it for OLMo 2.

    A bridge tells by the name of what it wraps, HookedTransformer by the name of the architecture;
    the arithmetic is checked when the model is wrapped.
    """
    if not hasattr(block, "ln1"):
        return False
    if hasattr(block.ln1, "original_component"):
        return str(block.ln1.name).startswith("post_attention")
    architectures = getattr(sys.modules[type(block).__module__], "POST_NORM_ARCHITECTURES", ())
    return getattr(block.cfg, "original_architecture", None) in architectures


def _part(place: Any, path: str) -> Any:
    """What stands at a path below a module, None if nothing does; names may be a bridge's aliases."""
    for name in path.split("."):
        aliases = getattr(place, "hook_aliases", {}).get(name, ())
        aliases = (aliases,) if isinstance(aliases, str) else aliases
        behind = (found for alias in aliases if (found := _part(place, alias)) is not None)
        place = next(behind, None) or getattr(place, name, None)
    return place


def _check_no_adapter_is_lost(block: Any, layer: int) -> None:
    """A bridge splits one matrix that makes several things by copying its weights alone."""
    joint = [_part(block, "attn.qkv.original_component")]
    if type(getattr(block, "mlp", None)).__name__.startswith("JointGateUp"):
        joint.append(_part(block, "mlp.original_component.gate_up_proj"))
    for module in joint:
        if isinstance(module, nn.Module) and is_adapter(module):
            raise AnatomyError(
                f"TransformerBridge computes layer {layer} without the adapter that stands there "
                f"({type(module).__module__}.{type(module).__name__}): it splits the weights under "
                "it. Merge the adapter into them before the model is bridged, with "
                "model.merge_and_unload()."
            )


def _example(model: Any) -> Tensor:
    """Token ids from all over the vocabulary: the first of them are often special."""
    devices = (one.device for one in model.parameters() if one.device.type != "meta")
    length = min(EXAMPLE_TOKENS, int(getattr(model.cfg, "n_ctx", None) or EXAMPLE_TOKENS))
    parts = torch.arange(1, length + 1, dtype=torch.float64) * GOLDEN % 1
    ids = (parts * model.cfg.d_vocab).long()
    return ids[None].to(next(devices, "cpu"))


def _settings(model: Any) -> tuple[Any, ...]:
    """The numbers that the anatomy takes from the model's settings, which may be changed later."""
    return (getattr(model.cfg, "residual_multiplier", None), *_after_unembedding(model))


def _after_unembedding(model: Any) -> tuple[float, float | None]:
    """What some families do to logits at last: a factor (`logit_scale` of Cohere, `logits_scaling` of
    Granite) and a soft cap (Gemma 2).

    Where TransformerLens has folded the factor into W_U, only the model that a bridge wraps tells.
    """
    cfg, wrapped = model.cfg, getattr(model, "original_model", None)
    scale = getattr(wrapped, "logit_scale", getattr(cfg, "logit_scale", None))
    factor = (scale or 1) / (getattr(cfg, "logits_scaling", None) or 1)
    return float(factor), getattr(cfg, "output_logits_soft_cap", None)


def _finish_logits(factor: float, cap: float | None, logits: Tensor) -> Tensor:
    """`factor · logits`, or `cap · tanh(factor · logits / cap)`."""
    logits = logits if factor == 1 else logits * factor
    return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits


def _to_tokens(model: Any, text: str | list[str]) -> Tensor:
    if getattr(model, "tokenizer", None) is None:
        raise InputError(
            "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
        )
    return model.to_tokens(text)


def _pad_token(model: Any) -> int:
    """The tokenizer's padding, if the model has an embedding for it."""
    found = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    return found if isinstance(found, int) and 0 <= found < model.cfg.d_vocab else 0


def _ids_of(tokenizer: Any) -> Callable[[str], list[int]] | None:
    return None if tokenizer is None else partial(_encode, tokenizer)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _strings_of(tokenizer: Any) -> Callable[[Tensor], list[str]] | None:
    """Decode a row of tokens one by one; holds the tokenizer, not the model."""
    if tokenizer is None:
        return None

    return partial(_decode, tokenizer)


def _decode(tokenizer: Any, row: Tensor) -> list[str]:
    return [tokenizer.decode([token]) for token in row.tolist()]
