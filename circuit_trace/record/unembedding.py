"""How vectors of one pass are read as logits: its final norm as the linear map it was, and `W_U`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuit_trace.hooks.norms import subtract_mean


@dataclass(frozen=True, eq=False)
class Lens:
    """The final norm of one element of a traced batch, as the linear map it was, and `W_U`.

    A vector `v` at position `p` has the share `centred(v) · gain / scale[p] @ weight` of the logits
    there, before a soft cap or scaling that follows them; `centred` subtracts the mean where the
    norm is a LayerNorm.
    """

    gain: Float[Tensor, " d_model"]
    is_centred: bool
    scale: Float[Tensor, " seq"]
    weight: Float[Tensor, "d_model d_vocab"]

    def logits(
        self, vectors: Float[Tensor, "row d_model"], positions: Sequence[int]
    ) -> Float[Tensor, "row d_vocab"]:
        """The shares of the logits that vectors at these positions have."""
        wide = subtract_mean(vectors.to(self.gain), self.is_centred) * self.gain
        return wide / self.scale[list(positions), None] @ self.weight

    def direction(self, first: int, second: int) -> Float[Tensor, "seq d_model"]:
        """The vectors whose dot product with an output at each position is its share of the first
        token's logit less the second's."""
        along = subtract_mean(
            self.gain * (self.weight[:, first] - self.weight[:, second]), self.is_centred
        )
        return along / self.scale[:, None]


@dataclass(frozen=True, eq=False)
class SavedLenses:
    """The lenses of a saved pass, one for each element of its batch, in place of an `Unembed`.

    `to_ids` turns text into token ids; it is None where the model had no tokenizer.
    """

    lenses: tuple[Lens, ...]
    to_ids: Callable[[str], list[int]] | None = None

    def weight(self) -> Float[Tensor, "d_model d_vocab"]:
        """`W_U`."""
        return self.lenses[0].weight
