"""Scores → a circuit: the strongest edges, those without which nothing flows pruned."""

from __future__ import annotations

import warnings
from heapq import heappop, heappush
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.errors import InputError, MaskError
from circuit_trace.graph import Graph, whole_number
from circuit_trace.plan import PruneScores, check_scores, flat_scores, unflat_scores
from circuit_trace.score.reach import Inputs, connected, inputs_of

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel
    from circuit_trace.trace import Trace

CircuitMethod = Literal["top", "greedy"]


def circuit(
    scores: PruneScores,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    fraction: float | None = None,
    model: PatchableModel | Trace | Graph | None = None,
    method: CircuitMethod = "top",
    prune: bool = True,
) -> PruneScores:
    """Choose the edges of a circuit by |score|: 1 in the circuit, 0 out of it.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
    >>> chosen = ct.circuit(scores, n_edges=5, method="greedy")
    >>> [str(edge) for edge in model.trace(CLEAN, corrupt=CORRUPT, masks=chosen).edges]
    ['Resid Start->A0.0.V', 'A0.0->MLP 0', 'MLP 0->A1.0.Q', 'A1.0->Resid End']

    Args:
        scores: Of any graph, with positions or without; modules that are left out score 0.
        n_edges: Take so many edges, each position counted.
        threshold: Take the edges whose |score| is this or more.
        fraction: Take this part of all edges, rounded down.
        model: Whose graph the scores are for: a wrapped model, a `Trace` or a `Graph`. When omitted,
            the transformer that the scores' own names and shapes tell of.
        method: "top" takes the strongest of all edges; "greedy" goes from the end of the stream
            backwards, at each step the strongest edge into a node that is in the circuit already, as
            EAP-IG does (Hanna et al. 2024). Of equal scores the first in the graph's order is taken.
        prune: Leave out edges that are on no path from the start of the stream to its end; the
            circuit may then have fewer edges than were asked for; if none is left, a warning says so.
            What is left out has no effect, but where heads share a norm before the stream (Gemma 2, OLMo
            2): there it still moves that norm's scale.

    Raises:
        InputError: Not exactly one size is given, it is out of range, or another option is wrong.
        MaskError: The scores do not fit the graph, are not finite, or are all zero.
        FormatError: The scores do not say which model they are for, and none is given.
    """
    from circuit_trace.integrations.flat import (  # pyright: ignore[reportMissingImports]
        graph_for,
    )

    check_method(method)
    graph = graph_for(scores, model)
    flat = rankable(graph, scores)
    sizes = {"n_edges": n_edges, "threshold": threshold, "fraction": fraction}
    given = {name: value for name, value in sizes.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            "Give the circuit one size, n_edges=, threshold= or fraction=; got "
            f"{' and '.join(given) or 'none'}."
        )
    ((how, size),) = given.items()
    order = ranked(graph, flat, method)
    if how == "threshold":
        n = _n_above(flat[order], size)
    else:
        n = as_n_edges(graph, size, is_fraction=how == "fraction", name=how)
    chosen = selected(graph, order[:n], prune=prune)
    if n > 0 and not chosen.any():
        warnings.warn(
            f"The circuit is empty: none of the {n:,} edges chosen lies on a path of chosen edges from "
            "the start of the stream to its end. Choose more, or by method='greedy', which goes from "
            "the end backwards, or keep dead ends with prune=False.",
            stacklevel=2,
        )
    return unflat_scores(graph, chosen.float())


def rankable(graph: Graph, scores: Any) -> Float[Tensor, " edge"]:
    """The scores by the edges' numbers, if they tell edges apart.

    Raises:
        MaskError: They do not fit the graph, are not finite, or are all zero.
    """
    flat = flat_scores(graph, check_scores(graph, scores, "The scores"))
    if not flat.any():
        raise MaskError(
            "The scores are all zero, so no edge ranks before another: are clean and corrupt prompts "
            "the same, or does the metric look elsewhere?"
        )
    return flat


def ranked(
    graph: Graph, flat: Float[Tensor, " edge"], method: CircuitMethod
) -> Int[Tensor, " edge"]:
    """The numbers of the edges in the order in which a growing circuit takes them: by either method
    the circuit of n edges is the first n."""
    strongest = flat.abs().argsort(descending=True, stable=True)
    return strongest if method == "top" else _greedily(graph, strongest)


def _greedily(graph: Graph, strongest: Int[Tensor, " edge"]) -> Int[Tensor, " edge"]:
    """The edges as they are taken from the end backwards, each the strongest of those that lead to
    a node already taken."""
    rank = torch.empty_like(strongest)
    rank[strongest] = torch.arange(len(strongest))
    by_rank, per_position = strongest.tolist(), graph.n_edges_per_position
    modules = inputs_of(graph)
    feeding: dict[int, list[tuple[Inputs, int]]] = {}
    for one in modules:
        for source, slot in zip(one.sources.tolist(), one.slots.tolist(), strict=True):
            feeding.setdefault(source, []).append((one, slot))
    open_ranks: list[int] = []
    opened: set[int] = set()

    def open_dest(one: Inputs, slot: int, position: int) -> None:
        n_sources = one.module.n_sources
        first = position * per_position + one.module.offset + slot * n_sources
        if first not in opened:
            opened.add(first)
            for found in rank[first : first + n_sources].tolist():
                heappush(open_ranks, found)

    for one in modules:
        for slot in range(len(one.module.dests)) if not len(one.sources) else ():
            for position in range(graph.seq_len or 1):
                open_dest(one, slot, position)
    taken, reached = [], set()
    while open_ranks:
        number = by_rank[heappop(open_ranks)]
        taken.append(number)
        position, source = number // per_position, graph.edge_at(number).src.idx
        if (position, source) not in reached:
            reached.add((position, source))
            for one, slot in feeding.get(source, ()):
                for earlier in range(position + 1) if one.across else (position,):
                    open_dest(one, slot, earlier)
    return torch.tensor(taken, dtype=torch.long)


def selected(
    graph: Graph, numbers: Int[Tensor, " chosen"], *, prune: bool
) -> Bool[Tensor, " edge"]:
    """Which edges are these; with `prune`, which of these are connected."""
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[numbers] = True
    return connected(graph, kept) if prune else kept


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


def _n_above(ranked_scores: Float[Tensor, " edge"], threshold: Any) -> int:
    """How many edges come before the first that is weaker than the threshold. By either method none
    that is as strong comes after it."""
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    least = float(threshold) if is_number else -1.0
    if not least >= 0:
        raise InputError(f"threshold must be a number, 0 or more; got {threshold!r}.")
    weaker = (ranked_scores.abs() < least).nonzero()
    return int(weaker[0]) if len(weaker) else len(ranked_scores)


def check_method(method: Any) -> None:
    """Raise InputError where there is no such way to choose a circuit."""
    if method not in get_args(CircuitMethod):
        raise InputError(
            f"A circuit is chosen by method {' or '.join(map(repr, get_args(CircuitMethod)))}; got "
            f"{method!r}."
        )
