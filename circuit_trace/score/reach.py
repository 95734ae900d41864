"""Which edges carry something from the start of the stream to its end, if the best of them are taken.

A node stands at one position, or where positions are not told apart at all. An MLP passes on at its
own position; so does a head its query; keys and values reach every later position too.

Edges have ranks, the best 0. How many of the best are needed before a path is whole is the rank of the
worst edge on it; of several paths the one on which that is least counts (the bottleneck path of
Pollack 1960, "The Maximum Capacity Through a Network"). One walk over the modules from either end
finds it for all nodes, and so what any number of the best edges connects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuit_trace.graph import DestModule, Graph


@dataclass(frozen=True, eq=False)
class Inputs:
    """A module of destinations and the sources that write what these make of their inputs: source
    `sources[i]` belongs to the module's destination `slots[i]`.

    Key-value heads serve several sources; the end of the stream has none. `across` says whether a
    source sees its inputs at earlier positions too.
    """

    module: DestModule
    sources: Int[Tensor, " source"]
    slots: Int[Tensor, " source"]
    across: bool

    def part(self, ranks: Int[Tensor, "pos edge"]) -> Int[Tensor, "pos dest source"]:
        """The ranks of the edges into the module."""
        first = self.module.offset
        part = ranks[:, first : first + self.module.n_edges]
        return part.view(len(ranks), len(self.module.dests), self.module.n_sources)


START = -1
"""Better than every rank: no edge is needed to come here."""
NEVER = torch.iinfo(torch.long).max
"""Worse than every rank: no edges lead here."""


@lru_cache(maxsize=4)
def inputs_of(graph: Graph) -> tuple[Inputs, ...]:
    """Every module of destinations, in the order in which the model runs them."""
    found = []
    for module in graph.modules:
        named = [graph.src_by_name.get(dest.unit) for dest in module.dests]
        sites = {src.site for src in named if src is not None}
        sources = [src for src in graph.srcs if src.site in sites]
        # Where a layer has fewer keys than heads, neighbouring heads share one.
        slots = [src.slot * len(module.dests) // len(sources) for src in sources]
        first = module.dests[0]
        across = first.kind == "attention" and first.name != f"{first.unit}.Q"
        found.append(
            Inputs(module, _whole(src.idx for src in sources), _whole(slots), across),
        )
    return tuple(found)


@lru_cache(maxsize=4)
def readings(graph: Graph) -> tuple[tuple[tuple[int, bool], ...], ...]:
    """For every source, the places among all destinations of its node's inputs, and whether it sees
    each of them at earlier positions too."""
    found: list[list[tuple[int, bool]]] = [[] for _ in graph.srcs]
    first = 0
    for one in inputs_of(graph):
        for source, slot in zip(one.sources.tolist(), one.slots.tolist(), strict=True):
            found[source].append((first + slot, one.across))
        first += len(one.module.dests)
    return tuple(map(tuple, found))


def worst_before(graph: Graph, ranks: Int[Tensor, " edge"]) -> Int[Tensor, "pos source"]:
    """For every source, the worst rank on the best way to it from the start of the stream."""
    rows = ranks.view(graph.seq_len or 1, -1)
    worst = torch.full((len(rows), len(graph.srcs)), START)
    for one in inputs_of(graph):
        worst[:, one.sources] = NEVER
    for one in inputs_of(graph):
        before = worst[:, None, : one.module.n_sources]
        entered = torch.maximum(one.part(rows), before).amin(-1)[:, one.slots]
        entered = _from_then_on(entered) if one.across else entered
        worst[:, one.sources] = torch.minimum(worst[:, one.sources], entered)
    return worst


def worst_after(graph: Graph, ranks: Int[Tensor, " edge"]) -> dict[str, Int[Tensor, "pos dest"]]:
    """For every destination, by module: the worst rank on the best way from what its node makes of it
    to the end of the stream."""
    rows = ranks.view(graph.seq_len or 1, -1)
    worst = torch.full((len(rows), len(graph.srcs)), NEVER)
    found = {}
    for one in reversed(inputs_of(graph)):
        wanted = worst[:, one.sources]
        wanted = _from_then_on(wanted.flip(0)).flip(0) if one.across else wanted
        is_end = not len(one.sources)
        here = torch.full((len(rows), len(one.module.dests)), START if is_end else NEVER)
        here = here.scatter_reduce(1, one.slots.expand_as(wanted), wanted, "amin")
        through = torch.maximum(one.part(rows), here[..., None]).amin(1)
        written = worst[:, : one.module.n_sources]
        written.copy_(torch.minimum(written, through))
        found[one.module.name] = here
    return found


def worst_from(graph: Graph, ranks: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """For every edge, the worst rank on the best way that begins with it and ends at the end."""
    return torch.maximum(ranks, _around(graph, ranks, starts=False))


def worst_through(graph: Graph, ranks: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """For every edge, the worst rank on the best path through it: it is connected as soon as all
    edges up to that rank are taken."""
    return torch.maximum(ranks, _around(graph, ranks))


def connected(graph: Graph, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """The edges that lie on a path of kept edges from the start of the stream to its end."""
    return worst_through(graph, (~kept).long()) == 0


def leads_on(graph: Graph, kept: Bool[Tensor, " edge"]) -> dict[str, Bool[Tensor, "pos dest"]]:
    """By module: which destinations belong to a node whose output the end of the stream feels."""
    return {name: worst <= 0 for name, worst in worst_after(graph, (~kept).long()).items()}


def would_join(graph: Graph, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """The edges that are not kept but alone would be connected if they were."""
    return ~kept & (_around(graph, (~kept).long()) <= 0)


def _around(
    graph: Graph, ranks: Int[Tensor, " edge"], *, starts: bool = True
) -> Int[Tensor, " edge"]:
    """For every edge, the worst rank on the best path through it, but for its own; with `starts` from
    the start of the stream, else from where it is."""
    after = worst_after(graph, ranks)
    before = worst_before(graph, ranks) if starts else None
    parts = []
    for one in inputs_of(graph):
        part = after[one.module.name][..., None].expand(-1, -1, one.module.n_sources)
        if before is not None:
            part = torch.maximum(part, before[:, None, : one.module.n_sources])
        parts.append(part.flatten(1))
    return torch.cat(parts, dim=1).flatten()


def _from_then_on(worst: Int[Tensor, "pos node"]) -> Int[Tensor, "pos node"]:
    """The best of this position and all earlier ones."""
    return worst.cummin(0).values


def _whole(numbers: object) -> Int[Tensor, " source"]:
    return torch.tensor(list(numbers), dtype=torch.long)  # pyright: ignore[reportArgumentType]
