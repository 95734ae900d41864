"""`circuit`: choose the edges of a circuit by any scores."""

from __future__ import annotations

from circuit_trace.engine import Engine
from circuit_trace.graph import Graph, graph_for
from circuit_trace.plan import PruneScores
from circuit_trace.record.record import Record
from circuit_trace.score.ranking import CircuitMethod, RankBy
from circuit_trace.score.scores import Circuit


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
    return Circuit.of(
        graph_for(scores, model),
        scores,
        n_edges=n_edges,
        threshold=threshold,
        fraction=fraction,
        method=method,
        rank_by=rank_by,
        prune=prune,
    )
