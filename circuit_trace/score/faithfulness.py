"""How well circuits of growing size do what the whole model does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import CircuitTraceError, InputError
from circuit_trace.graph import Graph, whole_number
from circuit_trace.plan import (
    AblationType,
    ForwardArg,
    PruneScores,
    SourceOutputs,
    unflat_scores,
)
from circuit_trace.progress import tqdm
from circuit_trace.record.curve import Curve
from circuit_trace.score.choose import as_n_edges
from circuit_trace.score.exact import BAR_DELAY
from circuit_trace.score.metrics import Metric, read_metric
from circuit_trace.score.options import check_model
from circuit_trace.score.ranking import CircuitMethod, RankBy, Ranking
from circuit_trace.score.runs import PairRun, check_patched, is_resampled, run_pairs
from circuit_trace.score.share import Share
from circuit_trace.score.unfinished import name_of

if TYPE_CHECKING:
    import plotly.graph_objects as go


Patch = Literal["complement", "circuit"]

ROUNDING = 1e-5
"""A metric that differs by no more than this is the same: patching every edge rounds otherwise."""

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The fractions of all edges at which MIB measures circuits (Mueller et al. 2025). On a graph of 70,000
edges the smallest is 70, where the curve has often ended."""


class Faithfulness(Curve):
    """A metric of circuits of growing size, a number for each prompt. Made by `faithfulness`."""

    def draw(self, file_path: str | Path | None = None, **options: Any) -> go.Figure:
        """Draw faithfulness over the circuit's size; options are those of
        `circuit_trace.visualize.draw_faithfulness`, which draws several curves too.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
        >>> model, pairs = ct.wrap(ct.load_model("bundled")), (CLEAN, CORRUPT, *ANSWERS)
        >>> curve = ct.faithfulness(model, pairs, ct.exact_scores(model, pairs))
        >>> figure = curve.draw()

        Raises:
            FigureError: An option is out of range, or the file cannot be written.
        """
        from circuit_trace.visualize import draw_faithfulness

        return draw_faithfulness(self, file_path=file_path, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: the curve."""
        try:
            picture = self.draw(display_ipython=False)._repr_mimebundle_(include, exclude)
        except CircuitTraceError:  # such as a metric on which faithfulness has no scale
            picture = {}
        return {**picture, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return (
            f"<Faithfulness: {self.metric} of {self.values.shape[1]} prompts at "
            f"{len(self.fractions)} sizes, patch={self.patch!r}>"
        )


class FaithfulnessCurves(dict[str, Faithfulness]):
    """The curves of several score sets by their names, on the same prompts. Made by `faithfulness`."""

    def table(self) -> pd.DataFrame:
        """The rows of all curves, `scores` saying whose."""
        tables = [curve.table().assign(scores=name) for name, curve in self.items()]
        return pd.concat(tables, ignore_index=True)

    def draw(self, file_path: str | Path | None = None, **options: Any) -> go.Figure:
        """Draw all curves in one figure; options are those of
        `circuit_trace.visualize.draw_faithfulness`.

        Raises:
            FigureError: An option is out of range, or the file cannot be written.
        """
        from circuit_trace.visualize import draw_faithfulness

        return draw_faithfulness(self, file_path=file_path, **options)

    def __repr__(self) -> str:
        return f"<FaithfulnessCurves: {', '.join(self)}>"


@overload
def faithfulness(
    model: Engine,
    data: Any,
    scores: PruneScores,
    metric: Metric = ...,
    *,
    sizes: Sequence[float] | Sequence[int] | None = ...,
    patch: Patch = ...,
    circuit: CircuitMethod = ...,
    rank_by: RankBy = ...,
    prune: bool = ...,
    ablation: AblationType = ...,
    patched: SourceOutputs | None = ...,
    bar: bool = ...,
) -> Faithfulness: ...
@overload
def faithfulness(
    model: Engine,
    data: Any,
    scores: Mapping[str, PruneScores],
    metric: Metric = ...,
    *,
    sizes: Sequence[float] | Sequence[int] | None = ...,
    patch: Patch = ...,
    circuit: CircuitMethod = ...,
    rank_by: RankBy = ...,
    prune: bool = ...,
    ablation: AblationType = ...,
    patched: SourceOutputs | None = ...,
    bar: bool = ...,
) -> FaithfulnessCurves: ...
def faithfulness(
    model: Engine,
    data: Any,
    scores: PruneScores | Mapping[str, PruneScores],
    metric: Metric = "logit_diff",
    *,
    sizes: Sequence[float] | Sequence[int] | None = None,
    patch: Patch = "complement",
    circuit: CircuitMethod = "top",
    rank_by: RankBy = "absolute",
    prune: bool = True,
    ablation: AblationType = AblationType.RESAMPLE,
    patched: SourceOutputs | None = None,
    forward: ForwardArg | None = None,
    bar: bool = True,
) -> Faithfulness | FaithfulnessCurves:
    """Measure the metric of circuits of growing size, chosen by score: a pass per size and batch.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model, pairs = ct.wrap(ct.load_model("bundled")), (CLEAN, CORRUPT, *ANSWERS)
    >>> scores = ct.exact_scores(model, pairs)
    >>> curve = ct.faithfulness(model, pairs, scores, sizes=(5, 10, 20, 110), circuit="greedy")
    >>> curve.n_edges, [round(float(f), 2) for f in curve.faithfulness]
    ((5, 10, 20, 110), [0.02, 0.07, 0.21, 1.0])

    Score sets are compared on the same prompts, and in one figure:

    >>> both = {"exact": scores, "eap": ct.score_edges(model, pairs)}
    >>> curves = ct.faithfulness(model, pairs, both)
    >>> curves["eap"].n_edges
    (2, 2, 5, 10, 20, 50, 100, 110)
    >>> figure = curves.draw()

    Args:
        model: A wrapped model.
        data: Pairs of prompts, as for `exact_scores`. Of several processes each runs all of them.
        scores: Of the model's edges; or a mapping from names to several of these.
        metric: As for `exact_scores`.
        sizes: How large the circuits are: numbers of edges where all are whole numbers, else fractions
            of all edges. When omitted, 1, 2, 5, 10, 20, 50, … and all edges.
        patch: "complement" patches every edge but the circuit's, so that only it carries the clean
            prompt; "circuit" patches the circuit alone.
        circuit: As `method` of `ct.circuit`.
        rank_by: As in `ct.circuit`: by |score|, as MIB's `absolute=True`, or by the signed score.
        prune: As in `ct.circuit`.
        ablation: What is patched in.
        patched: What is patched in, from `model.source_outputs`, instead of each batch's own.
        forward: As in `score_edges`.
        bar: Show a progress bar if it takes longer than two seconds.

    Returns:
        A curve; of several score sets a mapping from their names to curves.

    Raises:
        MaskError: The scores do not fit the model, are not finite, or are all zero.
        InputError: Data, metric, sizes or options do not fit, or no prompt's metric changes when
            every edge is patched.
    """
    check_model(model)
    check_patched(model, ablation, patched)
    if patch not in get_args(Patch):
        raise InputError(f"patch must be 'complement' or 'circuit'; got {patch!r}.")
    graph, measure = model.graph, read_metric(metric)
    fractions, counts = _read_sizes(graph, sizes)
    sets = _named(scores)
    circuits = [
        one
        for name, found in sets.items()
        for one in _ranking(graph, name, found, circuit, rank_by).circuits(counts, prune=prune)
    ]
    Share.here(model.wrapped_model).check(data)
    resampled = is_resampled(ablation, patched)
    batches = list(model.pairs_of(data, forward, resampled=resampled))
    runs = (run_pairs(model, one, measure, ablation=ablation, patched=patched) for one in batches)
    with tqdm(
        total=len(batches) * (len(circuits) + 1),
        desc="faithfulness",
        unit="pass",
        delay=BAR_DELAY,
        disable=not bar,
    ) as progress:
        values, clean, corrupt = _measured(runs, circuits, patch, progress)
    name = name_of(metric).rpartition(".")[2]
    n_sizes = len(counts)
    curves = {}
    for place, one in enumerate(sets):
        here = slice(place * n_sizes, (place + 1) * n_sizes)
        n_edges = tuple(int(chosen.sum()) for chosen in circuits[here])
        curves[one] = Faithfulness(
            name, patch, circuit, fractions, n_edges, graph.n_edges, values[here], clean, corrupt
        )
    return FaithfulnessCurves(curves) if None not in curves else curves[None]


def _named(scores: Any) -> dict[str | None, Any]:
    """Several score sets by their names, or one that has none.

    Raises:
        InputError: Some are named by something else than text.
    """
    if not isinstance(scores, Mapping) or not any(
        isinstance(one, Mapping) for one in scores.values()
    ):
        return {None: scores}
    wrong = [name for name in scores if not isinstance(name, str)]
    if wrong:
        raise InputError(f"Name the score sets by text, as in {{'eap': scores}}; got {wrong[0]!r}.")
    return dict(scores)


def _ranking(graph: Graph, name: str | None, scores: Any, *how: Any) -> Ranking:
    try:
        return Ranking.of(graph, scores, *how)
    except CircuitTraceError as error:
        if name is None:
            raise
        raise type(error)(f"Score set {name!r}: {error}") from error


def _measured(
    runs: Iterable[PairRun], circuits: Sequence[Bool[Tensor, " edge"]], patch: Patch, progress: tqdm
) -> tuple[Float[Tensor, "circuit prompt"], Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """The metric of every prompt: of each circuit, with no edge patched and with every edge patched.

    Raises:
        InputError: It is the same in the last two for all prompts, or not finite.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for run in runs:
        corrupt = _metric(run, torch.ones(run.model.n_edges, dtype=torch.bool))
        progress.update()
        values = []
        for chosen in circuits:
            values.append(_metric(run, chosen if patch == "circuit" else ~chosen))
            progress.update()
        found.append((torch.stack(values), run.clean, corrupt))
    values, clean, corrupt = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    if torch.allclose(corrupt, clean, rtol=ROUNDING, atol=ROUNDING):
        raise InputError(
            "The metric of every prompt is the same with no edge patched and with every edge patched: "
            "are clean and corrupt prompts the same, or does the metric look elsewhere?"
        )
    return values, clean, corrupt


def _metric(run: PairRun, patched: Bool[Tensor, " edge"]) -> Float[Tensor, " prompt"]:
    """The metric of each prompt with these edges patched."""
    found = run.masked(unflat_scores(run.model.graph, patched.float()))
    if not found.isfinite().all():
        raise InputError(
            f"The metric is not a finite number when {int(patched.sum()):,} of the "
            f"{len(patched):,} edges are patched. Try another ablation, or look at your metric."
        )
    return found


def usual_sizes(n_all: int) -> tuple[int, ...]:
    """Numbers of edges that are even on a logarithmic scale.

    >>> usual_sizes(110)
    (1, 2, 5, 10, 20, 50, 100, 110)
    """
    powers = range(len(str(n_all)))
    steps = (10**power * digit for power in powers for digit in (1, 2, 5))
    return (*(n for n in steps if n < n_all), n_all)


def _read_sizes(graph: Graph, sizes: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The sizes in ascending order, as fractions of all edges and as numbers of edges.

    Raises:
        InputError: They are none, or out of range.
    """
    if sizes is None:
        sizes = usual_sizes(graph.n_edges)
    given = list(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, str) else []
    if not given:
        raise InputError(
            "sizes must be one or more fractions of all edges, such as (0.01, 0.1, 1.0), or numbers "
            f"of edges, such as (10, 100); got {sizes!r}."
        )
    is_fraction = any(whole_number(size) is None for size in given)
    pairs = {}
    for size in given:
        n = as_n_edges(graph, size, is_fraction=is_fraction, name="each of the sizes")
        pairs[float(size) if is_fraction else n / graph.n_edges] = n
    return tuple(sorted(pairs)), tuple(pairs[fraction] for fraction in sorted(pairs))
