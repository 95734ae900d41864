"""Edge-Pruning's `edges.json`: the circuit as a list of pairs, `["a0.h1", "a3.h2.q"]`.

The list does not say what model it is for. The embedding is two nodes where the model adds positions to
it (`tok_embeds` and `pos_embeds`, as for GPT-2), one where it does not (`embeds`, as for Llama), and no
node at all in runs that leave it out of the graph.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from circuit_trace.errors import FormatError, FormatWarning
from circuit_trace.graph import DestNode, Graph, Shape, SrcNode
from circuit_trace.plan import PruneScores
from circuit_trace.text import told

from .embedding import adds_positions
from .flat import Names, binary, flatten, scatter, without_positions
from .shape import check_no_positions, letter

WHAT = "This Edge-Pruning file"
BOTH = ("tok_embeds", "pos_embeds")
ONE = "embeds"


def src_name(src: SrcNode) -> str:
    """Edge-Pruning's name of a source: `embeds`, `a5.h2`, `m3`."""
    if src.layer is None:
        return ONE
    return f"m{src.layer}" if src.head is None else f"a{src.layer}.h{src.head}"


def dest_name(dest: DestNode) -> str:
    """Edge-Pruning's name of a destination: `a7.h1.q`, `m3`, `resid_post`."""
    if dest.layer is None:
        return "resid_post"
    head = f"a{dest.layer}.h{dest.head}.{letter(dest).lower()}"
    return f"m{dest.layer}" if dest.head is None else head


def is_edge_pruning(data: Any) -> bool:
    """Whether this is a list of pairs."""
    return isinstance(data, list) and all(isinstance(one, list) for one in data[:3])


def read_edge_pruning(data: list[Any], graph: Graph | None) -> PruneScores:
    """1 for each edge that is listed.

    Raises:
        FormatError: It is not as Edge-Pruning writes it, or has an edge that the model has not.
    """
    if graph is None:
        raise FormatError(
            f"{WHAT} lists the edges of a circuit and does not say what model it is for. Pass the "
            "model, as model=."
        )
    check_no_positions(graph, WHAT)
    _check_split(Shape.of_graph(graph))
    names = Names(graph, src_name, dest_name)
    found: dict[int, set[str]] = {}
    for pair in data:
        if not isinstance(pair, list) or len(pair) != 2:
            raise FormatError(
                f"{WHAT} must list pairs such as ['a0.h1', 'a3.h2.q']; got {told(pair)}."
            )
        src, dest = pair
        number = names.number(ONE if src in BOTH else src, dest)
        listed = found.setdefault(number, set())
        if src in listed:
            raise FormatError(f"{WHAT} lists the edge {told(pair)} twice.")
        listed.add(src)
    halves = sum(len(listed & set(BOTH)) == 1 for listed in found.values())
    if halves:
        warnings.warn(
            f"Edge-Pruning tells tok_embeds and pos_embeds apart; {halves:,} edges have one of them "
            "alone. They are read as edges from 'Resid Start', which is both.",
            FormatWarning,
            stacklevel=5,
        )
    return scatter(graph, list(found), [1.0] * len(found))


def _check_split(shape: Shape) -> None:
    if not shape.separate_qkv:
        raise FormatError(
            f"Edge-Pruning tells the query, key and value of a head apart; this model has {shape}."
        )


def write_edge_pruning(scores: PruneScores, model: Any, graph: Graph) -> bytes:
    """The edges whose score is 1, as a list of pairs.

    Raises:
        FormatError: They have what the format has not.
    """
    without_positions(graph, "Edge-Pruning's format")
    _check_split(Shape.of_graph(graph))
    kept = set(binary(flatten(graph, scores), "Edge-Pruning's format"))
    starts = (ONE,) if adds_positions(model) is False else BOTH
    pairs = [
        [start, dest]
        for number, src, dest in Names(graph, src_name, dest_name).edges()
        if number in kept
        for start in (starts if src == ONE else (src,))
    ]
    return json.dumps(pairs, indent=1).encode()
