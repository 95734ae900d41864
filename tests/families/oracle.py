"""A second opinion that knows neither circuit_trace nor TransformerLens: Hugging Face and hooks.

The same weights in a plain Hugging Face model; torch hooks on its own modules read what each source
wrote and edit what each destination reads. Where a family keeps its modules is written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.families.models import D_HEAD, N_HEADS, N_KV_HEADS
from tests.oracle import Ask, Shape


@dataclass(frozen=True)
class Names:
    """Paths of a family's modules; `norm_after` and `mlp_writes` are what the stream takes.

    `fused` says how one matrix holds queries, keys and values: "blocks" one after the other, or
    "heads", each head's three together.
    """

    layers: str = "model.layers"
    norm: str | None = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    norm_after: str | None = None
    mlp_reads: str = "post_attention_layernorm"
    mlp_writes: str = "mlp"
    fused: str | None = None
    mlp_shares_norm: bool = False


_POST = {
    "norm_after": "post_attention_layernorm",
    "mlp_writes": "post_feedforward_layernorm",
}
GEMMA = Names(**_POST, mlp_reads="pre_feedforward_layernorm")
NAMES: dict[str, Names] = {
    "GPT2LMHeadModel": Names(
        "transformer.h", "ln_1", ("attn.c_attn",), "attn.c_proj", None, "ln_2", "mlp", "blocks"
    ),
    "GPTNeoXForCausalLM": Names(
        layers="gpt_neox.layers",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        fused="heads",
    ),
    "GPTJForCausalLM": Names(
        layers="transformer.h",
        norm="ln_1",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out="attn.out_proj",
        mlp_reads="mlp",
        mlp_shares_norm=True,
    ),
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA,
    "Olmo2ForCausalLM": Names(**_POST, norm=None, mlp_reads="mlp"),
    "Phi3ForCausalLM": Names(qkv=("self_attn.qkv_proj",), fused="blocks"),
    "OPTForCausalLM": Names(
        layers="model.decoder.layers",
        norm="self_attn_layer_norm",
        out="self_attn.out_proj",
        mlp_reads="final_layer_norm",
        mlp_writes="fc2",
    ),
    "BloomForCausalLM": Names(
        layers="transformer.h",
        qkv=("self_attention.query_key_value",),
        out="self_attention.dense",
        mlp_writes="mlp.dense_4h_to_h",
        fused="heads",
    ),
}
"""Where a family differs from Llama."""


@dataclass(frozen=True)
class Pass:
    """What the oracle saw: logits, what each source wrote, each layer's attention patterns
    `[batch, head, query, key]`, and what each head's input projections made (`A1.2.Q`)."""

    logits: Tensor
    wrote: dict[str, Tensor]
    patterns: tuple[Tensor, ...]
    projected: dict[str, Tensor]


class FamilyOracle:
    """Patches a plain Hugging Face model."""

    def __init__(self, model: Any, architecture: str, shape: Shape) -> None:
        self.model = model
        self.names = NAMES.get(architecture, Names())
        self.shape = shape
        self.multiplier = getattr(model.config, "residual_multiplier", 1.0)
        self.layers = list(model.get_submodule(self.names.layers))
        self.offset = 1.0 if "Gemma" in architecture else 0.0

    def run(
        self, tokens: Tensor, patched: Mapping[str, Tensor] | None = None, asks: Sequence[Ask] = ()
    ) -> Pass:
        """Run the tokens with those edges patched from `patched`."""
        one = _Run(self, tokens.shape, patched or {}, asks)
        try:
            for layer, block in enumerate(self.layers):
                one.hook(layer, block)
            one.hook_end(self.layers[-1])
            with torch.no_grad():
                output = self.model(tokens, use_cache=False, output_attentions=True)
        finally:
            for handle in one.handles:
                handle.remove()
        assert list(one.wrote) == self.shape.sources
        assert one.edited == {ask.dest for ask in asks}
        return Pass(output.logits, one.wrote, output.attentions, one.projected)


