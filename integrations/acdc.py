"""ACDC's subgraph files: every edge of its graph, the child first, and whether it is present.

Its graph has nodes inside of a head and of an MLP that ours has not (`hook_q` between `hook_q_input` and
`hook_result`); they are written as present, and passed over when read. Its embedding is one node, as
ours, or two, tokens and positions.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from circuit_trace.errors import FormatError, FormatWarning
from circuit_trace.graph import DestNode, Graph, Shape, SrcNode
from circuit_trace.graph.transformer import MOST_HEADS
from circuit_trace.plan import PruneScores
from circuit_trace.text import told

from .flat import Names, binary, flatten, scatter, without_positions
from .shape import check_fits, check_no_positions

WHAT = "This ACDC file"

Place = tuple[str, tuple[int | None, ...]]
"""A hook point and the index of a head at it."""

_EMBEDDINGS = ("blocks.0.hook_resid_pre", "hook_embed", "hook_pos_embed")
_INNER = re.compile(
    r"(blocks\.\d+\.)(?:"
    r"attn\.hook_result\n\1attn\.hook_[qkv]|attn\.hook_([qkv])\n\1hook_\2_input|"
    r"hook_mlp_out\n\1(?:hook_mlp_in|hook_resid_mid))"
)
"""A child and a parent between which there is no edge of ours, but the inside of a head or an MLP."""

_HEAD = re.compile(r"blocks\.(\d{1,4})\.hook_q_input")


def _at(hook: str, head: int | None) -> Place:
    return hook, (None,) if head is None else (None, None, head)


def src_place(src: SrcNode) -> Place:
    """Where ACDC has a source's output."""
    if src.layer is None:
        return _at(_EMBEDDINGS[0], None)
    hook = "hook_mlp_out" if src.head is None else "attn.hook_result"
    return _at(f"blocks.{src.layer}.{hook}", src.head)


def dest_place(dest: DestNode) -> Place:
    """Where ACDC has a destination's input: at the module that its scores are named after."""
    return _at(dest.module_name, dest.head)


def _key(place: Place) -> str:
    return f"{place[0]}{list(place[1])}"


def is_acdc(data: Any) -> bool:
    """Whether a dict lists edges by (child, index, parent, index)."""
    return isinstance(data, dict) and any(isinstance(k, tuple) and len(k) == 4 for k in data)


def read_acdc(data: dict[Any, Any], graph: Graph | None) -> PruneScores:
    """1 for each edge that is present.

    Raises:
        FormatError: It is not as ACDC writes it, or for a model of another shape.
    """
    edges = [(_place(key, 0), _place(key, 2), _present(key, said)) for key, said in data.items()]
    ours = [
        (_mlp_as_ours(child), parent, present)
        for child, parent, present in edges
        if not _is_inner(child, parent)
    ]
    graph = _fitting(_shape({(child, parent) for child, parent, _ in ours}), graph)
    names = Names(graph, lambda src: _key(src_place(src)), lambda dest: _key(dest_place(dest)))
    found: dict[int, dict[str, bool]] = {}
    for child, parent, present in ours:
        number = names.number(_key(_embedding_as_ours(parent)), _key(child))
        if found.setdefault(number, {}).setdefault(parent[0], present) is not present:
            raise FormatError(
                f"{WHAT} lists an edge twice, once present and once not: {told(parent)}."
            )
    _warn_of_halves(found)
    return scatter(graph, list(found), [float(any(said.values())) for said in found.values()])


def _fitting(said: Shape | None, graph: Graph | None) -> Graph:
    """The model's graph, if the file is for such a model, or the one that the file says."""
    if graph is not None:
        check_no_positions(graph, WHAT)
        _check_kind(Shape.of_graph(graph))
        if said is not None:
            check_fits(said, graph, WHAT)
        return graph
    if said is None:
        raise FormatError(
            f"{WHAT} lists only some of its graph's edges, so it does not say what model it is for. "
            "Pass the model, as model=."
        )
    return said.graph()


