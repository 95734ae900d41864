"""Where another tool's embedding node leaves out what `Resid Start` includes: learned positions."""

from __future__ import annotations

import warnings
from typing import Any

from circuit_trace.errors import FormatWarning
from circuit_trace.plan import PruneScores

_ADDED = ("standard", "learned")
"""TransformerLens' words for positions that are added to the embedding."""


def adds_positions(model: Any) -> bool | None:
    """Whether a model adds positions to its embedding; None where nobody says it."""
    kind = getattr(getattr(model, "cfg", None), "positional_embedding_type", None)
    return None if kind is None else kind in _ADDED


def from_start(scores: PruneScores) -> bool:
    """Whether any edge that leaves `Resid Start` has a score."""
    return any(bool((score[..., 0] != 0).any()) for score in scores.values())


def warn_without_positions(scores: PruneScores, model: Any, tool: str, node: str) -> None:
    """Warn where a tool's embedding is not ours and it matters: an edge from it has a score, and the
    model may add positions."""
    if adds_positions(model) is not False and from_start(scores):
        warnings.warn(
            f"{tool}'s {node} is the embedding without positions; 'Resid Start' includes them where "
            "the model adds them, as GPT-2 does. Patched from a prompt whose tokens have the same "
            "positions both are the same; with zero or mean ablation they are not.",
            FormatWarning,
            stacklevel=5,
        )
