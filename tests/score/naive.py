"""Edge attribution done plainly, with TransformerLens' own flags and hooks: nothing of circuit_trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.oracle import Oracle

Move = tuple[str, Tensor]
"""A hook's name, and what is added to what passes there."""


def attribution(
    second: Oracle,
    clean: Tensor,
    patched: Mapping[str, Tensor],
    metric: Callable[[Tensor], Tensor],
    *,
    moves: Sequence[Sequence[Move]] = ((),),
    by_position: bool = False,
) -> dict[str, Tensor]:
    """(P − C) · gradient of every edge, a mean over runs with these moves and over prompts."""
    wrote = second.run(clean).wrote
    total: dict[str, Tensor] = {}
    for run in moves:
        gradients = _gradients(second, clean, metric, run)
        for key, dests in second.shape.modules.items():
            sources = second.shape.before(dests[0])
            change = torch.stack([patched[source] - wrote[source] for source in sources])
            has_heads = gradients[key].ndim == 4
            gradient = gradients[key] if has_heads else gradients[key][:, :, None]
            score = torch.einsum("nbpd,bphd->phn", change, gradient) / len(clean) / len(moves)
            score = score if by_position else score.sum(0)
            total[key] = total.get(key, 0) + (score if has_heads else score.squeeze(-2))
    return total


def on_the_way(second: Oracle, clean: Tensor, patched: Mapping[str, Tensor], point: float) -> Move:
    """`Resid Start` moved towards what is patched in."""
    key = "blocks.0.hook_resid_pre"
    return key, point * (patched["Resid Start"] - second.run(clean).wrote["Resid Start"])


def each_on_the_way(
    second: Oracle, clean: Tensor, patched: Mapping[str, Tensor], point: float
) -> list[list[Move]]:
    """The same for `Resid Start`, the heads of each layer and each MLP, one after the other."""
    wrote, shape = second.run(clean).wrote, second.shape
    change = {name: point * (patched[name] - wrote[name]) for name in wrote}
    found = [[on_the_way(second, clean, patched, point)]]
    for layer in range(shape.n_layers):
        names = shape.layer_sources(layer)
        heads = [change[name] for name in names if name.startswith("A")]
        found.append([(f"blocks.{layer}.hook_attn_out", torch.stack(heads).sum(0))])
        if not shape.attn_only:
            found.append([(f"blocks.{layer}.hook_mlp_out", change[f"MLP {layer}"])])
    return found


def _gradients(
    second: Oracle, clean: Tensor, metric: Callable[[Tensor], Tensor], moves: Sequence[Move]
) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def apart(tensor: Tensor, hook: Any) -> Tensor:
            # A bridge hands the MLP the stream itself: only a copy is read by nothing else.
            inputs[key] = tensor.clone()
            return inputs[key]

        return apart

    def add(change: Tensor) -> Any:
        return lambda tensor, hook: tensor + change

    hooks = [(key, add(change)) for key, change in moves]
    hooks += [(key, keep(key)) for key in second.shape.modules]
    value = metric(second.model.run_with_hooks(clean, fwd_hooks=hooks))
    return dict(zip(inputs, torch.autograd.grad(value, list(inputs.values())), strict=True))
