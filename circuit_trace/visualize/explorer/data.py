"""The explorer's specification: what its page knows, as plain data, in columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode, Edge, Edges, SrcNode
from circuit_trace.plan import EdgesArg, PruneScores, check_scores, flat_scores
from circuit_trace.plan.masks import mask_makers
from circuit_trace.record import (
    BatchIdx,
    Direction,
    EdgeNumbers,
    Record,
    edge_numbers,
    pair_of,
    top_tokens,
)
from circuit_trace.record import Tokens as TopTokens
from circuit_trace.visualize.edges import N_TOKENS, N_VALUES, strongest
from circuit_trace.visualize.text import visible

QUANTITIES = {
    "effect": "‖effect‖, received − clean",
    "clean": "‖clean‖",
    "current": "‖current‖",
    "patched": "‖patched‖",
    "delta": "‖patched − current‖",
    "received": "‖received‖",
    "mask": "mask",
    "score": "score",
    "projection": "projection",
}
"""What the widths of links can stand for, and what that is called."""

PATCHED_ONLY = ("patched", "delta", "mask")
"""Where nothing is patched in, these say nothing that the current output does not say."""
CHANGED_ONLY = ("effect", "clean", "received")
"""Likewise where nothing is patched."""

Tokens = list[list[Any]]
"""Pairs of a token and a number."""


def specification(
    trace: Record,
    *,
    edges: EdgesArg | None = None,
    scores: PruneScores | None = None,
    direction: Any = None,
    batch_idx: BatchIdx = 0,
    max_edges: int = 2000,
) -> dict[str, Any]:
    """Describe the strongest edges of a traced pass in lists, strings and numbers.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"])
    >>> found = specification(trace)
    >>> found["edges"]["name"], found["edges"]["mask"], found["opens_with"]
    (['A1.0->Resid End'], [1.0], 'effect')

    Returns:
        `positions` and `nodes`, to which the columns `position`, `source` and `target` of `edges`
        are indices; the `quantities` that a width can stand for, and the one that `opens_with`;
        how many edges were `left_out`; and `d_model`. Numbers that are not finite are None.
    """
    trace.check_batch_idx(batch_idx)
    along = None if direction is None else Direction.read(trace, direction)
    graph, pair = trace.graph, pair_of(trace)
    at = "last" if along is not None and graph.seq_len is None else None
    score_of = (
        None if scores is None else flat_scores(graph, check_scores(graph, scores, "The scores"))
    )
    candidates = (trace.edges or graph.edges).numbers
    if edges is not None:
        _, candidates = mask_makers(graph, edges)
    chosen = _strongest(trace, candidates, score_of, batch_idx, max_edges)
    listed = [graph.edge_at(number) for number in chosen]
    numbers = edge_numbers(trace, listed, batch_idx, N_VALUES, along, at=at)
    columns = _columns(trace, listed, batch_idx, numbers)
    if score_of is not None:
        columns["score"] = score_of[torch.tensor(chosen, dtype=torch.long)]
    opens_with = {None: "current", ("clean", "received"): "effect"}.get(pair, "delta")
    opens_with = opens_with if scores is None else "score"
    nodes, units = _nodes(listed)
    positions = sorted({edge.seq_idx for edge in listed}, key=lambda position: position or 0)
    return {
        "positions": _positions(trace, positions, batch_idx),
        "nodes": nodes,
        "quantities": _quantities(trace, columns, along),
        "compared": None if pair is None else list(pair),
        "outcome": None if trace.outcome is None else str(trace.outcome),
        "opens_with": opens_with if opens_with in columns else "current",
        "left_out": len(candidates) - len(chosen),
        "d_model": trace.current.sites[0].d_model,
        "edges": {
            "name": [edge.name for edge in listed],
            "source": [units[edge.src.unit] for edge in listed],
            "target": [units[edge.dest.unit] for edge in listed],
            "position": [positions.index(edge.seq_idx) for edge in listed],
            **{name: _rounded(column.tolist()) for name, column in columns.items()},
            **({} if graph.seq_len is not None else _where(trace, numbers, batch_idx)),
            **_token_columns(_top_tokens(trace, listed, batch_idx, numbers)),
        },
    }


def _strongest(
    trace: Record,
    candidates: Sequence[int],
    score_of: Tensor | None,
    batch_idx: BatchIdx,
    max_edges: int,
) -> Sequence[int]:
    """The edges that go into the page: where there are too many, those of the largest scores, or
    those that changed most."""
    if len(candidates) <= max_edges:
        return candidates
    if score_of is not None:
        strengths = score_of[torch.tensor(candidates)]
    else:
        numbers = edge_numbers(trace, Edges(trace.graph, candidates), batch_idx)
        strengths = numbers.current_norm if numbers.pair is None else numbers.delta_norm
    return [candidates[place] for place in strongest(strengths, max_edges)]


def _quantities(
    trace: Record, columns: Mapping[str, Tensor], along: Direction | None
) -> list[list[str]]:
    """What the widths of links can stand for in this pass, and what that is called."""
    names, pair = dict(QUANTITIES), pair_of(trace)
    if along is not None:
        what = "current" if pair is None else f"{pair[1]} − {pair[0]}"
        names["projection"] = f"{what} along {along.name}"
    return [
        [key, name]
        for key, name in names.items()
        if key in columns
        and (trace.patched is not None or key not in PATCHED_ONLY)
        and (trace.is_patched or key not in CHANGED_ONLY)
    ]


def _columns(
    trace: Record, edges: Sequence[Edge], batch_idx: BatchIdx, numbers: EdgeNumbers
) -> dict[str, Tensor]:
    """The numbers that a page shows, by name."""
    pair, at = numbers.pair, numbers.at
    columns: dict[str, Tensor | None] = {"mask": numbers.mask, "current": numbers.current_norm}
    if trace.patched is not None:
        now = edge_numbers(trace, edges, batch_idx, compare=("current", "patched"), at=at)
        columns |= {"patched": numbers.patched_norm, "delta": now.delta_norm}
        columns["received"] = numbers.received_norm
    if trace.is_patched and trace.clean is not None:
        columns["clean"] = numbers.clean_norm
        columns["effect"] = edge_numbers(
            trace, edges, batch_idx, compare=("clean", "received"), at=at
        ).delta_norm
    if pair is not None:
        columns["cosine"] = numbers.cosine
        columns[f"{pair[0]}_values"] = numbers.before_values
    columns[f"{'current' if pair is None else pair[1]}_values"] = numbers.after_values
    if numbers.after_projection is not None:
        columns |= {
            "projection": numbers.projected,
            "before_projection": numbers.before_projection,
            "after_projection": numbers.after_projection,
        }
    return {name: column for name, column in columns.items() if column is not None}


def _where(trace: Record, numbers: EdgeNumbers, batch_idx: BatchIdx) -> dict[str, list[Any]]:
    """The position that each edge's numbers are taken at, and its token."""
    tokens = None if batch_idx == "mean" else trace.token_strings(batch_idx)
    at = numbers.at.tolist()
    found: dict[str, list[Any]] = {"at": [one if one >= 0 else None for one in at]}
    if tokens is not None:
        found["at_token"] = [None if one < 0 else visible(tokens[one]) for one in at]
    return found


