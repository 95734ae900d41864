"""Patch every edge alone and see what becomes of the metric: what attribution estimates, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.graph import whole_number
from circuit_trace.plan import (
    AblationType,
    EdgesArg,
    ForwardArg,
    PromptPairs,
    SourceOutputs,
    unflat_scores,
)
from circuit_trace.progress import tqdm
from circuit_trace.record import About
from circuit_trace.score.groups import (
    EdgeGroup,
    changes,
    chosen_numbers,
    edge_groups,
    metrics_of_rows,
)
from circuit_trace.score.metrics import Metric, PerPrompt, read_metric, signs_of
from circuit_trace.score.options import check_model
from circuit_trace.score.runs import (
    PairRun,
    check_patched,
    dtype_of_scores,
    is_resampled,
    run_pairs,
)
from circuit_trace.score.scores import EdgeScores
from circuit_trace.score.share import Share
from circuit_trace.score.unfinished import State, Unfinished, digest, mark_of, name_of

ROWS = 64
"""Prompts that run at once: enough to keep a processor busy, with logits that still fit in memory."""

BAR_DELAY = 2.0
"""Seconds before a progress bar shows."""


def exact_scores(
    model: Engine,
    data: Any,
    metric: Metric = "logit_diff",
    *,
    ablation: AblationType = AblationType.RESAMPLE,
    patched: SourceOutputs | None = None,
    edges: EdgesArg | None = None,
    rows: int = ROWS,
    forward: ForwardArg | None = None,
    resume: str | PathLike[str] | None = None,
    bar: bool = True,
) -> EdgeScores:
    """Score each edge by the change of the metric when it alone is patched, measured, not estimated.

    All edges that end in one destination run as rows of one batch, in passes of up to `rows` prompts.
    Several processes share the batches as they do in `score_edges`.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> pairs = (CLEAN, CORRUPT, *ANSWERS)
    >>> scores = ct.exact_scores(model, pairs, "logit_diff", edges="*->Resid End")
    >>> model.srcs[int(scores["blocks.1.hook_resid_post"].argmin())].name
    'A1.0'

    Args:
        model: A wrapped model; with `seq_len`, each edge is scored at each position.
        data: Pairs of prompts, as for `score_edges`. Each prompt counts alike.
        metric: "logit_diff", "kl", "answer_logprob", "loss", or a function of logits and batch.
        ablation: What is patched in.
        patched: What is patched in, from `model.source_outputs`, instead of each batch's own.
        edges: Score these edges only, by names or globs; the others are 0.
        rows: How many prompts a pass runs at most (a batch of more runs one edge a pass).
        forward: As in `score_edges`.
        resume: A file that the sums are kept in while it runs; a run that was killed goes on from it.
        bar: Show a progress bar if it takes longer than two seconds.

    Raises:
        EdgeError: There is no such edge.
        InputError: Data, metric or options do not fit, a score is not finite, or the file to resume
            from is of another run.
        FormatError: The file to resume from cannot be read.
    """
    check_model(model)
    check_patched(model, ablation, patched)
    rows = check_rows(rows)
    measure = read_metric(metric)
    share = Share.here(model.wrapped_model)
    with share.together():
        share.check(data)
        resampled = is_resampled(ablation, patched)
        batches = list(model.pairs_of(data, forward, resampled=resampled))
        numbers = chosen_numbers(model.graph, edges)
        settings: dict[str, Any] = {}
        if resume is not None or share.world > 1:
            settings = _settings(model, batches, metric, ablation, patched, numbers)
        file = Unfinished(share.file(resume), settings)
        sums = _add_up(
            model, batches, numbers, measure, (ablation, patched), rows, file, share, bar
        )
    sums = share.total(sums)
    means = (sums / sum(map(len, batches))).to(dtype_of_scores(model))
    return EdgeScores(
        unflat_scores(model.graph, means),
        graph=model.graph,
        signs=signs_of(metric, is_estimate=False),
    )


def _add_up(
    model: Engine,
    batches: Sequence[PromptPairs],
    numbers: Int[Tensor, " edge"],
    measure: PerPrompt,
    ablated: tuple[AblationType, SourceOutputs | None],
    rows: int,
    file: Unfinished,
    share: Share,
    bar: bool,
) -> Float[Tensor, " edge"]:
    """The effects of all edges in this process' batches, summed over prompts."""
    groups = edge_groups(model.graph, numbers)
    state = file.load(State({"sums": torch.zeros(model.n_edges, dtype=torch.float64)}, 0, 0))
    sums = state.tensors["sums"]
    mine = [number for number in range(len(batches)) if number in share]
    n_done = sum(number < state.batch for number in mine)
    with tqdm(
        total=len(numbers) * len(mine),
        initial=n_done * len(numbers) + sum(map(len, groups[: state.step])),
        desc="patching each edge alone",
        unit="edge",
        delay=BAR_DELAY,
        disable=not bar or share.rank > 0,
    ) as progress:
        for batch, pairs in enumerate(batches):
            if batch in share and batch >= state.batch:
                ablation, patched = ablated
                run = run_pairs(model, pairs, measure, ablation=ablation, patched=patched)
                begun = state if batch == state.batch else None
                if begun is not None:
                    _check_same_clean(begun, run)
                for step in range(begun.step if begun else 0, len(groups)):
                    for part in groups[step].parts(max(1, rows // len(run))):
                        sums[part.numbers] += _effects(run, part, batch).sum(1)
                        progress.update(len(part))
                    is_last = (batch, step) == (mine[-1], len(groups) - 1)
                    tensors = {"sums": sums, "clean": run.clean}
                    file.save(State(tensors, batch, step + 1), now=is_last)
            share.meet(batch, mark_of(file.settings))
    return sums


def _effects(run: PairRun, edges: EdgeGroup, batch: int) -> Float[Tensor, "edge batch"]:
    """How each edge alone changes the metric of each prompt."""
    found = metrics_of_rows(run, edges.dest, changes(run, edges)) - run.clean
    wrong = ~found.isfinite().all(1)
    if wrong.any():
        edge = run.model.graph.edge_at(int(edges.numbers[wrong][0]))
        raise InputError(
            f"The metric of batch {batch} is not a finite number when {str(edge)!r} is patched. Look "
            "at that pass: model.trace(clean, corrupt=corrupt, edges=[...])."
        )
    return found


def _settings(
    model: Engine,
    batches: Sequence[PromptPairs],
    metric: Any,
    ablation: AblationType,
    patched: SourceOutputs | None,
    numbers: Int[Tensor, " edge"],
) -> dict[str, Any]:
    """What two runs must agree in for one to go on from the other."""
    outputs = [] if patched is None else [site.code for site in patched.sites]
    return {
        "configuration of the model": About.of(model.wrapped_model, model.cfg).config_hash,
        "state of the model's weights": digest(model.wrapped_model.parameters()),
        "seq_len": model.seq_len,
        "choice of edges": f"{len(numbers)} of {model.n_edges} ({digest([numbers])})",
        "metric": name_of(metric),
        "ablation": ablation.name if patched is None else f"patched= {digest(outputs)}",
        "set of prompts": digest(tensor for pairs in batches for tensor in pairs.tensors),
    }


def _check_same_clean(state: State, run: PairRun) -> None:
    """A function may be changed under the same name; on clean prompts that shows at once."""
    then = state.tensors.get("clean")
    if then is not None and not torch.allclose(then, run.clean, rtol=1e-4, atol=1e-6):
        raise InputError(
            "The metric of the clean prompts is not what it was in the run to resume: the metric or "
            "the model has changed. Name another file."
        )


def check_rows(rows: Any) -> int:
    """How many prompts a pass may run.

    Raises:
        InputError: It is no whole number above 0.
    """
    number = whole_number(rows)
    if number is None or number < 1:
        raise InputError(f"rows must be a whole number of prompts, 1 or more; got {rows!r}.")
    return number
