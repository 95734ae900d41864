"""Read what a user asks to patch, by edge or as `PruneScores`, into one mask per module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import EdgeError, MaskError, MaskWarning
from circuit_trace.graph import (
    DestModule,
    Edge,
    EdgeName,
    Edges,
    EdgeSpec,
    Graph,
    Name,
    NodeSpec,
    SrcNode,
    whole_number,
)
from circuit_trace.warn import warn

PruneScores = dict[str, Tensor]
"""From a destination module's name to its edges' scores, `[seq?] [head?] [n_sources]`."""

EdgesArg = EdgeSpec | Iterable[EdgeSpec] | Mapping[EdgeSpec, "float | Tensor"]

NodesArg = NodeSpec | Iterable[NodeSpec] | Mapping[NodeSpec, "float | Tensor"]
"""Sources, all of whose edges are meant."""


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What masks and scores are kept in; anything else becomes float32."""


ROUNDING = 1e-6
"""How far outside 0 to 1 a mask may be that was computed to be in it."""


def score_shape(module: DestModule, seq_len: int | None) -> tuple[int, ...]:
    """The shape of a module's scores or masks."""
    return module.shape if seq_len is None else (seq_len, *module.shape)


def mask_makers(
    graph: Graph, edges: EdgesArg | None, nodes: NodesArg | None = None
) -> tuple[dict[str, Callable[[], Tensor]], list[int]]:
    """Functions that make the masks of named edges, and the numbers of those named.

    Only the modules that an edge ends in get a mask. Values may be tensors that require grad; a mask
    holds the values that they have when it is made. An edge named by itself takes its mask from
    there, not from its source.
    """
    values: dict[int, float | Tensor] = {}
    if nodes is not None:
        values.update(_values(graph, nodes, graph.read_source, graph.numbers_from, "node"))
    if edges is not None:
        values.update(_values(graph, edges, graph.read, graph.numbers_of, "edge"))
    named = sorted(values)
    by_module: dict[str, list[tuple[int, float | Tensor]]] = {}
    for number in named:
        module = graph.module_by_name[graph.edge_at(number).dest.module_name]
        position, in_position = divmod(number, graph.n_edges_per_position)
        index = position * module.n_edges + in_position - module.offset
        by_module.setdefault(module.name, []).append((index, values[number]))
    makers = {
        name: partial(_scatter, graph.module_by_name[name], graph.seq_len, entries)
        for name, entries in by_module.items()
    }
    return makers, named


def select(graph: Graph, edges: EdgesArg | Edges) -> Edges:
    """The edges that are named, each once, in the graph's order; edges of another graph are looked
    up by their names.

    Raises:
        EdgeError: There is no such edge.
    """
    if isinstance(edges, Edges) and edges.graph.is_like(graph):
        return edges
    return Edges(graph, sorted(_values(graph, edges, graph.read, graph.numbers_of, "edge")))


Read = TypeVar("Read", EdgeName, Name)


def _values(
    graph: Graph,
    given: Any,
    read: Callable[[Any], Read],
    numbers: Callable[[Read], Sequence[int]],
    what: str,
) -> dict[int, float | Tensor]:
    """The mask of every edge that is meant, by its number; one named more closely, in full rather
    than by a glob and at its position rather than at all, takes its mask from there."""
    if isinstance(given, str | Edge | SrcNode) or _is_positioned(given):
        given = (given,)
    if not isinstance(given, Iterable) or isinstance(given, Tensor):
        raise EdgeError(
            f"Cannot read {given!r} as {what}s: expected names, {what.capitalize()} objects or "
            "pairs (seq_idx, name), or a mapping from them to masks."
        )
    pairs = given.items() if isinstance(given, Mapping) else ((spec, 1.0) for spec in given)
    by_rank: dict[tuple[bool, bool], dict[int, float | Tensor]] = {}
    for spec, value in pairs:
        checked = _check_value(spec, value, what)
        name = read(spec)
        values = by_rank.setdefault(name.rank, {})
        for number in numbers(name):
            first = values.setdefault(number, checked)
            if first is not checked and (isinstance(first, Tensor) or first != checked):
                raise MaskError(
                    f"The edge {str(graph.edge_at(number))!r} is named twice, with the masks "
                    f"{first} and {checked}: give each edge one mask."
                )
    return {
        number: value for _, values in sorted(by_rank.items()) for number, value in values.items()
    }


def _is_positioned(given: Any) -> bool:
    """Whether this is one pair (seq_idx, name) rather than several names."""
    return isinstance(given, tuple) and len(given) == 2 and whole_number(given[0]) is not None


def _check_value(spec: object, value: object, what: str) -> float | Tensor:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        if not torch.isfinite(value.detach().float()).item():
            raise MaskError(
                f"The mask of the {what} {spec!r} is {value.item()}: expected a finite number "
                "within float32."
            )
        return value.reshape(()) if value.requires_grad else float(value)
    limit = torch.finfo(torch.float32).max
    if isinstance(value, Real) and -limit <= value <= limit:  # pyright: ignore[reportOperatorIssue]
        return float(value)
    raise MaskError(
        f"The mask of the {what} {spec!r} is {value!r}: expected a finite number "
        "(0 = current, 1 = patched) or a tensor of one."
    )


