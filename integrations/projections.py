"""The weights of an attention projection as they are applied, whatever module stands in its place.

A plain linear layer shows its weight. An adapter (LoRA, DoRA), weights of 4 or 8 bits and offloaded
weights do not show the one that is applied, but they apply it, and a linear map is known by what it
makes of the unit vectors: `f(x) = x W + b` with `b = f(0)` and `W = (f(s·1) − b) / s`. That takes a pass
of as many positions as the projection is wide through that one module, each time it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = ("torch.nn.modules.linear", "transformers.pytorch_utils")
"""Where the linear layers come from that compute with the weight that they show."""

STRETCH = 256.0
"""The length of the unit vectors: a bias beside them must not cost the weights their digits."""


def is_plain(module: nn.Module) -> bool:
    """Whether a linear layer computes with the weight that it shows, and this can be read."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and type(module).__module__ in PLAIN
        and type(weight) in (Tensor, nn.Parameter)
        and weight.is_floating_point()
        and weight.device.type != "meta"
        and "forward" not in vars(module)  # accelerate puts one there that brings the weights
    )


@dataclass(frozen=True)
class Projection:
    """The projection of `attn` to queries, keys or values, or of its heads to the stream ("O").

    `n_heads` is how many heads it has, `cfg` the model's configuration. `shares_heads` says that the
    weights are wanted as the key-value heads have them, where `W_K` repeats them for each query head.
    """

    attn: Any
    letter: str
    n_heads: int
    cfg: Any
    shares_heads: bool = False

    def weight(self) -> Tensor:
        """`[head, d_model, width]`, for "O" `[head, width, d_model]`."""
        module = self._in_its_place()
        if module is None:
            return getattr(self.attn, self._name("W"))
        rows = STRETCH * torch.eye(self._width(module))
        made = (self._run(module, rows) - self._run(module, rows[:1] * 0)) / STRETCH
        if self.letter == "O":
            return made.unflatten(0, (self.n_heads, -1))
        return made.unflatten(1, (self.n_heads, -1)).transpose(0, 1)

    def bias(self) -> Tensor | None:
        """`[head, width]`, for "O" `[d_model]`; None where there is none."""
        module = self._in_its_place()
        if module is None:
            return getattr(self.attn, self._name("b"), None)
        made = self._run(module, torch.zeros(1, self._width(module)))[0]
        return made if self.letter == "O" else made.unflatten(0, (self.n_heads, -1))

    def _name(self, what: str) -> str:
        """HookedTransformer's grouped-query attention keeps those of its heads under `_W_K`."""
        name = f"{what}_{self.letter}"
        return f"_{name}" if self.shares_heads and hasattr(self.attn, f"_{name}") else name

    def _in_its_place(self) -> Any:
        """The module that does the projection, where it is no plain linear layer."""
        part = getattr(self.attn, self.letter.lower(), None)
        module = getattr(part, "original_component", None)
        return None if module is None or is_plain(module) else module

    def _width(self, module: Any) -> int:
        usual = self.n_heads * self.cfg.d_head if self.letter == "O" else self.cfg.d_model
        return getattr(module, "in_features", usual)

    def _run(self, module: Any, rows: Tensor) -> Tensor:
        """Below hooks: `forward` fires none."""
        like = next((p for p in module.parameters() if p.is_floating_point()), None)
        if like is None:
            return module.forward(rows.to(self.cfg.dtype))
        device = "cpu" if like.device.type == "meta" else like.device
        return module.forward(rows.to(device=device, dtype=like.dtype))
