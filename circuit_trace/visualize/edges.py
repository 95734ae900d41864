"""Which edges a picture shows, and what it says about each: from a trace, or from scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import PruneScores, check_scores
from circuit_trace.record import (
    BatchIdx,
    Direction,
    EdgeFlow,
    EdgeNumbers,
    Pair,
    Tokens,
    arrow,
    edge_numbers,
    is_rounding,
    top_tokens,
)
from circuit_trace.trace import Trace
from circuit_trace.visualize.text import (
    BREAK,
    escape,
    escape_name,
    mask_text,
    number,
    token_label,
    vector_text,
)

N_VALUES = 4
"""How many values of a vector a label shows."""
N_TOKENS = 5
"""How many tokens that an output promotes, and suppresses, are listed on hover."""

PATCHED = "#D55E00"  # vermilion, from the colour-blind safe palette of Okabe & Ito
BETWEEN = "#E69F00"  # orange, from the same
CURRENT = "#6E6E6E"
POSITIVE = "#005AC8"
NEGATIVE = "#CC1E1E"
ZERO = "#808080"
# What changed between two pictures, from the same palette.
APPEARED, GREW, SHRANK, VANISHED = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
TURNED = "#CC79A7"

LIVE_LEGEND = (
    (PATCHED, "patched (mask 1)"),
    (BETWEEN, "another mask"),
    (CURRENT, "current (mask 0)"),
)
PROJECTION_LEGEND = (
    (POSITIVE, "the change adds along {direction}"),
    (NEGATIVE, "the change takes away along {direction}"),
    (ZERO, "no change along it"),
)
CURRENT_PROJECTION_LEGEND = (
    (POSITIVE, "points along {direction}"),
    (NEGATIVE, "points against {direction}"),
    (ZERO, "neither"),
)
SCORE_LEGEND = ((POSITIVE, "positive score"), (NEGATIVE, "negative score"), (ZERO, "zero"))
CIRCUIT_LEGEND = ((POSITIVE, "in the circuit"),)


@dataclass(frozen=True)
class DrawnEdge:
    """An edge in a picture: its weight (mask or score), its full and short label, its colour, and
    how much it matters beside others: its width, and of equal widths its change."""

    edge: Edge
    weight: float
    label: str
    short: str
    color: str
    rank: float


Label = Literal["norms", "cosine", "projection", "tokens", "values"] | Callable[[EdgeFlow], str]
"""What the label of an edge of a traced pass says."""
Width = Literal["mask", "delta", "received", "projection"]
"""What the width of an edge of a traced pass stands for."""


@dataclass(frozen=True, eq=False)
class LiveStyle:
    """What the edges of a traced pass say and how wide they are, what outputs are projected on, which
    two are compared, and at which position of a model without positions (see `edge_numbers`)."""

    label: Label = "norms"
    width: Width = "mask"
    direction: Direction | None = None
    pair: Pair | None = None
    at: Any = None

    def numbers(
        self, trace: Trace, edges: Sequence[Edge], batch_idx: BatchIdx, n_values: int = 0
    ) -> EdgeNumbers:
        """The numbers of some edges, as this style looks at them."""
        return edge_numbers(trace, edges, batch_idx, n_values, self.direction, self.pair, self.at)


PLAIN = LiveStyle()


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


def strongest(strengths: Sequence[float] | torch.Tensor, most: int | None) -> list[int]:
    """The places of the strongest edges in a list, in its order; of equals the earlier ones."""
    if most is None or len(strengths) <= most:
        return list(range(len(strengths)))
    order = (
        torch.as_tensor(strengths, dtype=torch.float64)
        .abs()
        .nan_to_num()
        .sort(descending=True, stable=True)
        .indices
    )
    return sorted(order[:most].tolist())


def _of(
    among: Set[int] | None, numbers: list[int], weights: list[float]
) -> tuple[list[int], list[float]]:
    if among is None:
        return numbers, weights
    kept = [place for place, number in enumerate(numbers) if number in among]
    return [numbers[place] for place in kept], [weights[place] for place in kept]


def hidden_counts(
    graph: Graph, found: Sequence[int], drawn: Sequence[DrawnEdge]
) -> dict[int | None, int]:
    """How many of the edges with these numbers are not drawn, at each position."""
    numbers = torch.tensor(found, dtype=torch.long)
    shown = torch.tensor([graph.number(one.edge) for one in drawn], dtype=torch.long)
    positions = numbers[~torch.isin(numbers, shown)] // graph.n_edges_per_position
    counts = torch.bincount(positions, minlength=graph.seq_len or 1).tolist()
    is_whole = graph.seq_len is None
    return {None if is_whole else at: count for at, count in enumerate(counts) if count}


def score_numbers(graph: Graph, scores: PruneScores | None, threshold: float) -> list[int]:
    """The numbers of the edges whose |score| reaches the threshold."""
    return numbers_above(graph, check_scores(graph, scores, "The prune scores"), threshold)[0]


def score_legend(scores: PruneScores | None) -> tuple[tuple[str, str], ...]:
    """What the colours of scores mean; what their signs do to the metric where they know it."""
    signs = getattr(scores, "signs", None)
    if signs is None:
        return SCORE_LEGEND
    return (POSITIVE, escape(signs[0])), (NEGATIVE, escape(signs[1])), (ZERO, "zero")


def is_circuit(weights: Sequence[float]) -> bool:
    """Whether scores say nothing but which edges are in a circuit."""
    return len(weights) > 1 and all(weight == 1 for weight in weights)


def score_edges(
    graph: Graph,
    scores: PruneScores,
    threshold: float,
    max_edges: int | None = None,
    among: Set[int] | None = None,
) -> list[DrawnEdge]:
    """The edges of given scores, of those `among` these numbers: width |score|, colour by sign, no
    activations."""
    checked = check_scores(graph, scores, "The prune scores")
    numbers, weights = _of(among, *numbers_above(graph, checked, threshold))
    circuit = is_circuit(weights)
    drawn = []
    for place in strongest(weights, max_edges):
        edge, weight = graph.edge_at(numbers[place]), weights[place]
        label = BREAK.join([escape_name(edge.name), f"score {mask_text(weight)}"])
        drawn.append(
            DrawnEdge(
                edge,
                weight,
                label,
                edge_tag(edge).strip() if circuit else edge_tag(edge) + mask_text(weight),
                _sign_color(weight),
                abs(weight),
            )
        )
    return drawn


def live_edges(
    trace: Trace,
    threshold: float,
    batch_idx: BatchIdx,
    style: LiveStyle = PLAIN,
    max_edges: int | None = None,
    among: Set[int] | None = None,
) -> list[DrawnEdge]:
    """The edges of a traced pass whose |mask| reaches the threshold, and those named at mask 0, or
    those kept where all else was patched, labelled with what flowed along them. Too many are cut down
    to those of the highest ranks."""
    found = live_numbers(trace, threshold)
    edges = [trace.graph.edge_at(one) for one in found if among is None or one in among]
    if max_edges is not None and len(edges) > max_edges:
        ranks = _ranks(style.numbers(trace, edges, batch_idx), style)
        edges = [edges[place] for place in strongest(ranks, max_edges)]
    return label_live(trace, edges, batch_idx, style)


def live_numbers(trace: Trace, threshold: float) -> list[int]:
    """The numbers of the edges of a traced pass that a picture shows."""
    if trace.keeps:
        return list(trace.edges.numbers)
    above, _ = numbers_above(trace.graph, trace.masks, threshold)
    return sorted({*above, *_named_at_zero(trace)})


def _named_at_zero(trace: Trace) -> set[int]:
    """The edges that were asked for by name and not patched: what they carry was asked for too."""
    named = {number for plan in trace.plans for number in plan.named}
    return named - {number for plan in trace.plans for number in plan.patched_numbers()}


def _ranks(numbers: EdgeNumbers, style: LiveStyle) -> torch.Tensor:
    """The widths, and by a hair those that change more before those that change less."""
    widths = widths_of(numbers, style).double().abs().nan_to_num(0.0, 0.0, 0.0)
    change = numbers.current_norm if numbers.pair is None else numbers.delta_norm
    change = change.double().nan_to_num(0.0, 0.0, 0.0)
    return widths + 1e-9 * widths.max().clamp_min(1e-9) * change / change.max().clamp_min(1e-30)


def label_live(
    trace: Trace, edges: list[Edge], batch_idx: BatchIdx, style: LiveStyle = PLAIN
) -> list[DrawnEdge]:
    """Label edges with their norms, the first values of what is shown, and their mask."""
    if not edges:
        return []
    numbers = style.numbers(trace, edges, batch_idx, N_VALUES)
    values, at = numbers.received_values.tolist(), numbers.at.tolist()
    total = trace.current.sites[0].d_model
    widths = torch.nan_to_num(widths_of(numbers, style), nan=0.0, posinf=0.0, neginf=0.0).tolist()
    columns, ranks = _columns(numbers), _ranks(numbers, style).tolist()
    tokens = None
    if style.label == "tokens":
        tokens = top_tokens(trace, edges, batch_idx, N_TOKENS, numbers.pair, numbers.at)
    drawn = []
    for row, edge in enumerate(edges):
        numbers_of = {name: column[row] for name, column in columns.items()}
        weight = numbers_of["mask"]
        what = "patched" if weight == 1 else "current" if weight == 0 else "received"
        first = vector_text(values[row], total)
        where = place_of(edge, at[row])
        lines = [escape_name(edge.name), f"{what} {first}", *_norms_lines(numbers_of, numbers.pair)]
        if where:
            lines.append(f"numbers of {where}")
        if style.direction is not None:
            name = escape(style.direction.name)
            lines.append(f"projection {_change(numbers_of, 'projection')} on {name}")
        if callable(style.label):
            own = escape(str(style.label(trace.edge(edge.name, edge.seq_idx))))
            lines.append(own)
        elif tokens is not None:
            own = _short_tokens(*tokens[row])
            lines += _token_lines(*tokens[row])
        elif style.label == "values":
            own = first
        else:
            own = _SHORT[style.label](numbers_of)
        if where and at[row] >= 0 and not callable(style.label):
            own += f" @{at[row]}"
        if weight not in (0, 1) and not callable(style.label):
            own += f" ({mask_text(weight)})"
        lines.append(f"mask {mask_text(weight)}")
        by_sign = style.width == "projection"
        color = PATCHED if weight == 1 else CURRENT if weight == 0 else BETWEEN
        color = _sign_color(widths[row]) if by_sign else color
        short = edge_tag(edge) + own
        width = 1 - widths[row] if trace.keeps and style.width == "mask" else widths[row]
        drawn.append(DrawnEdge(edge, width, BREAK.join(lines), short, color, ranks[row]))
    return drawn


def place_of(edge: Edge, at: int) -> str:
    """Where the numbers of an edge of all positions are taken."""
    if edge.seq_idx is not None:
        return ""
    return f"position {at}" if at >= 0 else "each prompt's last position"


def beside_scores(
    trace: Trace, scored: Sequence[DrawnEdge], batch_idx: BatchIdx, style: LiveStyle = PLAIN
) -> list[DrawnEdge]:
    """The edges of drawn scores as a traced pass has them, as wide as their scores."""
    trace.check_batch_idx(batch_idx)
    live = label_live(trace, [one.edge for one in scored], batch_idx, style)
    return [
        replace(one, weight=score.weight, rank=score.rank)
        for one, score in zip(live, scored, strict=True)
    ]


def _short_tokens(raised: Tokens, lowered: Tokens) -> str:
    if not raised:
        return "no change"
    signs = (("+", raised), ("−", lowered))
    return " ".join(
        sign + token_label(tokens[0][0].strip() or tokens[0][0]) for sign, tokens in signs
    )


def _token_lines(raised: Tokens, lowered: Tokens) -> list[str]:
    if not raised:
        return ["changes no logit"]
    return [
        f"{what} " + ", ".join(f"{token_label(token)} {number(by)}" for token, by in tokens)
        for what, tokens in (("promotes", raised), ("suppresses", lowered))
    ]


def _columns(numbers: EdgeNumbers) -> dict[str, list[float]]:
    """The numbers of all edges as plain floats; those that a pass has not are left out."""
    columns: dict[str, torch.Tensor | None] = {"current_norm": numbers.current_norm}
    if numbers.pair is not None:
        columns = {
            "clean_norm": numbers.clean_norm,
            **columns,
            "patched_norm": numbers.patched_norm,
            "received_norm": numbers.received_norm,
            "before_norm": numbers.before_norm,
            "delta_norm": numbers.delta_norm,
            "cosine": numbers.cosine,
        }
    columns |= {
        "mask": numbers.mask,
        "after_norm": numbers.after_norm,
        "before_projection": numbers.before_projection,
        "after_projection": numbers.after_projection,
    }
    return {name: column.tolist() for name, column in columns.items() if column is not None}


def widths_of(numbers: EdgeNumbers, style: LiveStyle) -> torch.Tensor:
    """What an edge's width stands for; 0 where a change is rounding alone."""
    if style.width == "received":
        return numbers.received_norm
    if style.width == "mask":
        return numbers.mask
    width = numbers.delta_norm if style.width == "delta" else numbers.projected
    if numbers.pair is None:
        return width
    return width.masked_fill(
        is_rounding(numbers.delta_norm, numbers.before_norm, numbers.after_norm), 0.0
    )


