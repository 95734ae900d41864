"""Keep how heads attend in a pass: of their layer's tensors, the slices of the heads asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from circuit_trace.anatomy import Anatomy, HeadsPoint, HeadTensor
from circuit_trace.errors import AnatomyError, InputError


@dataclass(frozen=True, eq=False)
class HeadTaker:
    """Takes one tensor of some heads of a layer, `[batch, seq, width]` each.

    `site_idx` is the layer's source site, `slots` the heads that were asked for, by their names, and
    `shown` where the tensor of all its heads passes.
    """

    site_idx: int
    n_heads: int
    slots: dict[str, int]
    what: HeadTensor
    shown: HeadsPoint

    def take(self, tensor: Tensor, into: dict[str, dict[HeadTensor, Tensor]]) -> None:
        """Add the heads' slices to those that the pass has shown; what is there already stays."""
        by_head = self._by_head(tensor.detach())
        for name, slot in self.slots.items():
            # A key-value head serves several query heads that follow one another.
            at = slot * by_head.shape[2] // self.n_heads
            if self.what not in into[name]:
                into[name][self.what] = by_head[:, :, at].clone()

    def _by_head(self, tensor: Tensor) -> Tensor:
        """The tensor as `[batch, seq, head, width]`."""
        n_heads, heads_first = self.shown.n_heads, self.shown.heads_first
        if tensor.ndim == 3 and not heads_first and tensor.shape[-1] % n_heads == 0:
            tensor = tensor.unflatten(-1, (n_heads, -1))
        if tensor.ndim != 4:
            raise InputError(
                f"The {self.what!r} of {n_heads} heads, among them {next(iter(self.slots))!r}, was "
                f"to be recorded, but a tensor of the shape {tuple(tensor.shape)} passed there. Leave "
                "heads= out, or correct the anatomy."
            )
        return tensor.transpose(1, 2) if heads_first else tensor


def head_takers(anatomy: Anatomy, heads: Collection[str]) -> tuple[HeadTaker, ...]:
    """What records these heads, one for each tensor that their layers show.

    Raises:
        AnatomyError: The anatomy does not say where a layer's heads show them.
    """
    takers: list[HeadTaker] = []
    for site_idx, site in enumerate(anatomy.sources):
        slots = {name: slot for slot, name in enumerate(site.names) if name in heads}
        if slots and not site.attention:
            raise AnatomyError(
                f"How {next(iter(slots))!r} attends cannot be recorded: the model's anatomy does not "
                "say where its pattern, queries, keys and values pass. Leave heads= out, or give "
                "that SourceSite its attention={'pattern': HeadsPoint(...), 'q': ...}."
            )
        if slots:
            takers += [
                HeadTaker(site_idx, len(site.names), slots, what, point)
                for what, point in site.attention.items()
            ]
    return tuple(takers)
