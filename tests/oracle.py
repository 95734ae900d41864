"""A second opinion: the same patch done with plain TransformerLens hooks, slowly and plainly.

TransformerLens can itself split what each head reads (`use_split_qkv_input`, `use_attn_in`), expose
what each head writes (`use_attn_result`) and what the MLP reads (`use_hook_mlp_in`). With those flags
on, `run_with_hooks` edits every destination's input: for each edge it adds mask · (patched − current),
`current` being what the source wrote in this very pass. Nothing of circuit_trace is used here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Ask(NamedTuple):
    """One edge to patch, by name, at one position or (None) at all of them."""

    src: str
    dest: str
    seq_idx: int | None
    mask: float

    @property
    def name(self) -> str:
        return f"{self.src}->{self.dest}"


@dataclass(frozen=True)
class Shape:
    """The numbers that fix a graph."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    attn_only: bool = False
    parallel: bool = False
    separate_qkv: bool = True
    seq_len: int | None = None

    def layer_sources(self, layer: int) -> list[str]:
        heads = [f"A{layer}.{head}" for head in range(self.n_heads)]
        return heads if self.attn_only else [*heads, f"MLP {layer}"]

    @property
    def sources(self) -> list[str]:
        """Resid Start, then each layer's heads and its MLP."""
        layers = (self.layer_sources(layer) for layer in range(self.n_layers))
        return ["Resid Start", *(name for names in layers for name in names)]

    def before(self, dest: str) -> list[str]:
        """The sources that a destination reads, in order."""
        if dest == "Resid End":
            return self.sources
        layer = int(dest.split()[1]) if dest.startswith("MLP") else int(dest[1:].split(".")[0])
        names = ["Resid Start", *(n for one in range(layer) for n in self.layer_sources(one))]
        if dest.startswith("MLP") and not self.parallel:
            names += self.layer_sources(layer)[:-1]
        return names

    @property
    def dests(self) -> list[str]:
        """Each layer's queries, keys and values (or heads), its MLP, and the end."""
        return [name for names in self.modules.values() for name in names]

    @property
    def modules(self) -> dict[str, list[str]]:
        """From each key of `PruneScores` to the destinations of its rows, in order."""
        found: dict[str, list[str]] = {}
        for layer in range(self.n_layers):
            heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
            if self.separate_qkv:
                for letter, n_heads in heads.items():
                    key = f"blocks.{layer}.hook_{letter}_input"
                    found[key] = [f"A{layer}.{head}.{letter.upper()}" for head in range(n_heads)]
            else:
                key = f"blocks.{layer}.hook_attn_in"
                found[key] = [f"A{layer}.{head}" for head in range(self.n_heads)]
            if not self.attn_only:
                found[f"blocks.{layer}.hook_mlp_in"] = [f"MLP {layer}"]
        found[f"blocks.{self.n_layers - 1}.hook_resid_post"] = ["Resid End"]
        return found

    def edges(self) -> list[tuple[int | None, str, str]]:
        """Every edge: positions first, then destinations, then sources."""
        positions = [None] if self.seq_len is None else list(range(self.seq_len))
        pairs = [(src, dest) for dest in self.dests for src in self.before(dest)]
        return [(position, src, dest) for position in positions for src, dest in pairs]

    def asks(self, values: Sequence[float], *, n: int | None = None, seed: int = 0) -> list[Ask]:
        """Random edges (all of them where `n` is None), each with a random one of the values."""
        rng = random.Random(seed)
        edges = self.edges()
        chosen = edges if n is None else rng.sample(edges, min(n, len(edges)))
        return [Ask(src, dest, position, rng.choice(values)) for position, src, dest in chosen]

    def prune_scores(self, asks: Sequence[Ask]) -> dict[str, Tensor]:
        """The same asks as auto-circuit writes them: `[seq?] [head?] [n_sources]` per module."""
        scores = {}
        for key, dests in self.modules.items():
            lead = [] if self.seq_len is None else [self.seq_len]
            rows = torch.zeros(*lead, len(dests), len(self.before(dests[0])))
            for ask in asks:
                if ask.dest in dests:
                    column = self.before(ask.dest).index(ask.src)
                    rows[..., dests.index(ask.dest), column][_where(ask.seq_idx)] = ask.mask
            scores[key] = rows if "mlp" not in key and "resid" not in key else rows.squeeze(-2)
        return scores


def _where(seq_idx: int | None) -> Any:
    return ... if seq_idx is None else seq_idx


