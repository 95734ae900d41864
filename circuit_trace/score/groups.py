"""Edges by the destination they end in: what can run as rows of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode, Graph
from circuit_trace.hooks import run_rows
from circuit_trace.plan import EdgesArg, select
from circuit_trace.score.runs import PairRun


@dataclass(frozen=True, eq=False)
class EdgeGroup:
    """Some edges into one destination: their numbers, sources and, where told apart, positions."""

    dest: DestNode
    numbers: Int[Tensor, " edge"]
    sources: Int[Tensor, " edge"]
    positions: Int[Tensor, " edge"] | None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, where: slice | Tensor) -> EdgeGroup:
        positions = None if self.positions is None else self.positions[where]
        return EdgeGroup(self.dest, self.numbers[where], self.sources[where], positions)

    def parts(self, size: int) -> Iterator[EdgeGroup]:
        """The edges in parts of at most so many."""
        return (self[start : start + size] for start in range(0, len(self), size))


def chosen_numbers(graph: Graph, edges: EdgesArg | None) -> Int[Tensor, " edge"]:
    """The numbers of the edges that are named, or of all.

    Raises:
        EdgeError: There is no such edge.
        InputError: They come with mask values.
    """
    if isinstance(edges, Mapping):
        raise InputError(
            "edges must be names without values here: each edge is patched in full, or not. Pass "
            "list(edges)."
        )
    if edges is None:
        return torch.arange(graph.n_edges)
    return torch.tensor(list(select(graph, edges).numbers), dtype=torch.long)


def edge_groups(graph: Graph, numbers: Int[Tensor, " edge"]) -> list[EdgeGroup]:
    """The edges by destination, in the graph's order."""
    sizes = torch.tensor([dest.n_sources for dest in graph.dests])
    ends = sizes.cumsum(0)
    positions, in_position = (
        numbers // graph.n_edges_per_position,
        numbers % graph.n_edges_per_position,
    )
    dests = torch.searchsorted(ends, in_position, right=True)
    groups = []
    for number in dests.unique().tolist():
        here = dests == number
        sources = in_position[here] - (ends[number] - sizes[number])
        where = None if graph.seq_len is None else positions[here]
        groups.append(EdgeGroup(graph.dests[number], numbers[here], sources, where))
    return groups


def changes(run: PairRun, edges: EdgeGroup) -> Float[Tensor, "edge batch pos d_model"]:
    """What patching each of the edges adds to what their destination reads."""
    sources, rows = edges.sources.unique(return_inverse=True)
    differences = run.differences(sources.tolist())
    added = differences[rows.to(differences.device)]
    if edges.positions is None:
        return added
    each, at = torch.arange(len(edges), device=added.device), edges.positions.to(added.device)
    there = torch.zeros_like(added)
    there[each, :, at] = added[each, :, at]
    return there


def metrics_of_rows(
    run: PairRun, dest: DestNode, change: Float[Tensor, "row batch pos d_model"]
) -> Float[Tensor, "row batch"]:
    """The metric of every prompt for each row of changes, in one pass."""
    prompts = run.pairs.clean_prompts.repeated(len(change))
    with torch.no_grad():
        model = run.model
        logits = run_rows(model.wrapped_model, model.anatomy, dest, prompts, change.flatten(0, 1))
        return run.metrics_of(logits)
