"""Edges in the order in which a growing circuit takes them, and the circuits along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.errors import InputError, MaskError
from circuit_trace.graph import Graph
from circuit_trace.plan import check_scores, flat_scores
from circuit_trace.score.greedy import greedy_order
from circuit_trace.score.reach import connected
from circuit_trace.score.sized import sized

CircuitMethod = Literal["top", "greedy"]
RankBy = Literal["absolute", "highest", "lowest"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The edges of a graph by their scores.

    `strength` is what each is ranked by, `strongest` their numbers by strength alone, and `order` as
    the method takes them. Edges that score 0 come last, since nothing is known of them.
    """

    graph: Graph
    scores: Float[Tensor, " edge"]
    strength: Float[Tensor, " edge"]
    strongest: Int[Tensor, " edge"]
    order: Int[Tensor, " edge"]

    @classmethod
    def of(cls, graph: Graph, scores: Any, method: CircuitMethod, rank_by: RankBy) -> Ranking:
        """Rank the edges.

        Raises:
            InputError: There is no such method, or no such way to rank.
            MaskError: The scores do not fit the graph, are not finite, or are all zero.
        """
        for name, given, known in (
            ("method", method, CircuitMethod),
            ("rank_by", rank_by, RankBy),
        ):
            if given not in get_args(known):
                raise InputError(
                    f"A circuit is chosen with {name}={' or '.join(map(repr, get_args(known)))}; got "
                    f"{given!r}."
                )
        flat = flat_scores(graph, check_scores(graph, scores, "The scores"))
        if not flat.any():
            raise MaskError(
                "The scores are all zero, so no edge ranks before another: are clean and corrupt "
                "prompts the same, or does the metric look elsewhere?"
            )
        strength = {"absolute": flat.abs(), "highest": flat, "lowest": -flat}[rank_by]
        unscored_last = strength.masked_fill(flat == 0, -torch.inf)
        strongest = unscored_last.argsort(descending=True, stable=True)
        order = strongest if method == "top" else greedy_order(graph, strongest)
        return cls(graph, flat, strength, strongest, order)

    @property
    def scored(self) -> Int[Tensor, " edge"]:
        """The order up to the first edge that scores 0."""
        unscored = (self.scores[self.order] == 0).nonzero()
        return self.order[: int(unscored[0])] if len(unscored) else self.order

    def circuits(self, sizes: Sequence[int], *, prune: bool) -> list[Bool[Tensor, " edge"]]:
        """For each size, that many edges: with `prune` connected ones, as many as score more than 0
        or less; all edges are the whole model, whatever they score."""
        if not prune:
            return [self.first(n) for n in sizes]
        found = sized(self.graph, self.scored, sizes)
        return [
            torch.ones_like(one) if n == self.graph.n_edges else one
            for one, n in zip(found, sizes, strict=True)
        ]

    def first(self, n: int) -> Bool[Tensor, " edge"]:
        """The first so many edges of the order."""
        return torch.zeros(self.graph.n_edges, dtype=torch.bool).index_fill(0, self.order[:n], True)

    def above(self, threshold: float, *, prune: bool) -> Bool[Tensor, " edge"]:
        """The edges whose strength is this or more, as far as the method takes them before one that is
        weaker; with `prune`, those of them that are connected."""
        weaker = (self.strength[self.order] < threshold).nonzero()
        kept = self.first(int(weaker[0]) if len(weaker) else len(self.order))
        return connected(self.graph, kept) if prune else kept
