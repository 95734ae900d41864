"""One forward pass as data: what every source wrote, what was patched in, and what it was of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuit_trace.anatomy import HeadTensor, Unembed
from circuit_trace.errors import InputError
from circuit_trace.graph import Edges, Graph
from circuit_trace.hooks import Read
from circuit_trace.plan import Plan, PruneScores, SourceOutputs
from circuit_trace.record.about import About
from circuit_trace.record.outcome import Outcome
from circuit_trace.record.unembedding import SavedLenses


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """The fields of a traced pass, which tables, the lens, saved files and pictures read; `Trace` is a
    record with these on top of it.

    `plans` are the patches of the contexts that were open, the innermost last; `reads` and `biases` are
    what the sums of the record are compared with; `head_tensors` how heads attended. `about` says of
    which model it is, `real` which positions are no padding (None: all), and `outcome` how a metric
    came out, where one was asked for.
    """

    graph: Graph
    current: SourceOutputs
    plans: tuple[Plan, ...] = ()
    tokens: Tensor | None = None
    recorded_logits: Tensor | None = None
    logits_version: int | None = None
    reads: tuple[Read, ...] = ()
    biases: tuple[Tensor | None, ...] = ()
    to_strings: Callable[[Tensor], list[str]] | None = field(default=None)
    unembed: Unembed | SavedLenses | None = None
    head_tensors: Mapping[str, Mapping[HeadTensor, Tensor]] = field(default_factory=dict)
    about: About = field(default_factory=About)
    real: Bool[Tensor, "batch seq"] | None = None
    outcome: Outcome | None = None

    @property
    def batch(self) -> int:
        """How many prompts ran."""
        return self.current.batch

    @property
    def seq(self) -> int:
        """How many token positions ran."""
        return self.current.seq

    @property
    def logits(self) -> Tensor | None:
        """The pass's logits `[batch, seq, d_vocab]`, None where it stopped before them.

        They are the tensor that the model returned, not a copy of it.

        Raises:
            InputError: That tensor was changed in place after the pass.
        """
        logits = self.recorded_logits
        if logits is None or self.logits_version is None:
            return logits
        if logits._version != self.logits_version:
            raise InputError(
                "The logits that this pass returned were changed in place afterwards, and the "
                "trace shares their memory. Change a copy instead: logits.clone()."
            )
        return logits

    @property
    def patched(self) -> SourceOutputs | None:
        """What was patched in (by the innermost context), None where nothing was."""
        return next((plan.patched for plan in reversed(self.plans) if plan.patched), None)

    @property
    def is_patched(self) -> bool:
        """Whether any edge has a mask other than 0."""
        return any(bool(mask.any()) for plan in self.plans for mask in plan.masks.values())

    @property
    def clean(self) -> SourceOutputs | None:
        """What the sources write where nothing is patched: `trace` records it, `patch` is given it;
        None where neither was done. In a pass that patches nothing it is what is current."""
        if not self.is_patched:
            return self.current
        return next((plan.clean for plan in reversed(self.plans) if plan.clean), None)

    @property
    def real_positions(self) -> Bool[Tensor, "batch seq"]:
        """Which positions are no padding."""
        if self.real is None:
            return torch.ones(self.batch, self.seq, dtype=torch.bool)
        return self.real.cpu()

    @cached_property
    def masks(self) -> PruneScores:
        """The mask of every edge, 0 where it carried the current output, in `PruneScores` form."""
        total = Plan(self.graph, {}).full_masks()
        for plan in self.plans:
            total.update(
                {name: total[name] + mask.detach().cpu() for name, mask in plan.masks.items()}
            )
        return total

    @cached_property
    def edges(self) -> Edges:
        """The edges with a mask other than 0, and those named one by one, in the graph's order; where
        everything else was patched (`patch="complement"`), the edges that were kept."""
        numbers = {number for plan in self.plans for number in plan.edges().numbers}
        return Edges(self.graph, sorted(numbers))

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads whose attention was recorded, in the graph's order."""
        return tuple(src.name for src in self.graph.srcs if src.name in self.head_tensors)

    @property
    def listed(self) -> Edges:
        """The edges that are listed unless others are asked for: where something was to be patched,
        none but those, even if it was an empty circuit."""
        is_asked = any(plan.is_asked for plan in self.plans)
        return self.edges if self.edges or is_asked else self.graph.edges

    def token_strings(self, batch_idx: int = 0) -> list[str] | None:
        """The traced prompt's tokens as text, None where the model has no tokenizer."""
        if self.to_strings is None or self.tokens is None or self.tokens.ndim != 2:
            return None
        return self.to_strings(self.tokens[batch_idx])

    def check_batch_idx(self, batch_idx: Any) -> None:
        """Raise InputError where the traced batch has no such element."""
        if isinstance(batch_idx, str) and batch_idx == "mean":
            return
        is_whole = isinstance(batch_idx, int) and not isinstance(batch_idx, bool)
        if not (is_whole and 0 <= int(batch_idx) < self.batch):
            raise InputError(
                f"batch_idx={batch_idx!r} is outside the traced batch: expected 0 to "
                f'{self.batch - 1}, or "mean".'
            )

    def plan_of(self, numbers: Sequence[int]) -> list[Plan | None]:
        """For each edge the plan that patches or names it, else the innermost with outputs."""
        owned = self._owned_edges
        default = owned[-1][0] if owned else None
        if len(owned) < 2:
            return [default] * len(numbers)
        return [next((plan for plan, own in owned if n in own), default) for n in numbers]

    @cached_property
    def _owned_edges(self) -> list[tuple[Plan, set[int]]]:
        """The plans that patch something in, the innermost last, and the edges of each."""
        return [(plan, plan.touched_numbers()) for plan in self.plans if plan.patched]

    @property
    def keeps(self) -> bool:
        """Whether everything but the edges asked for was patched."""
        return any(plan.keeps for plan in self.plans)

    def __repr__(self) -> str:
        patched = "nothing patched"
        if self.is_patched or self.edges:
            n = len(self.edges)
            patched = f"{n:,} {'edge' if n == 1 else 'edges'} patched"
            patched = f"all but {n:,} edges patched" if self.keeps else patched
        outcome = "" if self.outcome is None else f"; {self.outcome}"
        return (
            f"<{type(self).__name__}: batch {self.batch}, seq {self.seq}, {len(self.current)} sources, "
            f"{patched}{outcome}>"
        )
