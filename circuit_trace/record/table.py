"""Edges as rows of a table: pandas for what `numbers` computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode, Edge, SrcNode, whole_number
from circuit_trace.plan import PruneScores, check_scores, flat_scores
from circuit_trace.record.compare import arrow
from circuit_trace.record.lens import Tokens, top_tokens
from circuit_trace.record.numbers import BatchIdx, edge_numbers
from circuit_trace.record.record import Record
from circuit_trace.record.rows import Rows


def edge_table(
    trace: Record,
    edges: Sequence[Edge],
    batch_idx: BatchIdx,
    *,
    direction: Any = None,
    n_tokens: int = 0,
    scores: PruneScores | None = None,
    effects: PruneScores | None = None,
    by_position: bool = False,
    compare: Any = None,
    at: Any = None,
) -> pd.DataFrame:
    """The rows of `Trace.table`."""
    trace.check_batch_idx(batch_idx)
    if (n := whole_number(n_tokens)) is None or n < 0:
        raise InputError(f"n_tokens must be a whole number, 0 or more; got {n_tokens!r}.")
    rows = Rows.of(trace.graph, edges, trace.seq if by_position else None)
    if at is None and trace.graph.seq_len is None and (n or direction is not None):
        at = "last"  # where the answer is read
    numbers = edge_numbers(trace, rows, batch_idx, direction=direction, compare=compare, at=at)
    strings = None if batch_idx == "mean" else trace.token_strings(batch_idx)
    columns = names_of(rows, strings, numbers.at.numpy())
    columns["mask"] = numbers.mask.numpy()
    for name, given in (("score", scores), ("effect", effects)):
        if given is not None:
            checked = check_scores(trace.graph, given, f"The {name}s")
            columns[name] = flat_scores(trace.graph, checked)[rows.numbers].numpy()
    nan = torch.full((len(rows),), float("nan"))
    for name in (
        "clean_norm",
        "current_norm",
        "patched_norm",
        "received_norm",
        "delta_norm",
        "cosine",
    ):
        found = getattr(numbers, name)
        if found is not None or name == "patched_norm":
            columns[name] = (nan if found is None else found).numpy()
    before, after = numbers.pair or (None, "current")
    if numbers.before_projection is not None:
        columns[f"{before}_projection"] = numbers.before_projection.numpy()
    if numbers.after_projection is not None:
        columns[f"{after}_projection"] = numbers.after_projection.numpy()
    if n:
        tokens = top_tokens(trace, rows, batch_idx, n, numbers.pair, numbers.at)
        columns["promotes"] = [_names(raised) for raised, _ in tokens]
        columns["suppresses"] = [_names(lowered) for _, lowered in tokens]
    table = pd.DataFrame(columns)
    table.columns.name = arrow(numbers.pair)
    table.attrs["compare"] = numbers.pair
    if trace.outcome is not None:
        table.attrs["outcome"] = str(trace.outcome)
    return table


def names_of(
    rows: Rows, tokens: Sequence[str] | None = None, at: np.ndarray | None = None
) -> dict[str, Any]:
    """The columns that say which edge a row is of, and at which position its numbers are (-1 for
    several), if it has any."""
    srcs, dests = rows.graph.srcs, rows.graph.dests
    src, dest, position = rows.src.numpy(), rows.dest.numpy(), rows.position.numpy()
    named = {"src": _names_at(srcs, src), "dest": _names_at(dests, dest)}
    everywhere = position < 0
    # As objects: pandas' own strings cannot hold half a surrogate pair, which tokens can.
    token = np.full(len(rows), None, dtype=object)
    places: dict[str, Any] = {"seq_idx": pd.arrays.IntegerArray(position.copy(), everywhere)}
    if at is not None:
        places["at"] = pd.arrays.IntegerArray(at.copy(), at < 0)
    where = position if at is None else at
    if tokens is not None:
        token = np.array(tokens, dtype=object)[where]
        token[where < 0] = None
    return {
        "edge": named["src"] + "->" + named["dest"],
        **named,
        "layer": _numbers_at([node.layer for node in srcs], src),
        "head": _numbers_at([node.head for node in srcs], src),
        "dest_layer": _numbers_at([node.layer for node in dests], dest),
        "dest_head": _numbers_at([node.head for node in dests], dest),
        **places,
        "token": pd.Series(token, dtype=object),
    }


def top_rows(table: pd.DataFrame, n: Any, by: Any) -> pd.DataFrame:
    """The rows with the largest absolute values in a column, the largest first; of `cosine` the
    smallest values, since where current and patched point the same way little was changed.

    Raises:
        InputError: `n` is no number of rows, or `by` no column of numbers.
    """
    wanted = whole_number(n)
    if wanted is None or wanted < 1:
        raise InputError(f"top needs a whole number of edges, 1 or more; got {n!r}.")
    numeric = [name for name in table.columns if table[name].dtype.kind == "f"]
    if by not in numeric:
        raise InputError(
            f"by must be a column of numbers, one of {', '.join(numeric)}; got {by!r}."
        )
    sizes = -table[by] if by == "cosine" else table[by].abs()
    order = sizes.sort_values(ascending=False, kind="stable", na_position="last")
    return table.loc[order.index[:wanted]].reset_index(drop=True)


def _names_at(nodes: Sequence[SrcNode | DestNode], which: np.ndarray) -> np.ndarray:
    return np.array([node.name for node in nodes], dtype=object)[which]


def _numbers_at(numbers: Sequence[int | None], which: np.ndarray) -> pd.arrays.IntegerArray:
    missing = np.array([number is None for number in numbers])[which]
    values = np.array([-1 if number is None else number for number in numbers], dtype=np.int64)
    return pd.arrays.IntegerArray(values[which], missing)


def _names(tokens: Tokens) -> tuple[str, ...]:
    return tuple(name for name, _ in tokens)
