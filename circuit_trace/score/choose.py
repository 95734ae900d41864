"""Scores → the edges of a circuit: so many of the strongest that something flows along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import Graph, whole_number
from circuit_trace.score.ranking import CircuitMethod, RankBy, Ranking
from circuit_trace.score.sized import size_with

WORTH_TELLING = 0.5
"""An edge that is dropped is told of if it is so strong, as a part of the strongest of all."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Which edges were chosen; which ones their scores alone would put among them, the strongest first,
    with these scores; and what a user should know of it, if anything."""

    chosen: Bool[Tensor, " edge"]
    dropped: Int[Tensor, " dropped"]
    dropped_scores: Float[Tensor, " dropped"]
    said: str | None = None


def choose(
    graph: Graph,
    scores: Any,
    *,
    n_edges: Any,
    threshold: Any,
    fraction: Any,
    method: CircuitMethod,
    rank_by: RankBy,
    prune: bool,
) -> Choice:
    """Choose the edges of a circuit, as `circuit_trace.circuit` says.

    Raises:
        InputError, MaskError: As there.
    """
    ranking = Ranking.of(graph, scores, method, rank_by)
    sizes = {"n_edges": n_edges, "threshold": threshold, "fraction": fraction}
    given = {name: value for name, value in sizes.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            "Give the circuit one size, n_edges=, threshold= or fraction=; got "
            f"{' and '.join(given) or 'none'}."
        )
    ((how, size),) = given.items()
    least = _as_threshold(size) if how == "threshold" else None
    if least is not None:
        chosen = ranking.above(least, prune=prune)
        n = int((ranking.strength >= least).sum())
    else:
        n = as_n_edges(graph, size, is_fraction=how == "fraction", name=how)
        (chosen,) = ranking.circuits([n], prune=prune)
    asked_for = ranking.strongest[:n]
    dropped = asked_for[~chosen[asked_for] & (ranking.scores[asked_for] != 0)]
    found = Choice(chosen, dropped, ranking.scores[dropped])
    return replace(found, said=_told(found, ranking, n, least)) if prune else found


def named(graph: Graph, found: Choice) -> str:
    """The strongest edge that was dropped, and its score."""
    return f"{str(graph.edge_at(int(found.dropped[0])))!r} ({found.dropped_scores[0]:.3g})"


def as_n_edges(graph: Graph, size: Any, *, is_fraction: bool, name: str) -> int:
    """A size as a number of edges.

    Raises:
        InputError: It is none, or out of range.
    """
    if is_fraction:
        part = -1.0 if isinstance(size, bool) or not isinstance(size, Real) else float(size)
        if not 0 <= part <= 1:
            raise InputError(f"{name} must be a part of all edges, from 0 to 1; got {size!r}.")
        return int(round(part * graph.n_edges, 6))  # 0.29 * 100 is a little less than 29
    number = whole_number(size)
    if number is None or not 0 <= number <= graph.n_edges:
        raise InputError(
            f"{name} must be a whole number of edges, from 0 to all {graph.n_edges:,}; got {size!r}."
        )
    return number


def _as_threshold(threshold: Any) -> float:
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    least = float(threshold) if is_number else -1.0
    if not least >= 0:
        raise InputError(f"threshold must be a number, 0 or more; got {threshold!r}.")
    return least


def _told(found: Choice, ranking: Ranking, n_asked: int, threshold: float | None) -> str | None:
    """What is to be said where a circuit is not what was asked for, or lacks an edge that one looks for
    in it."""
    n = int(found.chosen.sum())
    if threshold is not None and n == 0 < n_asked:
        said = (
            f"The circuit is empty: none of the {n_asked:,} edges that score {threshold:g} or more lies "
            "on a path of such edges from the start of the stream to its end. Lower the threshold, or "
            "say n_edges=, how many connected edges are to be left."
        )
    elif threshold is None and n < n_asked:
        said = (
            f"The circuit has {n:,} edges instead of {n_asked:,}: no more lie on a path of edges that "
            "score other than 0 from the start of the stream to its end. Score more edges, or ask for "
            "fewer."
        )
    elif threshold is None and n > n_asked:
        said = (
            f"The circuit has {n:,} edges instead of {n_asked:,}: no circuit of that size was found "
            "among the edges that score other than 0, since paths are longer. Ask for more, or score "
            "the edges that would shorten them, such as 'Resid Start->Resid End'."
        )
    else:
        return _lacking(found, ranking, n_asked)
    return said


def _lacking(found: Choice, ranking: Ranking, n_asked: int) -> str | None:
    """What is to be said of the strongest edge that was dropped, if anything."""
    if not len(found.dropped):
        return None
    number = int(found.dropped[0])
    strength = ranking.strength[number]
    if strength < WORTH_TELLING * ranking.strength.max():
        return None
    size = size_with(ranking.graph, ranking.scored, number)
    way = (
        "No path of edges that score other than 0 leads through it"
        if size is None
        else f"It is connected at n_edges={size:,}"
    )
    return (
        f"Of the {n_asked:,} strongest edges the circuit lacks {len(found.dropped):,}, first "
        f"{named(ranking.graph, found)}: what leads from it to the end of the stream, or to it from "
        f"the start, is too weak. {way}; the circuit's .dropped lists all."
    )
