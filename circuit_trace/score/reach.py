"""Which edges of a chosen set carry something from the start of the stream to its end.

A node stands at one position, or where positions are not told apart at all. An MLP passes on at its
own position; so does a head its query; keys and values reach every later position too.
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

    def kept(self, kept: Bool[Tensor, "pos edge"]) -> Bool[Tensor, "pos dest source"]:
        """The module's part of what is kept of all edges."""
        first = self.module.offset
        part = kept[:, first : first + self.module.n_edges]
        return part.view(len(kept), len(self.module.dests), self.module.n_sources)


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


def fed(graph: Graph, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, "pos source"]:
    """Which sources write something that the start of the stream has a part in."""
    rows = kept.view(graph.seq_len or 1, -1)
    reached = torch.ones(len(rows), len(graph.srcs), dtype=torch.bool)
    for one in inputs_of(graph):
        reached[:, one.sources] = False
    for one in inputs_of(graph):
        before = reached[:, None, : one.module.n_sources]
        entered = (one.kept(rows) & before).any(-1)[:, one.slots]
        reached[:, one.sources] |= _from_then_on(entered) if one.across else entered
    return reached


def leads_on(graph: Graph, kept: Bool[Tensor, " edge"]) -> dict[str, Bool[Tensor, "pos dest"]]:
    """By module: which destinations belong to a node whose output the end of the stream feels."""
    rows = kept.view(graph.seq_len or 1, -1)
    felt = torch.zeros(len(rows), len(graph.srcs), dtype=torch.bool)
    alive = {}
    for one in reversed(inputs_of(graph)):
        wanted = felt[:, one.sources]
        wanted = _from_then_on(wanted.flip(0)).flip(0) if one.across else wanted
        here = torch.zeros(len(rows), len(one.module.dests), dtype=torch.bool)
        for place, slot in enumerate(one.slots.tolist()):
            here[:, slot] |= wanted[:, place]
        here |= len(one.sources) == 0  # the end itself
        felt[:, : one.module.n_sources] |= (one.kept(rows) & here[..., None]).any(1)
        alive[one.module.name] = here
    return alive


def connected(graph: Graph, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """The edges that lie on a path of kept edges from the start of the stream to its end."""
    rows = kept.view(graph.seq_len or 1, -1)
    reached, alive = fed(graph, kept), leads_on(graph, kept)
    parts = [
        one.kept(rows)
        & reached[:, None, : one.module.n_sources]
        & alive[one.module.name][..., None]
        for one in inputs_of(graph)
    ]
    return torch.cat([part.flatten(1) for part in parts], dim=1).flatten()


def _from_then_on(happened: Bool[Tensor, "pos node"]) -> Bool[Tensor, "pos node"]:
    """Whether it happened at this position or an earlier one."""
    return happened.cumsum(0) > 0


def _whole(numbers: object) -> Int[Tensor, " source"]:
    return torch.tensor(list(numbers), dtype=torch.long)  # pyright: ignore[reportArgumentType]
