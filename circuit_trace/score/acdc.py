"""ACDC's search (Conmy et al. 2023): from the end backwards, leave out what the metric can spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode
from circuit_trace.hooks import Session
from circuit_trace.plan import (
    AblationType,
    ForwardArg,
    PruneScores,
    SourceOutputs,
    make_plan,
    unflat_scores,
)
from circuit_trace.progress import tqdm
from circuit_trace.score.exact import BAR_DELAY, ROWS, check_rows
from circuit_trace.score.groups import EdgeGroup, changes, edge_groups, metrics_of_rows
from circuit_trace.score.metrics import Metric, read_metric
from circuit_trace.score.options import check_model
from circuit_trace.score.reach import leads_on
from circuit_trace.score.runs import PairRun, check_patched, is_resampled, run_pairs
from circuit_trace.score.scores import EdgeScores
from circuit_trace.score.share import Share

Better = Literal["lower", "higher"]

_BETTER: dict[Any, Better] = {
    "kl": "lower",
    "loss": "lower",
    "logit_diff": "higher",
    "answer_logprob": "higher",
}
"""Which way the metrics that have a name are good."""


@dataclass(frozen=True, eq=False)
class AcdcResult:
    """What the search has left: `circuit` is 1 for the edges that stay and 0 for those patched.

    `metric` is its mean over the prompts with all other edges patched, `clean` that of the whole
    model, and `n_passes` how many forward passes the search took (of up to `rows` prompts each).
    """

    circuit: PruneScores
    n_edges: int
    metric: float
    clean: float
    n_passes: int

    def __repr__(self) -> str:
        return (
            f"<AcdcResult: {self.n_edges} edges, metric {self.metric:.4g} (clean {self.clean:.4g}), "
            f"{self.n_passes} passes>"
        )


def acdc(
    model: Engine,
    data: Any,
    metric: Metric = "kl",
    *,
    threshold: float,
    better: Better | None = None,
    ablation: AblationType = AblationType.RESAMPLE,
    patched: SourceOutputs | None = None,
    rows: int = ROWS,
    forward: ForwardArg | None = None,
    bar: bool = True,
) -> AcdcResult:
    """Search a circuit by ACDC: patch each edge in turn and leave it patched if that costs little.

    Destinations are visited from the end of the stream backwards, and the edges into each from the
    last source to the first. An edge stays patched if the metric gets worse by less than `threshold`
    against the circuit as it is then. Edges into a node whose own edges are all gone are patched
    without a pass, since nothing feels them (but where heads share a norm before the stream, as in
    Gemma 2 and OLMo 2). What the edges into one destination would do one after
    the other runs as rows of one batch, as long as each goes: the result is that of a pass per edge.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> found = ct.acdc(model, (CLEAN, CORRUPT), threshold=0.5)
    >>> found.n_edges, found.n_passes < model.n_edges
    (34, True)

    Args:
        model: A wrapped model.
        data: As for `exact_scores`; every batch is run for every decision, and kept in memory. Of
            several processes each searches on its own.
        metric: As for `exact_scores`.
        threshold: What leaving out one edge may cost, in the metric's units; above 0.
        better: Whether "lower" or "higher" values of your own metric are better.
        ablation: What is patched in.
        patched: What is patched in, from `model.source_outputs`, instead of each batch's own.
        rows: How many prompts a pass runs at most.
        forward: As in `score_edges`.
        bar: Show a progress bar if it takes longer than two seconds.

    Raises:
        InputError: Data, metric or options do not fit, or the metric is not finite on the way.
    """
    check_model(model)
    check_patched(model, ablation, patched)
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, Real)
        or not 0 < threshold < float("inf")
    ):
        raise InputError(
            f"threshold must be a number above 0, in the metric's units; got {threshold!r}."
        )
    sign = _sign(metric, better)
    measure = read_metric(metric)
    Share.here(model.wrapped_model).check(data)
    runs = [
        run_pairs(model, pairs, measure, ablation=ablation, patched=patched)
        for pairs in model.pairs_of(data, forward, resampled=is_resampled(ablation, patched))
    ]
    search = _Search(runs, float(threshold), sign, check_rows(rows))
    with tqdm(
        total=model.n_edges, desc="ACDC", unit="edge", delay=BAR_DELAY, disable=not bar
    ) as progress:
        groups = edge_groups(model.graph, torch.arange(model.n_edges))
        for group in reversed(groups):
            search.visit(group)
            progress.update(len(group))
            progress.set_postfix(kept=int(search.kept.sum()), refresh=False)
    clean = float(torch.cat([run.clean for run in runs]).mean())
    circuit = EdgeScores(unflat_scores(model.graph, search.kept.float()), graph=model.graph)
    return AcdcResult(circuit, int(search.kept.sum()), search.value, clean, search.n_passes)


class _Search:
    """The circuit so far, and the mean of its metric over all prompts."""

    def __init__(self, runs: Sequence[PairRun], threshold: float, sign: float, rows: int) -> None:
        self.runs = runs
        self.threshold = threshold
        self.sign = sign
        self.rows = rows
        self.model = runs[0].model
        self.kept = torch.ones(self.model.n_edges, dtype=torch.bool)
        self.value = float(torch.cat([run.clean for run in runs]).mean())
        self.n_passes = 0

    def visit(self, group: EdgeGroup) -> None:
        """Decide on the edges into one destination."""
        undecided = self._felt(group)
        self.kept[group.numbers] = False
        self.kept[undecided.numbers] = True
        gone = undecided[:0]
        most = max(1, self.rows // max(map(len, self.runs)))
        size = most
        while len(undecided):
            candidates, later = undecided[:size], undecided[size:]
            values = self._values(gone, candidates)
            n_gone = self._n_spared(values)
            gone = _joined(gone, candidates[:n_gone])
            self.kept[gone.numbers] = False
            if n_gone:
                self.value = float(values[n_gone - 1])
            # The rows after an edge that stays were in vain: after one, try fewer at once.
            is_all = n_gone == len(candidates)
            size = min(most, 2 * size) if is_all else max(1, n_gone)
            undecided = later if is_all else _joined(candidates[n_gone + 1 :], later)

    def _felt(self, group: EdgeGroup) -> EdgeGroup:
        """Those of the edges that the end of the stream can feel, the last first."""
        felt = group
        # Through the scale of a norm that they share, others feel a head whose own edges are gone.
        if all(site.norm is None for site in self.model.anatomy.sources):
            alive = leads_on(self.model.graph, self.kept)[group.dest.module_name]
            at = torch.zeros_like(group.numbers) if group.positions is None else group.positions
            felt = group[alive[:, group.dest.slot][at].nonzero()[:, 0]]
        return felt[torch.arange(len(felt) - 1, -1, -1)]

    def _n_spared(self, values: Float[Tensor, " edge"]) -> int:
        """How many edges, from the first, can go one after the other."""
        before = torch.cat([values.new_tensor([self.value]), values[:-1]])
        costs = self.sign * (values - before)
        stays = (~(costs < self.threshold)).nonzero()
        return int(stays[0]) if len(stays) else len(values)

    def _values(self, gone: EdgeGroup, candidates: EdgeGroup) -> Float[Tensor, " edge"]:
        """The metric with the first, the first two, … of the candidates patched too."""
        total = torch.zeros(len(candidates), dtype=torch.float64)
        for run in self.runs:
            change = changes(run, candidates).cumsum(0)
            if len(gone):
                change = change + changes(run, gone).sum(0)
            others = self._others(run, gone.dest, len(candidates))
            total += others.during(partial(metrics_of_rows, run, gone.dest, change)).sum(1)
            self.n_passes += 1
        if not total.isfinite().all():
            edge = self.model.graph.edge_at(int(candidates.numbers[~total.isfinite()][0]))
            raise InputError(
                f"The metric is not a finite number when {str(edge)!r} is patched beside the edges "
                "that are gone. Try another ablation, or look at your metric."
            )
        return total / sum(map(len, self.runs))

    def _others(self, run: PairRun, dest: DestNode, n_rows: int) -> Session:
        """Hooks that patch the edges that are gone into other destinations, in each row."""
        gone = unflat_scores(self.model.graph, (~self.kept).float())
        own = gone[dest.module_name]
        if self.model.graph.module_by_name[dest.module_name].has_heads:
            own[..., dest.slot, :] = 0
        else:
            own.zero_()
        plan = make_plan(self.model.graph, _repeated(run.patched, n_rows), None, gone)
        return Session(self.model.wrapped_model, self.model.anatomy, (plan,), reads=False)


def _repeated(patched: SourceOutputs, times: int) -> SourceOutputs:
    """The same outputs for so many copies of the batch, one after the other."""
    sites = tuple(
        replace(site, code=site.code.repeat(times, 1, 1, 1))
        if site.code.shape[0] == patched.batch
        else site
        for site in patched.sites
    )
    real = patched.real
    if real is not None and real.shape[0] == patched.batch:
        real = real.repeat(times, 1)
    return replace(patched, sites=sites, batch=patched.batch * times, real=real)


def _joined(first: EdgeGroup, second: EdgeGroup) -> EdgeGroup:
    positions = None
    if first.positions is not None and second.positions is not None:
        positions = torch.cat([first.positions, second.positions])
    return EdgeGroup(
        first.dest,
        torch.cat([first.numbers, second.numbers]),
        torch.cat([first.sources, second.sources]),
        positions,
    )


def _sign(metric: Any, better: Any) -> float:
    """1 where the metric gets worse by growing, -1 where by falling."""
    if better is None and isinstance(metric, str):
        better = _BETTER.get(metric, "lower")  # `read_metric` refuses a name that is none
    if better not in ("lower", "higher"):
        raise InputError(
            "Say whether lower or higher values of your metric are better: better='lower' or "
            f"better='higher'; got {better!r}."
        )
    return 1.0 if better == "lower" else -1.0
