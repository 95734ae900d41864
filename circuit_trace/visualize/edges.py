"""Which edges a picture shows, and what it says about each: from a trace, or from scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.trace import Trace, edge_numbers
from circuit_trace.visualize.text import BREAK, escape_name, mask_text, number, vector_text

N_VALUES = 4
"""How many values of a vector a label shows."""

ALPHA = 0.42
PATCHED = (
    f"rgba(213, 94, 0, {ALPHA})"  # vermilion, from the colour-blind safe palette of Okabe & Ito
)
BETWEEN = f"rgba(230, 159, 0, {ALPHA})"  # orange
CURRENT = f"rgba(110, 110, 110, {ALPHA})"
POSITIVE = f"rgba(0, 90, 200, {ALPHA})"  # blue
NEGATIVE = f"rgba(204, 30, 30, {ALPHA})"  # red
ZERO = f"rgba(128, 128, 128, {ALPHA})"

LIVE_LEGEND = (
    (PATCHED, "patched (mask 1)"),
    (BETWEEN, "another mask"),
    (CURRENT, "current (mask 0)"),
)
SCORE_LEGEND = ((POSITIVE, "positive score"), (NEGATIVE, "negative score"), (ZERO, "zero"))


@dataclass(frozen=True)
class DrawnEdge:
    """An edge in a picture: its weight (mask or score), its full and short label, its colour."""

    edge: Edge
    weight: float
    label: str
    short: str
    color: str


def numbers_above(
    graph: Graph, scores: PruneScores, threshold: float
) -> tuple[list[int], list[float]]:
    """The numbers and weights of the edges with |weight| ≥ threshold, in the graph's order."""
    numbers: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for module in graph.modules:
        if module.name not in scores:
            continue
        flat = scores[module.name].detach().float().reshape(-1).cpu()
        found = (flat.abs() >= threshold).nonzero()[:, 0]
        position, in_module = found // module.n_edges, found % module.n_edges
        numbers.append(position * graph.n_edges_per_position + module.offset + in_module)
        weights.append(flat[found])
    if not numbers:
        return [], []
    joined = torch.cat(numbers)
    order = joined.argsort()
    return joined[order].tolist(), torch.cat(weights)[order].tolist()


def score_edges(graph: Graph, scores: PruneScores, threshold: float) -> list[DrawnEdge]:
    """The edges of given scores: width |score|, colour by sign, no activations."""
    checked = check_scores(graph, scores, "The prune scores")
    drawn = []
    for edge_number, weight in zip(*numbers_above(graph, checked, threshold), strict=True):
        edge = graph.edge_at(edge_number)
        color = POSITIVE if weight > 0 else NEGATIVE if weight < 0 else ZERO
        label = BREAK.join([escape_name(edge.name), f"score {mask_text(weight)}"])
        drawn.append(DrawnEdge(edge, weight, label, _tag(edge) + mask_text(weight), color))
    return drawn


def live_edges(trace: Trace, threshold: float, batch_idx: int) -> list[DrawnEdge]:
    """The edges of a traced pass: width |mask|, labelled with what flowed along them."""
    found, _ = numbers_above(trace.graph, trace.masks, threshold)
    return label_live(trace, [trace.graph.edge_at(one) for one in found], batch_idx)


def label_live(trace: Trace, edges: list[Edge], batch_idx: int) -> list[DrawnEdge]:
    """Label edges with their norms, the first values of what is shown, and their mask."""
    if not edges:
        return []
    numbers = edge_numbers(trace, edges, batch_idx, N_VALUES)
    current, patched = numbers.current_values, numbers.patched_values
    mask = numbers.mask[:, None]
    received = current
    if patched is not None:  # what an edge does not carry must not show, be it infinite
        mixed = (1 - mask) * current + mask * patched
        received = torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))
    width = trace.current.sites[0].d_model
    drawn = []
    for row, edge in enumerate(edges):
        weight = float(numbers.mask[row])
        what = "patched" if weight == 1 else "current" if weight == 0 else "received"
        now, instead = float(numbers.current_norm[row]), float(numbers.patched_norm[row])
        norms = f"‖current‖ {number(now)}"
        short = number(now)
        if patched is not None:
            norms += f", ‖patched‖ {number(instead)}"
            short += f"→{number(instead)}"
        if weight not in (0, 1):
            short += f" ({mask_text(weight)})"
        where = "" if edge.seq_idx is not None else " (last position; norms over all)"
        label = BREAK.join(
            [
                escape_name(edge.name),
                f"{what} {vector_text(received[row].tolist(), width)}{where}",
                norms,
                f"mask {mask_text(weight)}",
            ]
        )
        color = PATCHED if weight == 1 else CURRENT if weight == 0 else BETWEEN
        drawn.append(DrawnEdge(edge, weight, label, _tag(edge) + short, color))
    return drawn


def _tag(edge: Edge) -> str:
    """The input of the destination node that the edge enters, "Q ", where it has several."""
    name, unit = edge.dest.name, edge.dest.unit
    return escape_name(name[len(unit) :].lstrip(".")) + " " if name != unit else ""
