"""auto-circuit's own files: `PruneScores` as `torch.save` writes them, by themselves or nested."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import FormatError
from circuit_trace.graph import Graph
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.text import told

DEEPEST = 4
"""auto-circuit nests them twice, `{task: {algorithm: PruneScores}}`."""

MOST_LOOKED_AT = 200_000
"""Entries of all dicts together."""

Keys = tuple[str, ...]


def holds_scores(data: dict[Any, Any]) -> bool:
    """Whether this is a dict of tensors, or of dicts with such dicts in them."""
    return any(True for _ in _leaves(data))


def _leaves(data: dict[Any, Any]) -> Iterator[tuple[Keys, dict[Any, Any]]]:
    """Each dict of tensors with the keys that lead to it.

    A dict may stand in many places at once, so what is looked at is counted.
    """
    waiting: list[tuple[Keys, dict[Any, Any]]] = [((), data)]
    looked_at = 0
    while waiting:
        keys, one = waiting.pop()
        looked_at += 1 + len(one)
        if looked_at > MOST_LOOKED_AT or len(keys) > DEEPEST:
            raise FormatError(
                f"This file nests dicts deeper than {DEEPEST} times, or too many: expected PruneScores, "
                "or {task: {algorithm: PruneScores}}."
            )
        if any(isinstance(value, Tensor) for value in one.values()):
            yield keys, one
            continue
        inside = [(key, value) for key, value in one.items() if isinstance(value, dict)]
        for key, value in reversed(inside):
            waiting.append(((*keys, key if isinstance(key, str) else told(key)), value))


def select_scores(data: dict[Any, Any], select: str | Keys | None) -> dict[Any, Any]:
    """The one dict of tensors that is there, or that of the keys asked for.

    >>> nested = {"ioi": {"EAP": {"m": torch.ones(2)}, "ACDC": {"m": torch.zeros(2)}}}
    >>> select_scores(nested, ("ioi", "EAP"))
    {'m': tensor([1., 1.])}
    >>> select_scores(nested, "ACDC")
    {'m': tensor([0., 0.])}

    Raises:
        FormatError: There are several and none is asked for, or none is as asked.
    """
    leaves = dict(_leaves(data))
    if select is None:
        found = list(leaves)
    else:
        asked = (select,) if isinstance(select, str) else tuple(select)
        exact = [keys for keys in leaves if keys == asked]
        found = exact or [keys for keys in leaves if set(asked) <= set(keys)]
    if len(found) == 1:
        return leaves[found[0]]
    there = ", ".join(told(keys) for keys in list(leaves)[:8])
    more = f", … ({len(leaves)} in all)" if len(leaves) > 8 else ""
    raise FormatError(
        f"This file holds {len(leaves)} sets of scores, and "
        f"{'none is chosen' if select is None else f'{told(select)} fits {len(found)} of them'}. "
        f"Choose one by select=, of {there}{more}."
    )


def read_prune_scores(
    data: dict[Any, Any], graph: Graph | None, *, select: str | Keys | None = None
) -> PruneScores:
    """Scores as they are in a file, in their own precision; without a model their shapes are taken
    as they come.

    Raises:
        FormatError, MaskError: There are none, or they are not finite or do not fit the model.
    """
    chosen = select_scores(data, select)
    if graph is not None:
        return _plain(check_scores(graph, chosen, "The scores in this file"))
    for name, score in chosen.items():
        if not isinstance(name, str) or not isinstance(score, Tensor):
            raise FormatError(
                f"The scores of {told(name)} are no tensor but {type(score).__name__}: expected "
                "PruneScores, a dict from a module's name to a tensor."
            )
        if score.is_complex() or score.layout != torch.strided or not 1 <= score.ndim <= 3:
            raise FormatError(
                f"The scores of {told(name)} must be a dense tensor of real numbers, [seq?] [head?] "
                f"[n_sources]; got {score.dtype}, {score.layout}, {tuple(score.shape)}."
            )
        _check_own_memory(name, score)
        if not torch.isfinite(score).all():
            raise FormatError(
                f"The scores of {told(name)} hold {score[~torch.isfinite(score)][0].item()}: expected "
                "finite numbers. (auto-circuit's ACDC gives infinity to edges that it kept at every "
                "threshold: replace it by a number above all others.)"
            )
    return _plain(chosen)


def _check_own_memory(name: str, score: Tensor) -> None:
    """A few bytes can pretend to be billions of numbers, by strides of 0."""
    if score.numel() * score.element_size() > score.untyped_storage().nbytes():
        raise FormatError(
            f"The scores of {told(name)} have more numbers, {tuple(score.shape)}, than the file holds."
        )


def _plain(scores: Mapping[str, Tensor]) -> PruneScores:
    """Tensors of their own: contiguous, detached, on the CPU, floating."""
    kept = {name: score.detach().cpu().clone().contiguous() for name, score in scores.items()}
    return {name: s if s.is_floating_point() else s.float() for name, s in kept.items()}


def write_prune_scores(scores: PruneScores, graph: Graph | None) -> bytes:
    """What `torch.save` makes of the scores.

    Raises:
        FormatError, MaskError: They are no PruneScores, or do not fit the model.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise FormatError(
            "The scores must be PruneScores, a dict from a module's name to a tensor, not empty; got "
            f"{type(scores).__name__}."
        )
    saved = io.BytesIO()
    torch.save(read_prune_scores(dict(scores), graph), saved)
    return saved.getvalue()
