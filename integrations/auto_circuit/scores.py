"""Prune scores in descending order, and the circuit sizes to try."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from itertools import accumulate

import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.errors import InputError, MaskError
from circuit_trace.graph import whole_number

MOST_SIZES_LISTED = 200
"""Up to so many edges, every circuit size is tried; above, sizes grow by powers of ten."""
MOST_GROUPS = 100
"""Scores with fewer different values than this (and than half the edges) are tried by groups."""


class EdgeCounts(Enum):
    """Circuit sizes that are worked out from the graph or the scores."""

    ALL = 1
    """Every size from 0 to all edges."""
    LOGARITHMIC = 2
    """1, 2, …, 10, 20, …, 100, 200, …."""
    GROUPS = 3
    """Edges of equal |score| together, the highest first."""


TestEdges = EdgeCounts | list[int | float]
"""How sizes are chosen: by rule, as whole numbers, or as proportions (floats) of all edges."""

AlgoPruneScores = dict[str, ct.PruneScores]
"""Scores by the name of what found them."""

TaskPruneScores = dict[str, AlgoPruneScores]
"""Scores by task, then by what found them."""


def flat_prune_scores(prune_scores: ct.PruneScores) -> Tensor:
    """All scores in one row.

    Raises:
        MaskError: There are none.
    """
    if not isinstance(prune_scores, Mapping) or not prune_scores:
        raise MaskError(
            f"Expected PruneScores, a dict from modules' names to tensors; got {prune_scores!r}."
        )
    return torch.cat([scores.flatten() for scores in prune_scores.values()])


def desc_prune_scores(prune_scores: ct.PruneScores) -> Tensor:
    """All |scores| in one row, the highest first."""
    return flat_prune_scores(prune_scores).abs().sort(descending=True).values


def prune_scores_threshold(prune_scores: ct.PruneScores | Tensor, edge_count: int) -> Tensor:
    """The |score| that the `edge_count` highest reach: infinite for none.

    Args:
        prune_scores: Scores, or what `desc_prune_scores` made of them.
        edge_count: How many edges shall reach it; of equal scores more may.

    Raises:
        InputError: There are not so many edges.
    """
    is_sorted = isinstance(prune_scores, Tensor)
    descending = prune_scores if is_sorted else desc_prune_scores(prune_scores)
    n = whole_number(edge_count)
    if n is None or not 0 <= n <= len(descending):
        raise InputError(
            f"A circuit of {edge_count} edges was asked for; the scores are of {len(descending)}."
        )
    return descending[n - 1] if n else torch.tensor(float("inf"))


def edge_counts_util(
    edges: Collection[object],
    test_counts: EdgeCounts | Sequence[int | float] | None = None,
    prune_scores: ct.PruneScores | None = None,
    zero_edges: bool | None = None,
    all_edges: bool | None = None,
    true_edge_count: int | None = None,
) -> list[int]:
    """List circuit sizes to try, in ascending order.

    >>> edge_counts_util(range(30), EdgeCounts.LOGARITHMIC)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30]

    Args:
        edges: All edges; only their number counts.
        test_counts: How sizes are chosen. When omitted: by groups where the scores have few
            different values, else all sizes, or powers of ten where there are more than 200 edges.
        prune_scores: The scores, for groups.
        zero_edges: Whether 0 is among the sizes; when omitted, where there are more than two.
        all_edges: Whether the number of all edges is; when omitted, likewise.
        true_edge_count: One more size.

    Raises:
        InputError: Groups were asked for without scores.
    """
    n = len(edges)
    sizes = _sizes(n, _rule(n, prune_scores) if test_counts is None else test_counts, prune_scores)
    by_default = len(sizes) > 2
    for end, given in ((0, zero_edges), (n, all_edges)):
        wanted = by_default if given is None else given
        if wanted and end not in sizes:
            sizes.append(end)
        elif not wanted:
            sizes = [size for size in sizes if size != end]
    if true_edge_count is not None and true_edge_count not in sizes:
        sizes.append(true_edge_count)
    return sorted(sizes)


def _rule(n: int, prune_scores: ct.PruneScores | None) -> EdgeCounts:
    if prune_scores is not None:
        n_values = len(flat_prune_scores(prune_scores).abs().unique())
        if n_values < min(n / 2, MOST_GROUPS):
            return EdgeCounts.GROUPS
    return EdgeCounts.LOGARITHMIC if n > MOST_SIZES_LISTED else EdgeCounts.ALL


def _sizes(n: int, rule: object, prune_scores: ct.PruneScores | None) -> list[int]:
    if rule is EdgeCounts.ALL:
        return list(range(n + 1))
    if rule is EdgeCounts.LOGARITHMIC:
        steps = (10**power for power in range(len(str(n))))
        return [size for step in steps for size in range(step, min(10 * step, n), step)]
    if rule is EdgeCounts.GROUPS:
        if prune_scores is None:
            raise InputError("EdgeCounts.GROUPS groups edges by their scores: give prune_scores.")
        _, counts = flat_prune_scores(prune_scores).abs().unique(return_counts=True)
        return list(accumulate(counts.flip(0).tolist()))
    if isinstance(rule, Sequence) and all(isinstance(size, int | float) for size in rule):
        return [size if isinstance(size, int) else int(n * size) for size in rule]
    raise InputError(
        f"test_counts must be an EdgeCounts, or a list of whole numbers or proportions; got {rule!r}."
    )