def _nodes(edges: Sequence[Edge]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The nodes that edges join, in the order of the flow, and each one's place by its name."""
    ends: list[SrcNode | DestNode] = [end for edge in edges for end in (edge.src, edge.dest)]
    ends.sort(key=lambda end: (end.depth, end.head if end.head is not None else -1))
    units = {end.unit: {"name": end.unit, "kind": end.kind, "depth": end.depth} for end in ends}
    return list(units.values()), {name: place for place, name in enumerate(units)}


def _positions(
    trace: Record, positions: Sequence[int | None], batch_idx: BatchIdx
) -> list[dict[str, Any]]:
    """Positions and their tokens; the one entry of a model without positions is empty."""
    tokens = None if batch_idx == "mean" else trace.token_strings(batch_idx)
    return [
        {
            "seq_idx": position,
            "token": None if tokens is None or position is None else visible(tokens[position]),
        }
        for position in positions
    ]


def _top_tokens(
    trace: Record, edges: Sequence[Edge], batch_idx: BatchIdx, numbers: EdgeNumbers
) -> list[tuple[TopTokens, TopTokens]] | None:
    """The tokens that each edge promotes and suppresses most, None where that cannot be known."""
    try:
        return top_tokens(trace, edges, batch_idx, N_TOKENS, numbers.pair, numbers.at)
    except InputError:  # no unembedding is known, or its weights were changed since
        return None


def _token_columns(
    tokens: list[tuple[TopTokens, TopTokens]] | None,
) -> dict[str, list[Tokens]]:
    if tokens is None:
        return {}
    return {
        name: [[[visible(token), _rounded(by)] for token, by in row[side]] for row in tokens]
        for side, name in enumerate(("promotes", "suppresses"))
    }


def _rounded(value: Any) -> Any:
    """Numbers, or lists of them, with five significant digits."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value + 0.0:.5g}") if math.isfinite(value) else None
