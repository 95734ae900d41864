"""The methods by which edges are scored: each takes a batch and returns its sum over prompts.

A score estimates the change of the metric when that edge alone is patched (mask 0 → 1). The gradient
methods are one formula, `(P_s − C_s) · ∂metric/∂input_d` with C_s from the clean run, and differ in
where the gradient is taken: they are means over a path from the clean run to the patched one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.hooks import Session
from circuit_trace.plan import (
    AblationType,
    PromptPairs,
    SourceOutputs,
    make_plan,
    score_shape,
)
from circuit_trace.score.differences import Differences
from circuit_trace.score.gradients import (
    Change,
    Gradients,
    check_any,
    gradients,
    logits_of,
    summed,
)
from circuit_trace.score.metrics import PerPrompt
from circuit_trace.score.pull_back import PullBack
from circuit_trace.score.runs import patched_in

RUNS_AT_ONCE = 8
"""Gradients of so many runs are added up before they meet the sources' differences: each keeps the
streams that layers read."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of every batch; `path` holds the points of a path, 0 being clean and 1 patched."""

    model: Engine
    metric: PerPrompt
    path: tuple[float, ...]
    ablation: AblationType
    patched: SourceOutputs | None
    mask_value: float

    def patched_into(self, batch: PromptPairs) -> SourceOutputs:
        """What is patched into a batch, of its shape."""
        return patched_in(self.model, batch, self.ablation, self.patched)

    def gradients(
        self, batch: PromptPairs, clean_logits: Tensor | None = None, change: Change | None = None
    ) -> Gradients:
        """Run a batch forward and backward."""
        return gradients(self.model, batch, self.metric, clean_logits=clean_logits, change=change)


Method = Callable[[Task, PromptPairs], Float[Tensor, "pos edge"]]
"""Scores of a batch, summed over its prompts; one row where positions are not told apart."""


@dataclass(frozen=True, eq=False)
class _Clean:
    """The clean run of a batch: its logits, and where its sources differ from the patched ones."""

    logits: Tensor
    differences: Differences


def _clean(task: Task, batch: PromptPairs, run: Gradients | None = None) -> _Clean:
    """From a pass with gradients, or from one of its own without."""
    patched = task.patched_into(batch)
    if run is not None:
        outputs, logits = run.outputs, run.logits
    else:
        record = task.model.run_plain(batch.clean_prompts)
        outputs, logits = tuple(record.outputs), record.logits
    if logits is None:
        raise InputError(
            "The model returned no logits. Leave options such as return_type out of forward=."
        )
    batch.warn_of_twins(logits)
    return _Clean(logits, Differences(task.model.graph, outputs, patched.filled(outputs)))


def _on_path(task: Task, batch: PromptPairs, path: tuple[float, ...]) -> Tensor:
    """The gradient's mean over inputs on the way from the clean `Resid Start` to the patched one."""
    first = task.gradients(batch) if 0 in path else None
    clean = _clean(task, batch, first)

    def run_at(point: float) -> Gradients:
        if point == 0 and first is not None:
            return first
        return task.gradients(batch, clean.logits, _moved(task, clean, 0, point))

    return _mean(task, clean, map(run_at, path))


def _on_paths_of_sites(task: Task, batch: PromptPairs) -> Tensor:
    """The gradient's mean over runs in which one site's outputs are on the way, a site at a time.

    What is added to them leaves their own gradient as it is; EAP-IG's code replaces them, which cuts it.
    """
    clean = _clean(task, batch)
    changes = (
        _moved(task, clean, site, point)
        for site in range(len(task.model.anatomy.sources))
        for point in task.path
    )
    runs = (task.gradients(batch, clean.logits, change) for change in changes)
    return _mean(task, clean, runs)


