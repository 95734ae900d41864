"""EAP-IG's circuit files, JSON and `.pt`, which the MIB benchmark's circuit track takes as well.

Its graph has a query, key and value input per query head, an MLP in every layer and no token
positions. Its `input` is the embedding without positions, where `Resid Start` includes them.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import FormatError, FormatWarning
from circuit_trace.graph import DestNode, Graph, Shape, SrcNode
from circuit_trace.plan import PruneScores, unflat_scores
from circuit_trace.text import told

from .embedding import warn_without_positions
from .flat import Names, check_finite, flatten, number_of, scatter, without_positions
from .groups import Groups, check_groups, from_groups, to_groups
from .shape import check_fits, letter

WHAT = "This EAP-IG file"


def src_name(src: SrcNode) -> str:
    """EAP-IG's name of a source: `input`, `a5.h2`, `m3`."""
    if src.layer is None:
        return "input"
    return f"m{src.layer}" if src.head is None else f"a{src.layer}.h{src.head}"


def dest_name(dest: DestNode) -> str:
    """EAP-IG's name of a destination, as it ends an edge: `a7.h1<q>`, `m3`, `logits`."""
    if dest.layer is None:
        return "logits"
    head = f"a{dest.layer}.h{dest.head}<{letter(dest).lower()}>"
    return f"m{dest.layer}" if dest.head is None else head


def is_eap_ig(data: Any) -> bool:
    """Whether a dict, of JSON or of a `.pt`, is EAP-IG's."""
    return isinstance(data, dict) and "cfg" in data and ("edges" in data or "edges_scores" in data)


def read_eap_ig(
    data: dict[Any, Any],
    model: Any,
    graph: Graph | None,
    *,
    in_graph: bool = False,
    groups: Groups | None = None,
) -> PruneScores:
    """Scores, or with `in_graph` 1 for each edge that belongs to the circuit.

    Raises:
        FormatError: It is not as EAP-IG writes it, or for a model of another shape.
    """
    shape = _shape(data["cfg"])
    if graph is not None:
        check_fits(shape, graph, WHAT, grouped=True)
    theirs = shape.graph()
    read = _read_tensors if "edges_scores" in data else _read_edges
    scores = read(data, theirs, in_graph)
    if graph is not None:
        scores = to_groups(scores, theirs, graph, groups)
    warn_without_positions(scores, model, "EAP-IG", "'input'")
    return {name: (s != 0).float() for name, s in scores.items()} if in_graph else scores


def _shape(cfg: Any) -> Shape:
    if not isinstance(cfg, dict) or not {"n_layers", "n_heads"} <= cfg.keys():
        raise FormatError(
            f"{WHAT} must say the model's shape in 'cfg' (n_layers, n_heads, parallel_attn_mlp); got "
            f"{told(cfg)}."
        )
    return Shape.of_numbers(
        {
            "n_layers": cfg["n_layers"],
            "n_heads": cfg["n_heads"],
            "n_kv_heads": cfg["n_heads"],
            "parallel": cfg.get("parallel_attn_mlp", False),
        }
    )


def _read_edges(data: dict[Any, Any], theirs: Graph, in_graph: bool) -> PruneScores:
    edges = data["edges"]
    if not isinstance(edges, dict):
        raise FormatError(
            f"{WHAT} must list its edges in a dict from names such as 'm0->logits'; got "
            f"{type(edges).__name__}."
        )
    names = Names(theirs, src_name, dest_name)
    numbers: list[int] = []
    values: list[float] = []
    key = "in_graph" if in_graph else "score"
    for name, said in edges.items():
        if not isinstance(said, dict) or key not in said:
            raise FormatError(
                f"The edge {told(name)} must have a {key!r}; got {told(said)}. "
                + ("" if in_graph else "in_graph=True reads which edges belong to the circuit.")
            )
        src, _, dest = name.partition("->") if isinstance(name, str) else (name, "", "")
        numbers.append(names.number(src, dest))
        values.append(
            _truth(said[key], name) if in_graph else number_of(said[key], f"the edge {told(name)}")
        )
    return scatter(theirs, numbers, values)


def _truth(value: Any, name: Any) -> float:
    if isinstance(value, int | float) and value in (0, 1):
        return float(value)
    raise FormatError(
        f"'in_graph' of the edge {told(name)} is {told(value)}: expected true or false."
    )


@dataclass(frozen=True)
class _Layout:
    """Where each edge lies in EAP-IG's matrices: a row per source, a column per destination."""

    graph: Graph

    @property
    def size(self) -> tuple[int, int]:
        return len(self.graph.srcs), len(self.graph.dests)

    def pick(self, matrix: Tensor) -> Tensor:
        """A row of the graph's edges."""
        parts = []
        column = 0
        for module in self.graph.modules:
            width = len(module.dests)
            parts.append(matrix[: module.n_sources, column : column + width].T.flatten())
            column += width
        return torch.cat(parts)

    def lay(self, flat: Tensor) -> Tensor:
        """The matrix of a row of the graph's edges, 0 where no edge can be."""
        matrix = torch.zeros(self.size, dtype=flat.dtype)
        column = 0
        for module in self.graph.modules:
            width = len(module.dests)
            rows = flat[module.offset : module.offset + module.n_edges].view(width, -1)
            matrix[: module.n_sources, column : column + width] = rows.T
            column += width
        return matrix


