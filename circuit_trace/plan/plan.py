"""A plan: which edges are patched, how far, and with what. Made once, then applied each pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import Edges, Graph
from circuit_trace.plan.heads import HeadsArg, head_names
from circuit_trace.plan.masks import (
    EdgesArg,
    NodesArg,
    PruneScores,
    check_scores,
    mask_makers,
    score_shape,
    warn_of_scores,
)
from circuit_trace.plan.outputs import SourceOutputs


@dataclass(frozen=True, eq=False)
class Plan:
    """The edges that a pass patches.

    `masks` holds the touched modules only; `named` the numbers of the edges a user named one by
    one, also those at mask 0. `patched` is None where nothing is patched. A mask that is made of
    tensors that learn is made anew for each pass by its function in `live`. `heads` are those whose
    attention is recorded. `clean` is what the sources write where nothing is patched, if that is
    known. `keeps` says that what was asked for is kept and everything else patched: then `named` are
    the edges asked for. `is_asked` tells a circuit that came out empty from none.
    """

    graph: Graph
    masks: PruneScores
    named: tuple[int, ...] = ()
    patched: SourceOutputs | None = None
    live: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    clean: SourceOutputs | None = None
    keeps: bool = False
    is_asked: bool = False

    def mask_now(self, module: str) -> Tensor:
        """A touched module's mask with the values that it has now."""
        return self.live[module]() if module in self.live else self.masks[module]

    def full_masks(self) -> PruneScores:
        """Masks of every module, zero where nothing is patched."""
        return {
            module.name: self.masks[module.name].detach()
            if module.name in self.masks
            else torch.zeros(score_shape(module, self.graph.seq_len))
            for module in self.graph.modules
        }

    def snapshot(self) -> Plan:
        """This plan with the values that its masks have now, for a record that outlives them."""
        if not any(mask.requires_grad for mask in self.masks.values()):
            return self
        masks = {name: self.mask_now(name).detach().clone() for name in self.masks}
        return replace(self, masks=masks, live={})

    def edges(self) -> Edges:
        """The edges that were asked for: those with a mask other than 0 and those named one by one,
        or the kept ones where everything else is patched."""
        return Edges(self.graph, sorted(self.named if self.keeps else self.touched_numbers()))

    def touched_numbers(self) -> set[int]:
        """The numbers of the edges that are patched or named."""
        return {*self.named, *self.patched_numbers()}

    def complement(self) -> Plan:
        """The plan that keeps what this one patches, and patches everything else."""
        rest = {name: 1 - mask for name, mask in self.full_masks().items()}
        kept = tuple(sorted(self.touched_numbers()))
        masks = {name: mask for name, mask in rest.items() if mask.any()}
        return replace(self, masks=masks, named=kept, live={}, keeps=True)

    def patched_numbers(self) -> set[int]:
        """The numbers of the edges with a mask other than 0."""
        numbers: set[int] = set()
        for name, mask in self.masks.items():
            module = self.graph.module_by_name[name]
            flat = mask.detach().reshape(-1).nonzero()[:, 0]
            position, in_module = flat // module.n_edges, flat % module.n_edges
            found = position * self.graph.n_edges_per_position + module.offset + in_module
            numbers.update(found.tolist())
        return numbers

    def without(self, other: Plan) -> Plan:
        """This plan less the edges that another one patches or names."""
        taken = torch.tensor(list(other.touched_numbers()), dtype=torch.long)
        masks, live = {}, {}
        for name, mask in self.masks.items():
            module = self.graph.module_by_name[name]
            in_position = taken % self.graph.n_edges_per_position - module.offset
            position = taken // self.graph.n_edges_per_position
            here = (in_position >= 0) & (in_position < module.n_edges)
            keep = torch.ones(mask.numel(), dtype=mask.dtype, device=mask.device)
            keep[(position * module.n_edges + in_position)[here]] = 0
            keep = keep.view_as(mask)
            masks[name] = mask * keep
            if mask.requires_grad:
                live[name] = partial(_product, partial(self.mask_now, name), keep)
        masks = {name: mask for name, mask in masks.items() if mask.requires_grad or mask.any()}
        gone = set(taken.tolist())
        named = tuple(number for number in self.named if number not in gone)
        return replace(self, masks=masks, named=named, live=live)


def _product(mask: Callable[[], Tensor], keep: Tensor) -> Tensor:
    return mask() * keep


def make_plan(
    graph: Graph,
    patched: SourceOutputs | None,
    edges: EdgesArg | None,
    masks: PruneScores | None,
    nodes: NodesArg | None = None,
    heads: HeadsArg | None = None,
    clean: SourceOutputs | None = None,
) -> Plan:
    """Read what a user asks to patch and to record.

    Raises:
        EdgeError, MaskError: As the edges, masks or heads are wrong.
        InputError: Both were given, or something to patch but nothing to patch in.
    """
    if masks is not None and (edges is not None or nodes is not None):
        other = "edges" if edges is not None else "nodes"
        raise InputError(f"Give either {other}= or masks=, not both: each says what is patched.")
    named: list[int] = []
    live: dict[str, Callable[[], Tensor]] = {}
    if edges is not None or nodes is not None:
        makers, named = mask_makers(graph, edges, nodes)
        read = {name: make() for name, make in makers.items()}
        live = {name: make for name, make in makers.items() if read[name].requires_grad}
    elif masks is not None:
        read = check_scores(graph, masks, "The masks")
    else:
        read = {}
    warn_of_scores(graph, read)
    _check_outputs(graph, patched, "patched")
    _check_outputs(graph, clean, "clean")
    # Masks that learn stay the user's own; others are copied, so that the plan stays what it is.
    touched = {
        name: mask if mask.requires_grad else mask.clone()
        for name, mask in read.items()
        if mask.requires_grad or bool(mask.any())
    }
    if touched and patched is None:
        raise InputError(
            "There are edges to patch but nothing to patch in. Pass the outputs of another prompt, "
            "model.source_outputs(corrupt), or call model.trace(tokens, corrupt=..., edges=...)."
        )
    asked = () if heads is None else head_names(graph, heads)
    is_asked = any(one is not None for one in (edges, masks, nodes))
    return Plan(graph, touched, tuple(named), patched, live, asked, clean, is_asked=is_asked)


def _check_outputs(graph: Graph, outputs: object, what: str) -> None:
    """Raise InputError where these are no outputs of this graph's sources."""
    if outputs is None:
        return
    if not isinstance(outputs, SourceOutputs):
        raise InputError(
            f"The {what} outputs must come from model.source_outputs(...); got "
            f"{type(outputs).__name__}."
        )
    if [src.name for src in outputs.srcs] != [src.name for src in graph.srcs]:
        raise InputError(
            f"The {what} outputs come from another model: they have {len(outputs)} sources, this "
            f"model has {len(graph.srcs)}."
        )


def warn_if_empty(plan: Plan) -> None:
    """Warn where edges, masks or nodes were asked for and they come to no edge at all, as the masks of
    an empty circuit do. An edge named at mask 0 is one, and so is a mask that learns."""
    if plan.is_asked and not plan.masks and not plan.named:
        warnings.warn(
            "Nothing is patched in this pass: the masks are all 0, as those of an empty circuit, or no "
            "edge is named. Look at how the edges were chosen (ct.circuit(scores, n_edges=n) leaves n), "
            "or leave edges= and masks= out to record a pass without patches.",
            stacklevel=3,
        )
