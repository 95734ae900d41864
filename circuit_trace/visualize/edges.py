"""Which edges a picture shows, and what it says about each: from a trace, or from scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import torch

from circuit_trace.graph import Edge, Graph
from circuit_trace.plan import PruneScores, check_scores, is_circuit
from circuit_trace.record import (
    EdgeFlow,
    EdgeNumbers,
    Pair,
    Record,
    Tokens,
    arrow,
    is_rounding,
    top_tokens,
)
from circuit_trace.visualize.colors import (
    BETWEEN,
    CURRENT,
    NEGATIVE,
    PATCHED,
    POSITIVE,
    ZERO,
)
from circuit_trace.visualize.text import (
    BREAK,
    escape,
    escape_name,
    mask_text,
    number,
    token_label,
    vector_text,
)
from circuit_trace.visualize.view import View

MOST_SHORT_LABELS = 40
"""Labels are written on so many links of a figure, the widest; all of them show on hover."""
N_VALUES = 4
"""How many values of a vector a label shows."""
N_TOKENS = 5
"""How many tokens that an output promotes, and suppresses, are listed on hover."""


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


def scored_edges(
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
    circuit = is_circuit(checked)
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
    view: View, threshold: float, max_edges: int | None = None, among: Set[int] | None = None
) -> list[DrawnEdge]:
    """The edges of a traced pass whose |mask| reaches the threshold, and those named at mask 0, or
    those kept where all else was patched, labelled with what flowed along them. Too many are cut down
    to those of the highest ranks."""
    trace = view.trace
    found = live_numbers(trace, threshold)
    edges = [trace.graph.edge_at(one) for one in found if among is None or one in among]
    if max_edges is not None and len(edges) > max_edges:
        ranks = _ranks(view.numbers(edges), view)
        edges = [edges[place] for place in strongest(ranks, max_edges)]
    return label_live(view, edges)


def live_numbers(trace: Record, threshold: float) -> list[int]:
    """The numbers of the edges of a traced pass that a picture shows."""
    if trace.keeps:
        return list(trace.edges.numbers)
    above, _ = numbers_above(trace.graph, trace.masks, threshold)
    return sorted({*above, *_named_at_zero(trace)})


def _named_at_zero(trace: Record) -> set[int]:
    """The edges that were asked for by name and not patched: what they carry was asked for too."""
    named = {number for plan in trace.plans for number in plan.named}
    return named - {number for plan in trace.plans for number in plan.patched_numbers()}


def _ranks(numbers: EdgeNumbers, view: View) -> torch.Tensor:
    """The widths, and by a hair those that change more before those that change less."""
    widths = widths_of(numbers, view).double().abs().nan_to_num(0.0, 0.0, 0.0)
    change = numbers.current_norm if numbers.pair is None else numbers.delta_norm
    change = change.double().nan_to_num(0.0, 0.0, 0.0)
    return widths + 1e-9 * widths.max().clamp_min(1e-9) * change / change.max().clamp_min(1e-30)


@dataclass(frozen=True)
class _Row:
    """What is known of one edge of a traced pass: its numbers by name, the first values that it
    carried, where its numbers are taken, its tokens where they are asked for, and what a function of
    the user's says of it."""

    edge: Edge
    numbers: dict[str, float]
    values: str
    at: int
    tokens: tuple[Tokens, Tokens] | None
    own: str | None

    @property
    def mask(self) -> float:
        """How far the edge is patched."""
        return self.numbers["mask"]


def label_live(view: View, edges: Sequence[Edge]) -> list[DrawnEdge]:
    """Label edges with their norms, the first values of what is shown, and their mask."""
    if not edges:
        return []
    numbers = view.numbers(edges, N_VALUES)
    widths = torch.nan_to_num(widths_of(numbers, view), nan=0.0, posinf=0.0, neginf=0.0).tolist()
    rows = _rows(view, edges, numbers)
    ranks, is_kept = _ranks(numbers, view).tolist(), view.trace.keeps and view.width == "mask"
    return [
        DrawnEdge(
            row.edge,
            1 - width if is_kept else width,
            _label(view, row, numbers.pair),
            edge_tag(row.edge) + _short(view, row),
            _sign_color(width) if view.width == "projection" else _mask_color(row.mask),
            rank,
        )
        for row, width, rank in zip(rows, widths, ranks, strict=True)
    ]


