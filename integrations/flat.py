"""Scores as one row of numbers in the order of the graph's edges, and other tools' names for these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import FormatError
from circuit_trace.graph import DestNode, Graph, SrcNode
from circuit_trace.plan import PruneScores, check_scores, unflat_scores
from circuit_trace.text import told


def flatten(graph: Graph, scores: Any) -> Tensor:
    """One score per edge, `[n_edges]`, in the graph's order; 0 for modules that are left out.

    Raises:
        MaskError: The scores do not fit the graph.
    """
    checked = check_scores(graph, scores, "The scores")
    kept = {name: score.detach().cpu() for name, score in checked.items()}
    dtypes = [score.dtype for score in kept.values()] or [torch.float32]
    rows = torch.zeros(
        graph.seq_len or 1, graph.n_edges_per_position, dtype=reduce(torch.promote_types, dtypes)
    )
    for name, score in kept.items():
        module = graph.module_by_name[name]
        rows[:, module.offset : module.offset + module.n_edges] = score.reshape(len(rows), -1)
    return rows.flatten()


def scatter(
    graph: Graph,
    numbers: Sequence[int],
    values: Sequence[float],
    *,
    dtype: torch.dtype | None = None,
) -> PruneScores:
    """Scores from the numbers of some edges and a value for each; all others are 0.

    Args:
        graph: The model's.
        numbers: Each edge's, at its position.
        values: As many.
        dtype: None for float32 where that holds every value exactly, else float64.

    Raises:
        FormatError: An edge comes twice, or a value is not finite.
    """
    where = torch.tensor(numbers, dtype=torch.long)
    if len(where.unique()) != len(where):
        seen, counts = where.unique(return_counts=True)
        twice = graph.edge_at(int(seen[counts > 1][0]))
        raise FormatError(f"The edge {str(twice)!r} is listed twice: give each edge one score.")
    flat = torch.zeros(graph.n_edges, dtype=torch.float64)
    flat[where] = torch.tensor(values, dtype=torch.float64)
    if dtype is None:
        is_single = torch.equal(flat.float().double(), flat)
        dtype = torch.float32 if is_single else torch.float64
    kept = flat.to(dtype)
    check_finite(graph, kept)
    return unflat_scores(graph, kept)


def check_finite(graph: Graph, flat: Tensor) -> None:
    """Check a row with one score per edge.

    Raises:
        FormatError: A score is not finite; the message names its edge.
    """
    wrong = (~torch.isfinite(flat)).nonzero()
    if len(wrong):
        number = int(wrong[0])
        raise FormatError(
            f"The score of {str(graph.edge_at(number))!r} is {flat[number].item()}: expected a finite "
            "number."
        )


def number_of(value: Any, what: str) -> float:
    """A score as a file has it, if it is a number.

    Raises:
        FormatError: It is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise FormatError(f"The score of {what} is {told(value)}: expected a finite number.")


def binary(flat: Tensor, what: str) -> list[int]:
    """The numbers of the edges whose score is 1, where every score is 1 or 0.

    Raises:
        FormatError: Some are neither, which the format cannot hold.
    """
    if not ((flat == 0) | (flat == 1)).all():
        raise FormatError(
            f"{what} says of an edge that it belongs to the circuit or that it does not, so scores "
            "must be 1 or 0. Choose first: {name: (s.abs() >= 0.01).float() for name, s in "
            "scores.items()}."
        )
    return flat.nonzero().flatten().tolist()


def without_positions(graph: Graph, what: str) -> None:
    """Check that scores to be written have no token positions.

    Raises:
        FormatError: They have, and the format has none.
    """
    if graph.seq_len is not None:
        raise FormatError(
            f"{what} has no token positions, and these scores have {graph.seq_len}. Sum them over "
            "positions first, {name: s.sum(0) for name, s in scores.items()}, and give the model "
            "wrapped without seq_len, if any."
        )


class Names:
    """Another tool's names for a graph's sources and destinations."""

    def __init__(
        self,
        graph: Graph,
        src: Callable[[SrcNode], str],
        dest: Callable[[DestNode], str],
    ) -> None:
        self.graph = graph
        self.srcs = {src(node): node for node in graph.srcs}
        self.dests = {dest(node): node for node in graph.dests}

    def number(self, src: Any, dest: Any, seq_idx: int | None = None) -> int:
        """The number of the edge between two nodes of those names.

        Raises:
            FormatError: There is no such edge.
        """
        source = self._node(src, self.srcs, "source")
        read_by = self._node(dest, self.dests, "destination")
        if source.idx >= read_by.n_sources:
            raise FormatError(
                f"There is no edge from {told(src)} to {told(dest)} in this model: what the first writes "
                "comes too late for the second to read."
            )
        module = self.graph.module_by_name[read_by.module_name]
        number = module.offset + read_by.slot * module.n_sources + source.idx
        return number + (seq_idx or 0) * self.graph.n_edges_per_position

    def edges(self) -> Iterator[tuple[int, str, str]]:
        """The number of every edge at one position with the names of its ends."""
        srcs = list(self.srcs)
        number = 0
        for name, dest in self.dests.items():
            for idx in range(dest.n_sources):
                yield number, srcs[idx], name
                number += 1

    @staticmethod
    def _node(name: Any, nodes: Mapping[str, Any], what: str) -> Any:
        found = nodes.get(name) if isinstance(name, str) else None
        if found is None:
            near = get_close_matches(name[:40], nodes, n=3) if isinstance(name, str) else []
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise FormatError(
                f"{told(name)} is not a {what} of this model, whose {what}s run from "
                f"{next(iter(nodes))!r} to {next(reversed(nodes))!r}.{hint}"  # pyright: ignore
            )
        return found
