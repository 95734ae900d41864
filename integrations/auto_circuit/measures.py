"""How well circuits of each size answer: what `run_circuits` returned, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from circuit_trace.errors import InputError

from .answers import (
    batch_answer_diff_percents,
    batch_avg_answer_diff,
    batch_avg_answer_val,
    correct_answer_greater_than_incorrect_proportion,
    correct_answer_proportion,
    multibatch_kl_div,
)
from .circuits import BatchOutputs, CircuitOutputs
from .data import PromptPairBatch, batches_of
from .model import PatchableModel

Measurements = list[tuple[int, float]]
"""Pairs of a circuit's number of edges and what was measured."""

ProbFunc = Literal["log_softmax", "softmax", "logits"]

_PROB_FUNCS: dict[str, Callable[..., Tensor]] = {
    "log_softmax": log_softmax,
    "softmax": softmax,
    "logits": lambda logits, dim: logits,
}


def measure_answer_val(
    model: object,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
    wrong_answer: bool = False,
) -> Measurements:
    """The mean value of the right answers (or the wrong ones) for circuits of each size."""
    function = _prob_func(prob_func)
    return _measured(
        test_loader,
        circuit_outs,
        lambda logits, batch: batch_avg_answer_val(function(logits, dim=-1), batch, wrong_answer),
    )


def measure_answer_diff(
    model: object,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
) -> Measurements:
    """The mean value of the right answers less that of the wrong ones, for circuits of each size."""
    function = _prob_func(prob_func)
    return _measured(
        test_loader,
        circuit_outs,
        lambda logits, batch: batch_avg_answer_diff(function(logits, dim=-1), batch),
    )


def measure_correct_ans_percent(
    model: object,
    dataloader: Iterable[PromptPairBatch],
    pruned_outs: CircuitOutputs,
    out_of_correct_and_incorrect_answers: bool = False,
) -> Measurements:
    """In how many percent of the prompts the one right answer has the highest logit of all (or is as
    high as the highest of the wrong answers), for circuits of each size."""
    proportion = (
        correct_answer_greater_than_incorrect_proportion
        if out_of_correct_and_incorrect_answers
        else correct_answer_proportion
    )
    return [(n, 100 * part) for n, part in _measured(dataloader, pruned_outs, proportion)]


def measure_answer_diff_percent(
    model: PatchableModel,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
    diff_of_means: bool = True,
) -> Measurements:
    """The first of what `answer_diff_percent` returns."""
    return answer_diff_percent(model, test_loader, circuit_outs, prob_func, diff_of_means)[0]


def answer_diff_percent(
    model: PatchableModel,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
    diff_of_means: bool = True,
) -> tuple[Measurements, Measurements, list[tuple[int, Tensor]]]:
    """How many percent of the whole model's difference between right and wrong answers circuits of
    each size have, on the clean prompts.

    Args:
        model: The model that the circuits are of.
        test_loader: The prompts that they ran on.
        circuit_outs: What `run_circuits` returned.
        prob_func: What the differences are taken of.
        diff_of_means: Compare the mean differences; otherwise the mean of each prompt's percentage.

    Returns:
        The percentages, their standard deviations over prompts, and each prompt's own; with
        `diff_of_means` these are 0 and empty.
    """
    function = _prob_func(prob_func)
    batches = list(test_loader)
    whole = {key: function(logits, dim=-1) for key, logits in _whole(model, batches).items()}
    means, deviations, points = [], [], []
    for n_edges, outs in circuit_outs.items():
        pairs = [(function(_of(outs, b), dim=-1), whole[b.key], b) for b in batches]
        if diff_of_means:
            found = torch.stack([batch_avg_answer_diff(vals, b) for vals, _, b in pairs])
            target = torch.stack([batch_avg_answer_diff(vals, b) for _, vals, b in pairs])
            mean, deviation = found.mean() / target.mean() * 100, 0.0
            each = torch.tensor([])
        else:
            each = torch.cat([batch_answer_diff_percents(*pair) for pair in pairs])
            mean, deviation = each.mean(), each.std().item()
        means.append((n_edges, mean.item()))
        deviations.append((n_edges, deviation))
        points.append((n_edges, each))
    return means, deviations, points


def measure_kl_div(
    model: PatchableModel,
    dataloader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    compare_to_clean: bool = True,
) -> Measurements:
    """The mean KL divergence of circuits' outputs from the whole model's on the clean prompts (or the
    corrupt ones), for circuits of each size."""
    batches = list(dataloader)
    whole = _whole(model, batches, "clean" if compare_to_clean else "corrupt")
    target = torch.cat([log_softmax(whole[batch.key], dim=-1) for batch in batches])
    measured = []
    for n_edges, outs in circuit_outs.items():
        logprobs = torch.cat([log_softmax(_of(outs, batch), dim=-1) for batch in batches])
        measured.append((n_edges, max(multibatch_kl_div(logprobs, target).item(), 0.0)))
    return measured


def _prob_func(name: str) -> Callable[..., Tensor]:
    if name not in _PROB_FUNCS:
        raise InputError(f"prob_func must be one of {', '.join(_PROB_FUNCS)}; got {name!r}.")
    return _PROB_FUNCS[name]


def _measured(
    loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    measure: Callable[[Tensor, PromptPairBatch], Tensor],
) -> Measurements:
    """The mean over all batches, which are of one size, for circuits of each size."""
    batches = _some(loader)
    return [
        (n, torch.stack([measure(_of(outs, batch), batch) for batch in batches]).mean().item())
        for n, outs in circuit_outs.items()
    ]


def _whole(
    model: PatchableModel, batches: list[PromptPairBatch], side: str = "clean"
) -> BatchOutputs:
    """The outputs of the whole model."""
    with torch.no_grad():
        return {batch.key: model(getattr(batch, side))[model.out_slice] for batch in _some(batches)}


def _some(loader: Iterable[PromptPairBatch]) -> list[PromptPairBatch]:
    """The batches of a loader, which must have one."""
    batches = list(batches_of(loader))
    if not batches:
        raise InputError(
            "The dataloader has no batch, so nothing can be measured: its batch_size is larger than "
            "the dataset, or the dataset is empty."
        )
    return batches


def _of(outs: BatchOutputs, batch: PromptPairBatch) -> Tensor:
    """A circuit's outputs on a batch."""
    if batch.key not in outs:
        raise InputError(
            "A circuit has no outputs on a batch of this dataloader: measure with the dataloader that "
            "run_circuits ran on, its batch_size and order unchanged."
        )
    return outs[batch.key]