def _rows(view: View, edges: Sequence[Edge], numbers: EdgeNumbers) -> list[_Row]:
    columns, total = _columns(numbers), view.trace.current.sites[0].d_model
    values, at = numbers.received_values.tolist(), numbers.at.tolist()
    tokens: Sequence[tuple[Tokens, Tokens] | None] = [None] * len(edges)
    if view.label == "tokens":
        tokens = top_tokens(view.trace, edges, view.batch_idx, N_TOKENS, numbers.pair, numbers.at)

    def own(edge: Edge) -> str | None:
        if not callable(view.label):
            return None
        return escape(str(view.label(EdgeFlow(view.trace, edge))))

    return [
        _Row(
            edge,
            {name: column[place] for name, column in columns.items()},
            vector_text(values[place], total),
            at[place],
            tokens[place],
            own(edge),
        )
        for place, edge in enumerate(edges)
    ]


def _label(view: View, row: _Row, pair: Pair | None) -> str:
    """All that is said about an edge, a thing a line."""
    what = "patched" if row.mask == 1 else "current" if row.mask == 0 else "received"
    lines = [
        escape_name(row.edge.name),
        f"{what} {row.values}",
        *_norms_lines(row.numbers, pair),
    ]
    if where := place_of(row.edge, row.at):
        lines.append(f"numbers of {where}")
    if view.direction is not None:
        name = escape(view.direction.name)
        lines.append(f"projection {_change(row.numbers, 'projection')} on {name}")
    if row.own is not None:
        lines.append(row.own)
    elif row.tokens is not None:
        lines += _token_lines(*row.tokens)
    return BREAK.join([*lines, f"mask {mask_text(row.mask)}"])


def _short(view: View, row: _Row) -> str:
    """What is written on an edge: what the view's label says, and where and how far it is patched."""
    if row.own is not None:
        return row.own
    if row.tokens is not None:
        said = _short_tokens(*row.tokens)
    elif view.label == "values":
        said = row.values
    else:
        said = _SHORT[str(view.label)](row.numbers)
    if row.edge.seq_idx is None and row.at >= 0:
        said += f" @{row.at}"
    return said if row.mask in (0, 1) else f"{said} ({mask_text(row.mask)})"


def place_of(edge: Edge, at: int) -> str:
    """Where the numbers of an edge of all positions are taken."""
    if edge.seq_idx is not None:
        return ""
    return f"position {at}" if at >= 0 else "each prompt's last position"


def beside_scores(view: View, scored: Sequence[DrawnEdge]) -> list[DrawnEdge]:
    """The edges of drawn scores as a traced pass has them, as wide as their scores."""
    return [
        replace(one, weight=score.weight, rank=score.rank)
        for one, score in zip(label_live(view, [one.edge for one in scored]), scored, strict=True)
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


def widths_of(numbers: EdgeNumbers, view: View) -> torch.Tensor:
    """What an edge's width stands for; 0 where a change is rounding alone."""
    if view.width == "received":
        return numbers.received_norm
    if view.width == "mask":
        return numbers.mask
    width = numbers.delta_norm if view.width == "delta" else numbers.projected
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


def _mask_color(mask: float) -> str:
    return PATCHED if mask == 1 else CURRENT if mask == 0 else BETWEEN


def _sign_color(weight: float) -> str:
    return POSITIVE if weight > 0 else NEGATIVE if weight < 0 else ZERO


def edge_tag(edge: Edge) -> str:
    """The input of the destination node that the edge enters, "Q ", where it has several."""
    name, unit = edge.dest.name, edge.dest.unit
    return escape_name(name[len(unit) :].lstrip(".")) + " " if name != unit else ""
