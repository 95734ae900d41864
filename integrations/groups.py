"""Key and value inputs of query heads that share a key-value head, where a tool tells them apart."""

from __future__ import annotations

from typing import Any, Literal

from circuit_trace.errors import FormatError
from circuit_trace.graph import Graph, Shape
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.text import told

Groups = Literal["sum", "same"]
"""How scores of query heads' inputs become one of their key-value head, and back."""


def to_groups(
    scores: PruneScores, theirs: Graph, graph: Graph, groups: Groups | None
) -> PruneScores:
    """One score per key-value head from those of the query heads that share it.

    Raises:
        FormatError: It is not said how, or those that should be the same differ.
        MaskError: Their sum is not finite.
    """
    mine = Shape.of_graph(graph)
    each = mine.n_heads // mine.n_kv_heads
    if each == 1:
        return scores
    check_groups(groups, mine)
    found: PruneScores = {}
    for module in graph.modules:
        score = scores[module.name]
        if len(module.dests) != len(theirs.module_by_name[module.name].dests):
            score = score.view(-1, each, score.shape[-1])
            if groups == "same" and not (score == score[:, :1]).all():
                raise FormatError(
                    "groups='same' needs equal scores in a group of query heads, and those of "
                    f"{module.name!r} differ. groups='sum' adds them up."
                )
            score = score[:, 0].clone() if groups == "same" else score.sum(1)
        found[module.name] = score
    return check_scores(graph, found, "The scores of each group together")


def check_groups(groups: Any, shape: Shape) -> None:
    """Check that it is said how one score becomes several.

    Raises:
        FormatError: It is not.
    """
    if groups not in ("sum", "same"):
        raise FormatError(
            f"EAP-IG tells key and value inputs apart for each query head; a model of {shape} has one "
            "for each key-value head. Say how one becomes the other: groups='sum' for effects, which "
            "add up over a group (written, each head gets an equal share), groups='same' for masks "
            f"and circuits (each head gets the same). Got groups={told(groups)}."
        )


def from_groups(scores: PruneScores, shape: Shape, groups: Groups | None) -> PruneScores:
    """One score per query head from that of its key-value head: an equal share, or the same."""
    each = shape.n_heads // shape.n_kv_heads
    if each == 1:
        return scores
    return {
        name: (score / each if groups == "sum" else score).repeat_interleave(each, 0)
        if name.endswith(("k_input", "v_input"))
        else score
        for name, score in scores.items()
    }
