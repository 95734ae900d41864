"""What flowed along an edge, and into a destination: tensors, computed when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.graph import DestNode, Edge
from circuit_trace.record.inputs import input_of
from circuit_trace.record.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class EdgeFlow:
    """What flowed along one edge: tensors of `[batch, seq, d_model]`, computed when asked for."""

    trace: Record
    edge: Edge

    @property
    def clean(self) -> Float[Tensor, "batch seq d_model"] | None:
        """What the source writes where nothing is patched, None where that is not known."""
        clean = self.trace.clean
        return None if clean is None else clean[self.edge.src.name]

    @property
    def current(self) -> Float[Tensor, "batch seq d_model"]:
        """What the source wrote in this pass, after it felt the patches before it."""
        return self.trace.current[self.edge.src.name]

    @property
    def patched(self) -> Float[Tensor, "batch seq d_model"] | None:
        """What was patched in instead, None where nothing was."""
        plans = self.trace.plan_of(self.trace.graph.numbers(self.edge))
        values = {
            id(plan): plan.patched[self.edge.src.name]
            for plan in plans
            if plan is not None and plan.patched is not None
        }
        if len(values) < 2:
            return next(iter(values.values()), None)
        # Contexts inside one another patch this edge at different positions.
        return torch.stack([values[id(plan)][:, at] for at, plan in enumerate(plans)], dim=1)

    @property
    def delta(self) -> Float[Tensor, "batch seq d_model"] | None:
        """patched − current, None where nothing was patched."""
        patched = self.patched
        return None if patched is None else patched - self.current

    @property
    def effect(self) -> Float[Tensor, "batch seq d_model"] | None:
        """received − clean: what patching changed along this edge, None where clean is not known."""
        clean = self.clean
        return None if clean is None else self.received - clean

    @property
    def mask(self) -> float | Float[Tensor, " seq"]:
        """The edge's mask; one per position for an edge of all positions of a `seq_len` model."""
        mask = self._masks
        if self.edge.seq_idx is not None:
            return float(mask[self.edge.seq_idx])
        return float(mask) if mask.ndim == 0 else mask

    @property
    def received(self) -> Float[Tensor, "batch seq d_model"]:
        """What the destination received: (1 − mask) · current + mask · patched."""
        current, patched = self.current, self.patched
        if patched is None:
            return current
        mask = self._masks.to(current)
        mask = mask if mask.ndim == 0 else mask[None, :, None]
        return (1 - mask) * current + mask * patched

    @property
    def _masks(self) -> Tensor:
        dest = self.edge.dest
        scores = self.trace.masks[dest.module_name]
        rows = scores if dest.head is None else scores[..., dest.slot, :]
        return rows[..., self.edge.src.idx]

    def __repr__(self) -> str:
        return f"<EdgeFlow {self.edge}: mask {self.mask}>"


@dataclass(frozen=True, eq=False, repr=False)
class DestFlow:
    """What one destination received, tensors of `[n_sources, batch, seq, d_model]`, and read.

    >>> import circuit_trace as ct
    >>> trace = ct.wrap(ct.load_model("bundled")).trace("When Mary and John")
    >>> flow = trace.dest("A1.0.Q")
    >>> len(flow.sources), tuple(flow.received.shape), tuple(flow.input.shape)
    (6, (6, 1, 5, 64), (1, 5, 64))
    """

    trace: Record
    dest: DestNode

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources before it, in order."""
        return tuple(src.name for src in self.trace.graph.srcs[: self.dest.n_sources])

    def __getitem__(self, source: str) -> EdgeFlow:
        return EdgeFlow(self.trace, self.trace.graph.edge(f"{source}->{self.dest.name}"))

    @property
    def clean(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """What each source writes where nothing is patched, None where that is not known."""
        found = [self[source].clean for source in self.sources]
        return None if found[0] is None else torch.stack([one for one in found if one is not None])

    @property
    def current(self) -> Float[Tensor, "n_sources batch seq d_model"]:
        """What each source wrote in this pass, after it felt the patches before it."""
        return torch.stack([self[source].current for source in self.sources])

    @property
    def patched(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """What was patched in instead, None where nothing was."""
        found = [self[source].patched for source in self.sources]
        return None if found[0] is None else torch.stack([one for one in found if one is not None])

    @property
    def delta(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """patched − current, None where nothing was patched."""
        patched = self.patched
        return None if patched is None else patched - self.current

    @property
    def received(self) -> Float[Tensor, "n_sources batch seq d_model"]:
        """What it received from each: (1 − mask) · current + mask · patched."""
        return torch.stack([self[source].received for source in self.sources])

    @property
    def effect(self) -> Float[Tensor, "n_sources batch seq d_model"] | None:
        """received − clean of each, None where clean is not known."""
        clean = self.clean
        return None if clean is None else self.received - clean

    @property
    def input(self) -> Float[Tensor, "batch seq d_model"]:
        """The residual stream as it read it, before a norm that is its own (TransformerLens'
        `hook_q_input`, `hook_mlp_in`): what it received and the biases written before it.

        Raises:
            InputError: It read something else, as hooks changed the stream in that pass.
        """
        return input_of(self.trace, self.dest)

    @property
    def mask(self) -> Float[Tensor, "*seq n_sources"]:
        """The masks of its edges."""
        scores = self.trace.masks[self.dest.module_name]
        return scores if self.dest.head is None else scores[..., self.dest.slot, :]

    def __repr__(self) -> str:
        return f"<DestFlow {self.dest}: {self.dest.n_sources} sources>"
