"""Scores → a circuit: so many of the strongest edges that something flows along."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.graph import Edges, Graph, graph_for, whole_number
from circuit_trace.plan import PruneScores, unflat_scores
from circuit_trace.score.ranking import CircuitMethod, RankBy, Ranking
from circuit_trace.score.sized import size_with
from circuit_trace.trace.record import Record
from circuit_trace.trace.rows import Rows
from circuit_trace.trace.table import names_of

WORTH_TELLING = 0.5
"""An edge that is dropped is warned of if it is so strong, as a part of the strongest of all."""


class Circuit(dict[str, Tensor]):
    """The edges of a circuit as `PruneScores`: 1 in the circuit, 0 out of it. Made by `circuit`.

    `n_edges` is how many there are. `dropped` are those that their scores alone would put into it, the
    strongest first, and `dropped_scores` these scores.
    """

    def __init__(
        self,
        graph: Graph,
        chosen: Bool[Tensor, " edge"],
        dropped: Int[Tensor, " dropped"],
        dropped_scores: Float[Tensor, " dropped"],
    ) -> None:
        super().__init__(unflat_scores(graph, chosen.float()))
        self.n_edges = int(chosen.sum())
        self.dropped = Edges(graph, dropped.tolist())
        self.dropped_scores = dropped_scores

    def dropped_table(self) -> pd.DataFrame:
        """A row for each edge that was dropped: its name, its ends, its position and its score.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
        >>> ct.circuit(scores, n_edges=12)
        <Circuit: 12 edges; 2 dropped, first 'Resid Start->A0.3.V' (-3.81)>
        >>> ct.circuit(scores, n_edges=12).dropped_table()["edge"].tolist()
        ['Resid Start->A0.3.V', 'A1.3->Resid End']
        """
        rows = Rows.of(self.dropped.graph, self.dropped)
        return pd.DataFrame({**names_of(rows, None), "score": self.dropped_scores.numpy()})

    def __repr__(self) -> str:
        more = f"; {len(self.dropped):,} dropped, first {self._first()}" if self.dropped else ""
        return f"<Circuit: {self.n_edges:,} edges{more}>"

    def _first(self) -> str:
        """The strongest edge that was dropped."""
        return f"{str(self.dropped[0])!r} ({self.dropped_scores[0]:.3g})"


def circuit(
    scores: PruneScores,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    fraction: float | None = None,
    model: Engine | Record | Graph | None = None,
    method: CircuitMethod = "top",
    rank_by: RankBy = "absolute",
    prune: bool = True,
) -> Circuit:
    """Choose the edges of a circuit by their scores: 1 in the circuit, 0 out of it.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
    >>> chosen = ct.circuit(scores, n_edges=5, method="greedy")
    >>> [str(edge) for edge in model.trace(CLEAN, corrupt=CORRUPT, masks=chosen).edges]
    ['Resid Start->A0.0.V', 'A0.0->MLP 0', 'MLP 0->A1.0.Q', 'MLP 0->A1.0.V', 'A1.0->Resid End']

    All its edges are connected: each lies on a path from the start of the stream to its end. A key or
    a value reaches later positions, all else its own.

    Args:
        scores: Of any graph, with positions or without; modules that are left out score 0.
        n_edges: So many edges are left, each position counted: as many of the strongest are taken as
            connect enough of them. Where the last of these completes more paths than there is room for,
            the weakest that can be spared go again; where everything hangs together, a shortcut is
            taken. Edges that score 0 are taken for the whole model only. If no circuit has this size, a
            warning says so.
        threshold: Take the edges whose |score| is this or more (signed, whose score or -score is), less
            those that are not connected.
        fraction: As `n_edges`, as a part of all edges, rounded down.
        model: Whose graph the scores are for: a wrapped model, a `Trace` or a `Graph`. When omitted,
            the transformer that the scores' own names and shapes tell of.
        method: "top" takes the strongest of all edges; "greedy" goes from the end of the stream
            backwards, at each step the strongest edge into a node that is in the circuit already, as
            EAP-IG does (Hanna et al. 2024). Of equal scores the first in the graph's order is taken.
        rank_by: Which edges are strong. "absolute": those with the largest |score|, the default of EAP-IG
            and MIB too. Signed, as with their `absolute=False`: "highest", the largest scores first, or
            "lowest", the smallest (most negative). Scores by this library are the change when an edge is
            patched, so the edges that support a logit difference are the "lowest"; EAP-IG's own files
            score a loss, -logit difference, where they are the "highest".
        prune: If False, take the first so many edges of the ranking, dead ends and all.
            What pruning leaves out has no effect, but where heads share a norm before the stream (Gemma
            2, OLMo 2): there it still moves that norm's scale.

    Returns:
        `PruneScores`, with the edges that belong to them by score alone but are not connected at this
        size as `dropped`. If one of the strongest is among them, a warning says so.

    Raises:
        InputError: Not exactly one size is given, it is out of range, or another option is wrong.
        MaskError: The scores do not fit the graph, are not finite, or are all zero.
        FormatError: The scores do not say which model they are for, and none is given.
    """
    graph = graph_for(scores, model)
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
    found = Circuit(graph, chosen, dropped, ranking.scores[dropped])
    if prune:
        _tell(found, ranking, n, least)
    return found


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


def _tell(found: Circuit, ranking: Ranking, n_asked: int, threshold: float | None) -> None:
    """Warn where a circuit is not what was asked for, or lacks an edge that one looks for in it."""
    n = found.n_edges
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
        said = _lacking(found, ranking, n_asked)
    if said:
        warnings.warn(said, stacklevel=3)


def _lacking(found: Circuit, ranking: Ranking, n_asked: int) -> str | None:
    """What is to be said of the strongest edge that was dropped, if anything."""
    if not found.dropped:
        return None
    number = found.dropped.numbers[0]
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
        f"{found._first()}: what leads from it to the end of the stream, or to it from the start, is "
        f"too weak. {way}; the circuit's .dropped lists all."
    )