def _scatter(
    module: DestModule, seq_len: int | None, entries: list[tuple[int, float | Tensor]]
) -> Tensor:
    shape = score_shape(module, seq_len)
    index = torch.tensor([number for number, _ in entries])
    values = [value for _, value in entries]
    if any(isinstance(value, Tensor) for value in values):
        filled = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
    else:
        filled = torch.tensor(values, dtype=torch.float32)
    flat = torch.zeros(torch.Size(shape).numel())
    return flat.index_put((index,), filled).view(shape)


def check_scores(graph: Graph, scores: object, what: str) -> PruneScores:
    """Return masks or scores as float tensors of the graph's shapes, or say which is wrong.

    Raises:
        MaskError: Not a mapping, an unknown module, a wrong shape, or a value that is not finite.
    """
    if not isinstance(scores, Mapping):
        raise MaskError(
            f"{what} must be PruneScores, a dict from a module's name (such as "
            f"{graph.modules[0].name!r}) to a tensor; got {type(scores).__name__}."
        )
    checked: PruneScores = {}
    for name, tensor in scores.items():
        if name not in graph.module_by_name:
            raise MaskError(
                f"{what} name the module {name!r}, which this model's graph does not have. "
                f"Expected some of: {_listing(list(graph.module_by_name))}."
            )
        expected = score_shape(graph.module_by_name[name], graph.seq_len)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != expected:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise MaskError(
                f"{what} of {name!r} have the wrong shape: expected {expected} "
                f"([seq, head, source], each where it applies), got {got}."
                f"{_seq_hint(graph, got, expected)}"
            )
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.is_meta:
            raise MaskError(
                f"{what} of {name!r} must be a dense tensor of real numbers; got {tensor.dtype}, "
                f"{tensor.layout} on {tensor.device}."
            )
        values = tensor if tensor.dtype in _FLOATS else tensor.float()
        finite = torch.isfinite(values.detach().float())
        if not finite.all():
            where = (~finite).flatten().nonzero()[0].item()
            raise MaskError(
                f"{what} of {name!r} hold {_edge_of(graph, name, int(where))} = "
                f"{values.flatten()[int(where)].item()}: expected finite numbers."
            )
        checked[name] = values
    return checked


def warn_of_scores(graph: Graph, masks: PruneScores) -> None:
    """Warn of masks below 0 or above 1, as raw scores are; while they learn they may leave that range."""
    learns = torch.is_grad_enabled()
    fixed = {n: mask.float() for n, mask in masks.items() if not (learns and mask.requires_grad)}
    outside = {name: (mask - 0.5).abs() > 0.5 + ROUNDING for name, mask in fixed.items()}
    n_outside = sum(int(where.sum()) for where in outside.values())
    if not n_outside:
        return
    n_masks = n_not_zero(fixed)
    name = next(name for name, where in outside.items() if where.any())
    first = int(outside[name].flatten().nonzero()[0])
    warn(
        f"{n_outside:,} of {n_masks:,} masks are outside 0 to 1, first {_edge_of(graph, name, first)} = "
        f"{fixed[name].flatten()[first]:.4g}. A mask says how far an edge is patched, from 0 (current) "
        "to 1 (patched); beyond, the change is exaggerated. Scores are no masks: "
        "ct.circuit(scores, n_edges=...) makes masks of them. Where this is meant, ignore "
        "ct.MaskWarning.",
        MaskWarning,
    )


def n_not_zero(scores: PruneScores) -> int:
    """How many edges have a score, or a mask, other than 0."""
    return sum(int(score.count_nonzero()) for score in scores.values())


def is_circuit(scores: PruneScores) -> bool:
    """Whether scores say nothing but which edges are in a circuit: all are 1 or 0, and several 1."""
    are_flags = all(bool(((score == 0) | (score == 1)).all()) for score in scores.values())
    return are_flags and n_not_zero(scores) > 1


def flat_scores(graph: Graph, scores: PruneScores) -> Float[Tensor, " edge"]:
    """The score of every edge by its number, 0 where none is given, on the CPU; in float32, or
    float64 where some are."""
    lead = graph.seq_len or 1
    blocks = []
    for module in graph.modules:
        given = scores.get(module.name, torch.zeros(lead, module.n_edges)).detach().cpu()
        wide = given.to(torch.promote_types(given.dtype, torch.float32))
        blocks.append(wide.reshape(lead, module.n_edges))
    return torch.cat(blocks, dim=1).reshape(-1)


def unflat_scores(graph: Graph, flat: Float[Tensor, " edge"]) -> PruneScores:
    """The scores, one tensor per module, of a row with one per edge."""
    rows = flat.view(graph.seq_len or 1, -1)
    return {
        module.name: rows[:, module.offset : module.offset + module.n_edges]
        .reshape(score_shape(module, graph.seq_len))
        .clone()
        for module in graph.modules
    }


def _seq_hint(graph: Graph, got: object, expected: tuple[int, ...]) -> str:
    if graph.seq_len is None and isinstance(got, tuple) and got[1:] == expected:
        return f" They have token positions: wrap the model with seq_len={got[0]}."
    if graph.seq_len is not None and got == expected[1:]:
        return " They have no token positions: wrap the model without seq_len."
    return ""


def _edge_of(graph: Graph, module_name: str, flat: int) -> str:
    module = graph.module_by_name[module_name]
    position, in_module = divmod(flat, module.n_edges)
    return str(graph.edge_at(position * graph.n_edges_per_position + module.offset + in_module))


def _listing(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