def _read_tensors(data: dict[Any, Any], theirs: Graph, in_graph: bool) -> PruneScores:
    layout, key = _Layout(theirs), "edges_in_graph" if in_graph else "edges_scores"
    matrix = data.get(key)
    if not isinstance(matrix, Tensor) or tuple(matrix.shape) != layout.size or matrix.is_complex():
        got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise FormatError(
            f"{WHAT} must have {key!r} as a tensor [sources, destinations] of {layout.size}; got {got}."
        )
    _check_nodes(data, theirs)
    matrix = matrix.detach() if matrix.is_floating_point() else matrix.float()
    real = layout.lay(torch.ones(theirs.n_edges, dtype=torch.bool))
    _check_no_others(matrix.masked_fill(real, 0) != 0, theirs, key, in_graph)
    flat = layout.pick(matrix)
    if in_graph and not ((flat == 0) | (flat == 1)).all():
        raise FormatError(f"{key!r} must be true or false for every edge.")
    check_finite(theirs, flat)
    return unflat_scores(theirs, flat)


def _check_nodes(data: Mapping[Any, Any], theirs: Graph) -> None:
    """Rows and columns in another order would give every score to a wrong edge."""
    expected = {
        "src_nodes": [src_name(src) for src in theirs.srcs],
        "dst_nodes": [dest_name(dest) for dest in theirs.dests],
    }
    for key, names in expected.items():
        given = data.get(key, names)
        if not isinstance(given, list | tuple) or list(given) != names:
            raise FormatError(
                f"{WHAT} must list {key!r} as {names[0]!r}, …, {names[-1]!r}, {len(names)} in all, "
                f"in the order of its matrices; got {told(given)}."
            )


def _check_no_others(others: Tensor, theirs: Graph, key: str, in_graph: bool) -> None:
    """EAP-IG itself marks whole rows as in the graph when it chooses by node; it never scores them."""
    if not others.any():
        return
    row, column = others.nonzero()[0].tolist()
    pairs = (
        f"{WHAT} has in {key!r} {int(others.sum()):,} pairs between which no edge can be, such as "
        f"{src_name(theirs.srcs[row])!r} to {dest_name(theirs.dests[column])!r}"
    )
    if in_graph:
        warnings.warn(f"{pairs}. They are left out.", FormatWarning, stacklevel=5)
        return
    raise FormatError(
        f"{pairs}: it is damaged, or its 'cfg' is not that of its model (parallel_attn_mlp?). Where "
        "these scores mean nothing, set them to 0."
    )


def write_eap_ig(
    scores: PruneScores,
    model: Any,
    graph: Graph,
    *,
    tensors: bool,
    in_graph: PruneScores | None = None,
    groups: Groups | None = None,
) -> bytes:
    """The scores as EAP-IG's JSON, or with `tensors` as its `.pt`.

    Raises:
        FormatError: They have what the format has not.
    """
    without_positions(graph, "EAP-IG's format")
    shape = Shape.of_graph(graph)
    if shape.attn_only or not shape.separate_qkv:
        raise FormatError(
            "EAP-IG's graph has an MLP in every layer and tells the query, key and value of a head "
            f"apart; this model has {shape}."
        )
    if shape.n_kv_heads != shape.n_heads:
        check_groups(groups, shape)
    warn_without_positions(scores, model, "EAP-IG", "'input'")
    theirs = replace(shape, n_kv_heads=shape.n_heads).graph()
    layout = _Layout(theirs)
    matrix = layout.lay(
        flatten(theirs, from_groups(unflat_scores(graph, flatten(graph, scores)), shape, groups))
    )
    chosen = scores if in_graph is None else in_graph
    kept = from_groups(unflat_scores(graph, flatten(graph, chosen)), shape, "same")
    mask = layout.lay(flatten(theirs, kept)) != 0
    # Without a model its width is not known; EAP-IG asks for the key, and needs it for neurons alone.
    width = getattr(getattr(model, "cfg", None), "d_model", 0)
    cfg = {
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "parallel_attn_mlp": shape.parallel,
        "d_model": int(width),
    }
    pack = _tensors if tensors else _json
    return pack(theirs, cfg, matrix, mask, _nodes(theirs, mask))


def _nodes(theirs: Graph, mask: Tensor) -> Tensor:
    """Which sources belong: those that an edge leaves and, but for the embedding, one reaches."""
    reached = {
        dest.unit for dest, some in zip(theirs.dests, mask.any(0).tolist(), strict=True) if some
    }
    left = mask.any(1).tolist()
    return torch.tensor(
        [
            leaves and (src.layer is None or src.name in reached)
            for src, leaves in zip(theirs.srcs, left, strict=True)
        ]
    )


def _tensors(
    theirs: Graph, cfg: dict[str, Any], matrix: Tensor, mask: Tensor, nodes: Tensor
) -> bytes:
    saved = io.BytesIO()
    torch.save(
        {
            "cfg": cfg,
            "src_nodes": [src_name(src) for src in theirs.srcs],
            "dst_nodes": [dest_name(dest) for dest in theirs.dests],
            "edges_scores": matrix,
            "edges_in_graph": mask,
            "nodes_in_graph": nodes,
        },
        saved,
    )
    return saved.getvalue()


def _json(theirs: Graph, cfg: dict[str, Any], matrix: Tensor, mask: Tensor, nodes: Tensor) -> bytes:
    layout = _Layout(theirs)
    values, belongs = layout.pick(matrix).tolist(), layout.pick(mask).tolist()
    named = zip(map(src_name, theirs.srcs), nodes.tolist(), strict=True)
    text = json.dumps(
        {
            "cfg": cfg,
            "nodes": {name: {"in_graph": kept} for name, kept in [*named, ("logits", True)]},
            "edges": {
                f"{src}->{dest}": {"score": values[number], "in_graph": belongs[number]}
                for number, src, dest in Names(theirs, src_name, dest_name).edges()
            },
        }
    )
    return text.encode()