def _mean(task: Task, clean: _Clean, runs: Iterator[Gradients]) -> Float[Tensor, "pos edge"]:
    """The scores by the mean of several runs' gradients."""
    found: list[Tensor] = []
    n_runs, back = 0, PullBack(task.model.anatomy.dests)
    for run in runs:
        n_runs += 1
        back.add(run)
        del run  # before the next one runs
        if back.n_runs == RUNS_AT_ONCE:
            found.append(clean.differences.products(back))
            back = PullBack(task.model.anatomy.dests)
    if back.n_runs:
        found.append(clean.differences.products(back))
    return sum(found[1:], found[0]) / n_runs


def _moved(task: Task, clean: _Clean, number: int, point: float) -> Change:
    """A site's outputs moved from clean towards patched, at the last place where they are by
    themselves: behind the norm between the site and the stream, where there is one."""
    site = task.model.anatomy.sources[number]
    if site.norm is not None:
        change = clean.differences.of_site(number).sum(0)
        where = site.norm.after
    else:
        change, where = clean.differences.code_of_site(number), site.point
    if change is None:
        raise InputError(
            f"What is patched into {site.names[0]!r} comes from other weights than this model's, so "
            "its heads cannot be moved there step by step: use another method, or patched= from "
            "this model."
        )
    added = change * (point / site.scale)
    return where, partial(_plus, added)


def _plus(added: Tensor, tensor: Tensor) -> Tensor:
    return tensor + added.to(tensor).reshape(tensor.shape)


def _eap(task: Task, batch: PromptPairs) -> Tensor:
    return _on_path(task, batch, (0.0,))


def _eap_ig(task: Task, batch: PromptPairs) -> Tensor:
    return _on_path(task, batch, task.path)


def _clean_corrupted(task: Task, batch: PromptPairs) -> Tensor:
    return _on_path(task, batch, (0.0, 1.0))


def _mask_gradient(task: Task, batch: PromptPairs) -> Tensor:
    """The gradient of the masks themselves, every one at `mask_value`, by the engine that patches."""
    model, patched = task.model, task.patched_into(batch)
    clean_logits = None
    if task.mask_value != 0:
        clean_logits = model.run_plain(batch.clean_prompts).logits
    code = patched.sites[0].code
    masks = {
        module.name: torch.full(
            score_shape(module, model.seq_len),
            task.mask_value,
            dtype=torch.promote_types(code.dtype, torch.float32),
            requires_grad=True,
        )
        for module in model.graph.modules
    }
    plan = make_plan(model.graph, patched, None, masks)
    session = Session(model.wrapped_model, model.anatomy, (plan,), reads=False)
    prompts = batch.clean_prompts
    logits = logits_of(
        session.during(lambda: model.wrapped_model(prompts.tokens, **prompts.forward))
    )
    batch.warn_of_twins(logits if clean_logits is None else clean_logits)
    total = summed(task.metric(logits, batch, clean_logits))
    found = torch.autograd.grad(total, list(masks.values()), allow_unused=True)
    check_any(found)
    lead = model.seq_len or 1
    filled = (
        torch.zeros_like(mask) if gradient is None else gradient
        for mask, gradient in zip(masks.values(), found, strict=True)
    )
    return torch.cat([gradient.reshape(lead, -1) for gradient in filled], dim=1)


def _magnitude(task: Task, batch: PromptPairs) -> Tensor:
    """‖P_s − C_s‖: the same for every edge of a source, whatever the metric."""
    norms = _clean(task, batch).differences.norms()
    return torch.cat(
        [
            norms[:, : module.n_sources].repeat(1, len(module.dests))
            for module in task.model.graph.modules
        ],
        dim=1,
    )


METHODS: dict[str, Method] = {
    "eap": _eap,
    "eap-ig": _eap_ig,
    "eap-ig-activations": _on_paths_of_sites,
    "clean-corrupted": _clean_corrupted,
    "mask-gradient": _mask_gradient,
    "magnitude": _magnitude,
}
"""A method's function by its name."""
