"""The explorer's specification: what its page knows, as plain data, in columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode, Edge, Edges, SrcNode
from circuit_trace.plan import EdgesArg, PruneScores, check_scores, flat_scores
from circuit_trace.plan.masks import mask_makers
from circuit_trace.trace import BatchIdx, Direction, EdgeNumbers, Trace, edge_numbers, top_tokens
from circuit_trace.trace import Tokens as TopTokens
from circuit_trace.visualize.edges import N_TOKENS, N_VALUES, strongest
from circuit_trace.visualize.text import visible

QUANTITIES = {
    "current": "‖current‖",
    "patched": "‖patched‖",
    "delta": "‖Δ‖, patched − current",
    "received": "‖received‖",
    "mask": "mask",
    "score": "score",
    "projection": "projection",
}
"""What the widths of links can stand for, and what that is called."""

PATCHED_ONLY = ("patched", "delta", "received", "mask")
"""Where nothing is patched in, these say nothing that the current output does not say."""

Tokens = list[list[Any]]
"""Pairs of a token and a number."""


def specification(
    trace: Trace,
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
    (['A1.0->Resid End'], [1.0], 'delta')

    Returns:
        `positions` and `nodes`, to which the columns `position`, `source` and `target` of `edges`
        are indices; the `quantities` that a width can stand for, and the one that `opens_with`;
        how many edges were `left_out`; and `d_model`. Numbers that are not finite are None.
    """
    trace.check_batch_idx(batch_idx)
    along = None if direction is None else Direction.read(trace, direction)
    names = (
        QUANTITIES if along is None else {**QUANTITIES, "projection": f"projection on {along.name}"}
    )
    graph = trace.graph
    candidates = (trace.edges or graph.edges).numbers
    if edges is not None:
        _, candidates = mask_makers(graph, edges)
    score_of = (
        None if scores is None else flat_scores(graph, check_scores(graph, scores, "The scores"))
    )
    opens_with = "delta" if trace.patched is not None else "current"
    opens_with = opens_with if scores is None else "score"
    chosen = candidates
    if len(candidates) > max_edges:
        if score_of is not None:
            strengths = score_of[torch.tensor(candidates)]
        else:
            all_numbers = edge_numbers(trace, Edges(graph, candidates), batch_idx)
            strengths = getattr(all_numbers, f"{opens_with}_norm")
        chosen = [candidates[place] for place in strongest(strengths, max_edges)]
    listed = [graph.edge_at(number) for number in chosen]
    columns = _columns(edge_numbers(trace, listed, batch_idx, N_VALUES, along))
    if score_of is not None:
        columns["score"] = score_of[torch.tensor(chosen, dtype=torch.long)]
    nodes, units = _nodes(listed)
    positions = sorted({edge.seq_idx for edge in listed}, key=lambda position: position or 0)
    return {
        "positions": _positions(trace, positions, batch_idx),
        "nodes": nodes,
        "quantities": [
            [key, name]
            for key, name in names.items()
            if key in columns and (trace.patched is not None or key not in PATCHED_ONLY)
        ],
        "opens_with": opens_with if opens_with in columns else "current",
        "left_out": len(candidates) - len(chosen),
        "d_model": trace.current.sites[0].d_model,
        "edges": {
            "name": [edge.name for edge in listed],
            "source": [units[edge.src.unit] for edge in listed],
            "target": [units[edge.dest.unit] for edge in listed],
            "position": [positions.index(edge.seq_idx) for edge in listed],
            **{name: _rounded(column.tolist()) for name, column in columns.items()},
            **_token_columns(_top_tokens(trace, listed, batch_idx)),
        },
    }


def _columns(numbers: EdgeNumbers) -> dict[str, Tensor]:
    """The numbers that a page shows, by name."""
    columns = {
        "mask": numbers.mask,
        "current": numbers.current_norm,
        "patched": numbers.patched_norm,
        "delta": numbers.delta_norm,
        "received": numbers.received_norm,
        "cosine": numbers.cosine,
        "current_values": numbers.current_values,
        "patched_values": numbers.patched_values,
        "projection": numbers.current_projection,
        "current_projection": numbers.current_projection,
        "patched_projection": numbers.patched_projection,
    }
    if numbers.patched_values is None:
        del columns["patched"], columns["delta"], columns["received"], columns["cosine"]
    elif numbers.current_projection is not None and numbers.patched_projection is not None:
        # What patching adds along the direction: an edge that carries its own output adds nothing.
        columns["projection"] = numbers.mask * (
            numbers.patched_projection - numbers.current_projection
        )
    return {name: column for name, column in columns.items() if column is not None}


def _nodes(edges: Sequence[Edge]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The nodes that edges join, in the order of the flow, and each one's place by its name."""
    ends: list[SrcNode | DestNode] = [end for edge in edges for end in (edge.src, edge.dest)]
    ends.sort(key=lambda end: (end.depth, end.head if end.head is not None else -1))
    units = {end.unit: {"name": end.unit, "kind": end.kind, "depth": end.depth} for end in ends}
    return list(units.values()), {name: place for place, name in enumerate(units)}


def _positions(
    trace: Trace, positions: Sequence[int | None], batch_idx: BatchIdx
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
    trace: Trace, edges: Sequence[Edge], batch_idx: BatchIdx
) -> list[tuple[TopTokens, TopTokens]] | None:
    """The tokens that each edge promotes and suppresses most, None where that cannot be known."""
    try:
        return top_tokens(trace, edges, batch_idx, N_TOKENS)
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