@dataclass(frozen=True)
class Pass:
    """What the oracle saw: logits, what each source wrote, what each destination read, and what a
    norm after attention made of its bias."""

    logits: Tensor
    wrote: dict[str, Tensor]
    read: dict[str, Tensor]
    biases: dict[int, Tensor]


class Oracle:
    """Patches a twin of the model under test with TransformerLens' own flags and hooks."""

    def __init__(self, twin: Any, shape: Shape) -> None:
        self.shape = shape
        self.model = twin
        twin.set_use_attn_result(True)
        if shape.separate_qkv:
            twin.set_use_split_qkv_input(True)
        else:
            twin.set_use_attn_in(True)
        if not shape.attn_only:
            twin.set_use_hook_mlp_in(True)

    def run(
        self,
        tokens: Tensor,
        patched: Mapping[str, Tensor] | None = None,
        asks: Sequence[Ask] = (),
        *,
        users_hooks: Sequence[tuple[str, Any]] = (),
    ) -> Pass:
        """Run the tokens with those edges patched from `patched`.

        A user's hooks go first: what they change is then what a source wrote in this pass.
        """
        wrote: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}
        biases: dict[int, Tensor] = {}
        hooks = [*users_hooks, *self._writing_hooks(wrote, biases)]
        for key, dests in self.shape.modules.items():
            mine = {dest: [ask for ask in asks if ask.dest == dest] for dest in dests}
            has_heads = "mlp" not in key and "resid" not in key

            def edit(
                tensor: Tensor, hook: Any, mine: dict = mine, has_heads: bool = has_heads
            ) -> Tensor:
                assert tensor.ndim == 3 + has_heads, hook.name
                tensor = tensor.clone()
                for slot, (dest, its_asks) in enumerate(mine.items()):
                    x = tensor[:, :, slot] if has_heads else tensor
                    for ask in its_asks:
                        change = patched[ask.src] - wrote[ask.src]
                        at = slice(None) if ask.seq_idx is None else ask.seq_idx
                        x[:, at] += ask.mask * change[:, at]
                    read[dest] = x.clone()
                return tensor

            hooks.append((key, edit))
        with torch.no_grad():
            logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
        assert set(read) == set(self.shape.dests)
        assert list(wrote) == self.shape.sources
        return Pass(logits, wrote, read, biases)

    def _writing_hooks(self, wrote: dict[str, Tensor], biases: dict[int, Tensor]) -> list:
        hooks: list = []

        def keep(name: str, key: str) -> None:
            def record(tensor: Tensor, hook: Any) -> None:
                wrote[name] = tensor.clone()

            hooks.append((key, record))

        keep("Resid Start", "blocks.0.hook_resid_pre")
        for layer in range(self.shape.n_layers):

            def record_heads(tensor: Tensor, hook: Any, layer: int = layer) -> None:
                for head in range(self.shape.n_heads):
                    wrote[f"A{layer}.{head}"] = tensor[:, :, head].clone()

            hooks.append((f"blocks.{layer}.attn.hook_result", record_heads))
            norm = self._norm_after(layer)
            if norm is not None:

                def normalise(
                    scale: Tensor, hook: Any, layer: int = layer, norm: Any = norm
                ) -> None:
                    for head in range(self.shape.n_heads):
                        name = f"A{layer}.{head}"
                        wrote[name] = wrote[name] / scale * norm.w
                    bias = self.model.blocks[layer].attn.b_O
                    biases[layer] = (bias / scale * norm.w).detach()

                hooks.append((norm.hook_scale.name, normalise))
            if not self.shape.attn_only:
                keep(f"MLP {layer}", f"blocks.{layer}.hook_mlp_out")
        return hooks

    def _norm_after(self, layer: int) -> Any:
        """The norm between the heads and the stream, as HookedTransformer has it."""
        block = self.model.blocks[layer]
        if getattr(self.model.cfg, "original_architecture", None) == "Olmo2ForCausalLM":
            return block.ln1
        return getattr(block, "ln1_post", None)

    def bias_before(self, dest: str, seen: Pass | None = None) -> Tensor:
        """The attention output biases already in the stream that a destination reads."""
        heads = [name for name in self.shape.before(dest) if name.startswith("A")]
        total = torch.zeros(())
        for layer in sorted({int(name[1:].split(".")[0]) for name in heads}):
            bias = getattr(self.model.blocks[layer].attn, "b_O", None)
            if seen is not None and layer in seen.biases:
                total = total + seen.biases[layer]
            elif bias is not None:
                total = total + bias.detach()
        return total
