"""Read what a user asks to patch, by edge or as `PruneScores`, into one mask per module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real

import torch
from torch import Tensor

from circuit_trace.errors import EdgeError, MaskError
from circuit_trace.graph import DestModule, Edge, EdgeSpec, Graph

PruneScores = dict[str, Tensor]
"""From a destination module's name to its edges' scores, `[seq?] [head?] [n_sources]`."""

EdgesArg = str | Edge | Iterable[EdgeSpec] | Mapping[EdgeSpec, "float | Tensor"]


def score_shape(module: DestModule, seq_len: int | None) -> tuple[int, ...]:
    """The shape of a module's scores or masks."""
    return module.shape if seq_len is None else (seq_len, *module.shape)


def masks_from_edges(graph: Graph, edges: EdgesArg) -> tuple[PruneScores, list[int]]:
    """Turn named edges into masks (1, or the mapping's value) and the numbers of those named.

    Only the modules that an edge ends in get a mask. Values may be tensors that require grad.
    """
    if isinstance(edges, str | Edge):
        edges = (edges,)
    if not isinstance(edges, Iterable):
        raise EdgeError(
            f"Cannot read {edges!r} as edges: expected names, Edge objects or pairs (seq_idx, name), "
            "or a mapping from them to masks."
        )
    pairs = edges.items() if isinstance(edges, Mapping) else ((edge, 1.0) for edge in edges)
    values: dict[int, float | Tensor] = {}
    for spec, value in pairs:
        checked = _check_value(spec, value)
        values.update((number, checked) for number in graph.numbers(spec))
    named = sorted(values)
    by_module: dict[str, list[tuple[int, float | Tensor]]] = {}
    for number in named:
        module = graph.module_by_name[graph.edge_at(number).dest.module_name]
        position, in_position = divmod(number, graph.n_edges_per_position)
        index = position * module.n_edges + in_position - module.offset
        by_module.setdefault(module.name, []).append((index, values[number]))
    masks = {
        name: _scatter(graph.module_by_name[name], graph.seq_len, entries)
        for name, entries in by_module.items()
    }
    return masks, named


def _check_value(spec: EdgeSpec, value: object) -> float | Tensor:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        if not torch.isfinite(value.detach()).item():
            raise MaskError(
                f"The mask of the edge {spec!r} is {value.item()}: expected a finite number."
            )
        return value.reshape(()) if value.requires_grad else float(value)
    if isinstance(value, Real) and abs(float(value)) <= torch.finfo(torch.float32).max:
        return float(value)
    raise MaskError(
        f"The mask of the edge {spec!r} is {value!r}: expected a finite number "
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
        values = tensor if tensor.is_floating_point() else tensor.float()
        if not torch.isfinite(values.detach()).all():
            where = (~torch.isfinite(values.detach())).flatten().nonzero()[0].item()
            raise MaskError(
                f"{what} of {name!r} hold {_edge_of(graph, name, int(where))} = "
                f"{values.flatten()[int(where)].item()}: expected finite numbers."
            )
        checked[name] = values
    return checked


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