class _Run:
    def __init__(
        self, oracle: FamilyOracle, size: Sequence[int], patched: Mapping, asks: Sequence[Ask]
    ) -> None:
        self.oracle, self.names, self.size = oracle, oracle.names, tuple(size)
        self.patched, self.asks = patched, asks
        self.wrote: dict[str, Tensor] = {}
        self.stream: dict[int, Tensor] = {}
        self.heads: dict[int, Tensor] = {}
        self.edited: set[str] = set()
        self.projected: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def change(self, dest: str) -> Tensor | None:
        """Σ mask · (patched − current) over the edges into a destination."""
        mine = [ask for ask in self.asks if ask.dest == dest]
        if not mine:
            return None
        self.edited.add(dest)
        total = torch.zeros_like(self.wrote["Resid Start"])
        for ask in mine:
            difference = ask.mask * (self.patched[ask.src] - self.wrote[ask.src])
            at = slice(None) if ask.seq_idx is None else ask.seq_idx
            total[:, at] += difference[:, at]
        return total

    def hook(self, layer: int, block: nn.Module) -> None:
        names = self.names
        self._before(block, lambda x: self._enter(layer, x))
        for place, path in enumerate(names.qkv):
            module = block.get_submodule(path)
            edit = self._edit_qkv(layer, block, module, place)
            self.handles.append(module.register_forward_hook(edit))
        out = block.get_submodule(names.out)
        self._before(out, lambda z: self._record_heads(layer, out, z))
        if names.norm_after is not None:
            norm = block.get_submodule(names.norm_after)
            self._before(norm, lambda x: self._normalise_heads(layer, norm, x))
        self._before(block.get_submodule(names.mlp_reads), self._edit_mlp(layer, block))
        writes = block.get_submodule(names.mlp_writes)
        self.handles.append(writes.register_forward_hook(self._record_mlp(layer)))

    def hook_end(self, block: nn.Module) -> None:
        def edit(_module: Any, _args: Any, output: Any) -> Any:
            change = self.change("Resid End")
            if change is None:
                return None
            if isinstance(output, tuple):
                return (output[0] + change, *output[1:])
            return output + change

        self.handles.append(block.register_forward_hook(edit))

    def _before(self, module: nn.Module, act: Callable[[Tensor], Tensor | None]) -> None:
        def hook(_module: Any, args: tuple, kwargs: dict) -> Any:
            if args:
                new = act(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            new = act(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _enter(self, layer: int, x: Tensor) -> None:
        self.stream[layer] = x
        if layer == 0:
            self.wrote["Resid Start"] = x.clone()

    def _edit_qkv(
        self, layer: int, block: nn.Module, module: Any, place: int
    ) -> Callable[[Any, Any, Tensor], Tensor]:
        norm = block.get_submodule(self.names.norm) if self.names.norm else nn.Identity()
        letters = "QKV" if self.names.fused else "QKV"[place]
        n_kv = self.oracle.shape.n_kv_heads

        def edit(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            for letter in letters:
                for head in range(N_HEADS if letter == "Q" else n_kv):
                    name, rows = f"A{layer}.{head}.{letter}", self._rows(letter, head, n_kv)
                    self.projected[name] = output[..., rows]  # a view: it shows an edit too
                    change = self.change(name)
                    if change is None:
                        continue
                    is_linear = isinstance(module, nn.Linear)
                    weight = module.weight[rows] if is_linear else module.weight[:, rows].T
                    bias = 0 if module.bias is None else module.bias[rows]
                    # Taken from this pass, so that the norm is not hooked a second time.
                    normed = norm.forward(self.stream[layer] + change)
                    output[..., rows] = normed @ weight.T + bias
            return output

        return edit

    def _rows(self, letter: str, head: int, n_kv: int) -> slice:
        if self.names.fused == "heads":
            start = (head * 3 + "QKV".index(letter)) * D_HEAD
        elif self.names.fused == "blocks":
            start = {"Q": 0, "K": N_HEADS, "V": N_HEADS + n_kv}[letter] * D_HEAD + head * D_HEAD
        else:
            start = head * D_HEAD
        return slice(start, start + D_HEAD)

    def _record_heads(self, layer: int, out: Any, z: Tensor) -> None:
        weight = out.weight.T if isinstance(out, nn.Linear) else out.weight
        for head in range(N_HEADS):
            rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
            written = z[..., rows] @ weight[rows] * self.oracle.multiplier
            self.wrote[f"A{layer}.{head}"] = written

    def _normalise_heads(self, layer: int, norm: Any, x: Tensor) -> None:
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        scale = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        for head in range(N_HEADS):
            name = f"A{layer}.{head}"
            self.wrote[name] = self.wrote[name] / scale * (norm.weight + self.oracle.offset)

    def _edit_mlp(self, layer: int, block: nn.Module) -> Callable[[Tensor], Tensor | None]:
        def edit(x: Tensor) -> Tensor | None:
            change = self.change(f"MLP {layer}")
            if change is None:
                return None
            if self.names.mlp_shares_norm:
                norm = block.get_submodule(self.names.norm or "")
                return norm.forward(self.stream[layer] + change)
            return x + change.reshape(x.shape)

        return edit

    def _record_mlp(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def record(_module: Any, _args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            tensor = tensor.reshape(*self.size, -1) * self.oracle.multiplier
            self.wrote[f"MLP {layer}"] = tensor.clone()

        return record


def shape_of(architecture: str, config: Any, parallel: bool, seq_len: int | None = None) -> Shape:
    """The numbers that fix the graph of a model of that architecture."""
    n_kv = getattr(config, "num_key_value_heads", None) or N_HEADS
    assert n_kv in (N_HEADS, N_KV_HEADS), architecture
    return Shape(config.num_hidden_layers, N_HEADS, n_kv, parallel=parallel, seq_len=seq_len)
