"""How well outputs answer: logits of right and wrong answers, and divergence from the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from circuit_trace.errors import InputError

from .circuits import CircuitOutputs
from .data import PromptPairBatch
from .model import PatchableModel

Measurements = list[tuple[int, float]]
"""Pairs of a circuit's number of edges and what was measured."""

ProbFunc = Literal["log_softmax", "softmax", "logits"]

_PROB_FUNCS: dict[str, Callable[..., Tensor]] = {
    "log_softmax": log_softmax,
    "softmax": softmax,
    "logits": lambda logits, dim: logits,
}


def batch_avg_answer_val(
    vals: Tensor, batch: PromptPairBatch, wrong_answer: bool = False
) -> Tensor:
    """The mean value of the right answers (or the wrong ones) of a batch.

    Args:
        vals: A value for every token of the vocabulary, `[batch, d_vocab]`.
        batch: The prompts and their answers.
        wrong_answer: Take the wrong answers.
    """
    return torch.stack(_means(vals, batch.wrong_answers if wrong_answer else batch.answers)).mean()


def batch_answer_diffs(vals: Tensor, batch: PromptPairBatch) -> Tensor:
    """The mean value of each prompt's right answers less that of its wrong ones, `[batch]`."""
    right, wrong = _means(vals, batch.answers), _means(vals, batch.wrong_answers)
    return torch.stack(right) - torch.stack(wrong)


def batch_avg_answer_diff(vals: Tensor, batch: PromptPairBatch) -> Tensor:
    """The mean of `batch_answer_diffs`."""
    return batch_answer_diffs(vals, batch).mean()


def batch_answer_diff_percents(
    pred_vals: Tensor, target_vals: Tensor, batch: PromptPairBatch
) -> Tensor:
    """Each prompt's answer difference as a percentage of the one in the target values, `[batch]`."""
    return batch_answer_diffs(pred_vals, batch) / batch_answer_diffs(target_vals, batch) * 100


def multibatch_kl_div(input_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
    """The mean KL divergence of log-probabilities `[..., d_vocab]` from those of a target."""
    n = input_logprobs[..., 0].numel()
    return kl_div(input_logprobs, target_logprobs, reduction="sum", log_target=True) / n


def measure_answer_val(
    model: Any,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
    wrong_answer: bool = False,
) -> Measurements:
    """The mean value of the right answers (or the wrong ones) for circuits of each size."""
    return _measured(
        test_loader,
        circuit_outs,
        prob_func,
        lambda vals, batch: batch_avg_answer_val(vals, batch, wrong_answer),
    )


def measure_answer_diff(
    model: Any,
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc = "logits",
) -> Measurements:
    """The mean value of the right answers less that of the wrong ones, for circuits of each size."""
    return _measured(test_loader, circuit_outs, prob_func, batch_avg_answer_diff)


def measure_kl_div(
    model: PatchableModel,
    dataloader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    compare_to_clean: bool = True,
) -> Measurements:
    """The mean KL divergence of circuits' outputs from the whole model's on the clean prompts (or the
    corrupt ones), for circuits of each size."""
    whole = {}
    with torch.no_grad():
        for batch in dataloader:
            prompts = batch.clean if compare_to_clean else batch.corrupt
            whole[batch.key] = log_softmax(model(prompts)[model.out_slice], dim=-1)
    target = torch.cat(list(whole.values()))
    measured = []
    for n_edges, outs in circuit_outs.items():
        logprobs = torch.cat([log_softmax(outs[key], dim=-1) for key in whole])
        measured.append((n_edges, max(multibatch_kl_div(logprobs, target).item(), 0.0)))
    return measured


def _measured(
    test_loader: Iterable[PromptPairBatch],
    circuit_outs: CircuitOutputs,
    prob_func: ProbFunc,
    measure: Callable[[Tensor, PromptPairBatch], Tensor],
) -> Measurements:
    if prob_func not in _PROB_FUNCS:
        raise InputError(f"prob_func must be one of {', '.join(_PROB_FUNCS)}; got {prob_func!r}.")
    function = _PROB_FUNCS[prob_func]
    return [
        (
            n_edges,
            torch.stack([measure(function(outs[b.key], dim=-1), b) for b in test_loader])
            .mean()
            .item(),
        )
        for n_edges, outs in circuit_outs.items()
    ]


def _means(vals: Tensor, answers: Tensor | list[Tensor]) -> list[Tensor]:
    """The mean value of each prompt's answers."""
    return [row[tokens].mean() for row, tokens in zip(vals, answers, strict=True)]