def _change(numbers: dict[str, float], what: str) -> str:
    """A number of the two that are compared, or of the only one there is."""
    after = number(numbers[f"after_{what}"])
    before = numbers.get(f"before_{what}")
    return after if before is None else f"{number(before)}→{after}"


def _norms_lines(numbers: dict[str, float], pair: Pair | None) -> list[str]:
    norms = [
        f"‖{name}‖ {number(numbers[f'{name}_norm'])}"
        for name in ("clean", "current", "patched", "received")
        if f"{name}_norm" in numbers
    ]
    lines = [", ".join(norms)]
    if pair is not None:
        delta, cosine = (number(numbers[name]) for name in ("delta_norm", "cosine"))
        lines.append(f"{arrow(pair)}: ‖Δ‖ {delta}, cosine {cosine}")
    return lines


def _short_norms(numbers: dict[str, float]) -> str:
    delta = numbers.get("delta_norm")
    return _change(numbers, "norm") + ("" if delta is None else f" Δ{number(delta)}")


_SHORT: dict[str, Callable[[dict[str, float]], str]] = {
    "norms": _short_norms,
    "cosine": lambda numbers: number(numbers.get("cosine", math.nan)),
    "projection": lambda numbers: _change(numbers, "projection"),
}


def _sign_color(weight: float) -> str:
    return POSITIVE if weight > 0 else NEGATIVE if weight < 0 else ZERO


def edge_tag(edge: Edge) -> str:
    """The input of the destination node that the edge enters, "Q ", where it has several."""
    name, unit = edge.dest.name, edge.dest.unit
    return escape_name(name[len(unit) :].lstrip(".")) + " " if name != unit else ""