def _place(key: Any, start: int) -> Place:
    """A hook point and its index, from a key of the file."""
    if isinstance(key, tuple) and len(key) == 4:
        hook, index = key[start : start + 2]
        is_index = isinstance(index, tuple) and len(index) in (1, 3)
        if isinstance(hook, str) and is_index and all(map(_is_index, index)):
            return hook, index
    raise FormatError(
        f"{WHAT} must list edges as (child, index, parent, index), such as ('blocks.0.hook_mlp_in', "
        f"(None,), 'blocks.0.attn.hook_result', (None, None, 0)); got {told(key)}."
    )


def _is_index(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < MOST_HEADS)


def _present(key: Any, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FormatError(f"{WHAT} must say True or False of {told(key)}; got {told(value)}.")
    return value


def _is_inner(child: Place, parent: Place) -> bool:
    return child[1] == parent[1] and bool(_INNER.fullmatch(f"{child[0]}\n{parent[0]}"))


def _embedding_as_ours(place: Place) -> Place:
    return (_EMBEDDINGS[0], place[1]) if place[0] in _EMBEDDINGS else place


def _mlp_as_ours(place: Place) -> Place:
    """Early versions read an MLP's input at `hook_resid_mid`."""
    return place[0].replace("hook_resid_mid", "hook_mlp_in"), place[1]


def _shape(ends: set[tuple[Place, Place]]) -> Shape | None:
    """The shape of the model whose every edge is listed; None where some are missing."""
    children = {child for child, _ in ends}
    heads = [(int(m[1]), index[-1]) for hook, index in children if (m := _HEAD.fullmatch(hook))]
    if not heads or None in {head for _, head in heads}:
        return None
    n_layers = 1 + max(layer for layer, _ in heads)
    n_heads = 1 + max(head or 0 for _, head in heads)
    attn_only = not any("mlp" in hook for hook, _ in children)
    shape = Shape(n_layers, n_heads, n_heads, attn_only)
    listed = {(child, _embedding_as_ours(parent)) for child, parent in ends}
    return shape if len(listed) == shape.n_edges else None


def _warn_of_halves(found: dict[int, dict[str, bool]]) -> None:
    """Ours is one embedding; theirs may be two, of which only one is in the circuit."""
    halves = sum(
        any(said.values()) and not (said.get("hook_embed") and said.get("hook_pos_embed"))
        for said in found.values()
        if {"hook_embed", "hook_pos_embed"} & said.keys()
    )
    if halves:
        warnings.warn(
            f"ACDC tells tokens and positions of the embedding apart; {halves:,} edges have one of them "
            "alone. They are read as edges from 'Resid Start', which is both.",
            FormatWarning,
            stacklevel=5,
        )


def write_acdc(scores: PruneScores, graph: Graph) -> bytes:
    """The edges whose score is 1 as present in a listing of all, as ACDC loads it.

    Raises:
        FormatError: They have what the format has not.
    """
    without_positions(graph, "ACDC's format")
    shape = Shape.of_graph(graph)
    _check_kind(shape)
    present = set(binary(flatten(graph, scores), "ACDC's format"))
    listing: OrderedDict[Any, bool] = OrderedDict(
        ((*dest_place(dest), *src_place(src)), number in present)
        for number, src, dest in _numbered(graph)
    )
    listing.update((key, True) for key in _inner_keys(shape))
    saved = io.BytesIO()
    torch.save(listing, saved)
    return saved.getvalue()


def _check_kind(shape: Shape) -> None:
    if shape.parallel or not shape.separate_qkv or shape.n_kv_heads != shape.n_heads:
        raise FormatError(
            "ACDC's graph has an MLP after the heads of its layer, and a query, key and value input "
            f"for each head; this model has {shape}."
        )


def _numbered(graph: Graph) -> Iterator[tuple[int, SrcNode, DestNode]]:
    number = 0
    for dest in graph.dests:
        for src in graph.srcs[: dest.n_sources]:
            yield number, src, dest
            number += 1


def _inner_keys(shape: Shape) -> Iterator[tuple[Any, ...]]:
    for layer in range(shape.n_layers):
        block = f"blocks.{layer}."
        if not shape.attn_only:
            yield *_at(f"{block}hook_mlp_out", None), *_at(f"{block}hook_mlp_in", None)
        for head in range(shape.n_heads):
            for name in "qkv":
                inside = _at(f"{block}attn.hook_{name}", head)
                yield *_at(f"{block}attn.hook_result", head), *inside
                yield *inside, *_at(f"{block}hook_{name}_input", head)
