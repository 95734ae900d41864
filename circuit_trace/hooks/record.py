"""What one forward pass leaves behind: plain tensors, detached, no reference to the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from circuit_trace.anatomy import HeadTensor
from circuit_trace.plan import Plan, SiteOutput

N_DIRECTIONS = 8
"""A destination's input is kept as its products with so many fixed random directions: enough to
compare it with the sum of what its sources wrote, at a hundredth of the memory."""


@lru_cache(maxsize=8)
def directions(d_model: int, device: torch.device) -> Float[Tensor, "d_model direction"]:
    """The fixed random directions (unit variance in all, seed 0) that inputs are projected on."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        drawn = torch.randn(d_model, N_DIRECTIONS, generator=generator)
        return (drawn / N_DIRECTIONS**0.5).to(device)


def sketch(tensor: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos direction"]:
    """Project a tensor of the residual stream on the fixed directions, in float32."""
    values = tensor.detach().float()
    # `linear` with a row per direction takes half the time of the product with thin columns.
    return linear(values, _rows(values.shape[-1], values.device))


@lru_cache(maxsize=8)
def _rows(d_model: int, device: torch.device) -> Float[Tensor, "direction d_model"]:
    with torch.inference_mode(False):
        return directions(d_model, device).T.contiguous()


@dataclass(frozen=True, eq=False)
class Read:
    """What some destination sites really read: all heads alike, or some patched heads.

    `patched` says whether the plans' changes are in `seen`: they are not in the stream that passes
    a layer's heads, where each head gets its own.
    """

    dests: tuple[int, ...]
    seen: Float[Tensor, "*head batch pos direction"]
    patched: bool
    heads: tuple[int, ...] | None = None
    positions: Tensor | None = None


@dataclass(eq=False)
class PassRecord:
    """The sources' outputs, the destinations' inputs (sketched), tokens and logits of one pass, the
    `attention_mask` that the model was given, how the heads that were asked for attended, and the plans
    with the values that their masks had."""

    tokens: Tensor | None
    plans: tuple[Plan, ...] = ()
    outputs: list[SiteOutput] = field(default_factory=list)
    biases: list[Tensor | None] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    attention_mask: Tensor | None = None
    logits: Tensor | None = None
    logits_version: int | None = None
    heads: dict[str, dict[HeadTensor, Tensor]] = field(default_factory=dict)

    def keep_logits(self, logits: Tensor) -> None:
        """Keep the logits, not a copy of them, and torch's count of writes into them."""
        self.logits = logits.detach()
        self.logits_version = None if logits.is_inference() else logits._version
