"""Scores as a list of nodes and edges with what must be known to read them back: for graph formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from circuit_trace.errors import FormatError
from circuit_trace.graph import DestNode, Graph, Shape, SrcNode, whole_number
from circuit_trace.plan import PruneScores
from circuit_trace.text import told

from .flat import Names, flatten, number_of, scatter

Facts = dict[str, int | bool | str]
"""What a file says of itself: the shape's numbers, `seq_len` and the scores' `dtype`."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}

MOST_DIGITS = 9
"""Of a number of positions, layers or heads."""


class Listed(NamedTuple):
    """An edge as a file lists it; the score is None where it has none."""

    src: Any
    dest: Any
    seq_idx: Any
    score: Any


@dataclass(frozen=True)
class Listing:
    """The edges that have a score, the nodes that there are, and how inputs lead into their nodes."""

    facts: Facts
    nodes: dict[str, SrcNode | DestNode]
    edges: tuple[tuple[str, str, int | None, float], ...]
    inner: tuple[tuple[str, str], ...]


def listing_of(scores: Any, graph: Graph) -> Listing:
    """List the edges whose score is not 0.

    Raises:
        MaskError: The scores do not fit the graph.
    """
    flat = flatten(graph, scores)
    edges = []
    numbers = flat.nonzero().flatten()
    for number, score in zip(numbers.tolist(), flat[numbers].tolist(), strict=True):
        edge = graph.edge_at(number)
        edges.append((edge.src.name, edge.dest.name, edge.seq_idx, score))
    ordered = sorted((*graph.dests, *graph.srcs), key=lambda node: node.depth)
    nodes = {node.name: node for node in ordered}
    inner = [(dest.name, unit) for dest in graph.dests for unit in _units(graph, dest)]
    facts = facts_of(graph) | {"dtype": str(flat.dtype).removeprefix("torch.")}
    return Listing(facts, nodes, tuple(edges), tuple(inner))


def _units(graph: Graph, dest: DestNode) -> Iterator[str]:
    """The nodes that an input belongs to: a key-value head's are all query heads that share it."""
    if dest.name == dest.unit or dest.head is None:
        return
    heads = [src for src in graph.srcs if src.layer == dest.layer and src.head is not None]
    shared = len(heads) // len(graph.module_by_name[dest.module_name].dests) or 1
    yield from (src.name for src in heads[dest.head * shared : (dest.head + 1) * shared])


def facts_of(graph: Graph) -> Facts:
    """What must be known to make the graph again; of a graph that is no transformer's, its positions."""
    try:
        known: Facts = asdict(Shape.of_graph(graph))
    except FormatError:
        known = {}
    return known if graph.seq_len is None else {**known, "seq_len": graph.seq_len}


def facts_in(text: Mapping[str, Any]) -> Facts:
    """Facts from a file in which everything is text.

    Raises:
        FormatError: A number is none.
    """
    found: Facts = {}
    for name in (*(field.name for field in fields(Shape)), "seq_len", "dtype"):
        if name in text:
            value = str(text[name]).strip('"')
            small = value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS
            truths = {"True": True, "true": True, "False": False, "false": False}
            found[name] = int(value) if small else truths.get(value, value)
    return found


def read_listing(
    facts: Mapping[str, Any],
    edges: Iterable[Listed],
    graph: Graph | None,
    *,
    in_graph: bool,
    what: str,
) -> PruneScores:
    """Scores of listed edges, or with `in_graph` 1 for each.

    Raises:
        FormatError: The file is for a model of another shape, or of none that is known; it lists what
            is no edge, or an edge without a score.
    """
    graph = _graph(facts, graph, what)
    names = Names(graph, lambda src: src.name, lambda dest: dest.name)
    numbers: list[int] = []
    values: list[float] = []
    for src, dest, seq_idx, score in edges:
        if score is None and not in_graph:
            raise FormatError(
                f"The edge from {told(src)} to {told(dest)} has no score. in_graph=True reads 1 for "
                "each edge that is listed."
            )
        numbers.append(names.number(src, dest, _position(seq_idx, graph, src, dest)))
        values.append(1.0 if in_graph else number_of(score, f"{told(src)} to {told(dest)}"))
    dtype = facts.get("dtype")
    if in_graph or dtype is None:
        return scatter(graph, numbers, values)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(
            f"{what} has scores of dtype {told(dtype)}: expected one of {', '.join(DTYPES)}."
        )
    return scatter(graph, numbers, values, dtype=DTYPES[str(dtype)])


def _graph(facts: Mapping[str, Any], graph: Graph | None, what: str) -> Graph:
    numbers = {field.name: facts[field.name] for field in fields(Shape) if field.name in facts}
    seq_len = whole_number(facts.get("seq_len", -1)) or 0
    said = None if "seq_len" not in facts else max(seq_len, 0)
    shape = Shape.of_numbers(numbers) if numbers else None
    if graph is None:
        if shape is None:
            raise FormatError(
                f"{what} does not say what model it is for (n_layers, n_heads, n_kv_heads). Pass the "
                "model, as model=."
            )
        return shape.graph(said)
    if shape is not None and shape != (mine := Shape.of_graph(graph)):
        raise FormatError(f"{what} is for a model of {shape}; the model given is one of {mine}.")
    if "dtype" in facts and said != graph.seq_len:
        raise FormatError(
            f"{what} has {said or 'no'} token positions; the model given was wrapped with "
            f"seq_len={graph.seq_len}. Give the model wrapped with seq_len={said}."
        )
    return graph


def _position(seq_idx: Any, graph: Graph, src: Any, dest: Any) -> int | None:
    position = whole_number(seq_idx)
    if graph.seq_len is None and seq_idx is None:
        return None
    if graph.seq_len is None or position is None or not 0 <= position < graph.seq_len:
        expected = "none" if graph.seq_len is None else f"one from 0 to {graph.seq_len - 1}"
        raise FormatError(
            f"The edge from {told(src)} to {told(dest)} has the position {told(seq_idx)}: expected "
            f"{expected}, as the model has {graph.seq_len or 'no'} positions."
        )
    return position


def score_text(score: float, dtype: str) -> str:
    """The shortest text that gives a score back in its precision.

    >>> import torch
    >>> score_text(torch.tensor(0.1).item(), "float32"), score_text(0.1, "float64")
    ('0.1', '0.1')
    """
    short = str(np.float32(score)) if dtype == "float32" else repr(score)
    return short if dtype != "float32" or np.float32(float(short)) == score else repr(score)
