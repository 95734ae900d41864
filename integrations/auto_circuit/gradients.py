"""Prune scores by the gradients of the masks: attribution patching and integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss, softmax

import circuit_trace as ct
from circuit_trace.errors import InputError
from circuit_trace.graph import whole_number

from .ablations import batch_src_ablations
from .answers import batch_avg_answer_diff, batch_avg_answer_val
from .data import PromptDataLoader, PromptPairBatch, batches_of
from .model import PatchableModel
from .patching import patch_mode, set_all_masks, train_mask_mode

GradFunction = Literal["logit", "prob", "logprob", "logit_exp"]

AnswerFunction = Literal["avg_diff", "avg_val", "mse"]

_GRAD_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "prob": lambda logits: softmax(logits, dim=-1),
    "logprob": lambda logits: log_softmax(logits, dim=-1),
    # The sum over the vocabulary is held fixed.
    "logit_exp": lambda logits: (logits - logits.logsumexp(-1, keepdim=True).detach()).exp(),
}


def _squared_error(vals: Tensor, batch: PromptPairBatch) -> Tensor:
    if not isinstance(batch.answers, Tensor) or batch.answers.shape != vals.shape:
        raise InputError(
            "answer_function='mse' compares outputs with answers of their shape, "
            f"{tuple(vals.shape)}: each prompt's answers are the outputs wanted, not tokens."
        )
    return mse_loss(vals, batch.answers.to(vals))


_LOSSES: dict[str, Callable[[Tensor, PromptPairBatch], Tensor]] = {
    "avg_diff": lambda vals, batch: -batch_avg_answer_diff(vals, batch),
    "avg_val": lambda vals, batch: -batch_avg_answer_val(vals, batch),
    "mse": _squared_error,
}


def mask_gradient_prune_scores(
    model: PatchableModel,
    dataloader: PromptDataLoader,
    official_edges: Collection[object] | None,
    grad_function: GradFunction,
    answer_function: AnswerFunction,
    mask_val: float | None = None,
    integrated_grad_samples: int | None = None,
    ablation_type: ct.AblationType = ct.AblationType.RESAMPLE,
    clean_corrupt: Literal["clean", "corrupt"] | None = "corrupt",
) -> ct.PruneScores:
    """Score every edge by the gradient of a loss with respect to its mask, on the clean prompts.

    `circuit_trace.score_edges` has the same and further methods, any metric, and takes more prompts
    than fit into memory.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> from circuit_trace.integrations.auto_circuit import PromptDataset, patchable_model
    >>> model = patchable_model(ct.load_model("bundled"), True, "last_seq", separate_qkv=True)
    >>> right, wrong = (model.to_tokens(word)[0, -1:] for word in ANSWERS)
    >>> prompts = PromptDataset(model.to_tokens(CLEAN), model.to_tokens(CORRUPT), [right], [wrong])
    >>> loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0)
    >>> scores = mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", mask_val=0.0)
    >>> scores["blocks.1.hook_resid_post"].shape
    torch.Size([11])

    Args:
        model: The model, from `patchable_model`. Its masks are set, and keep their gradients.
        dataloader: The prompts; the gradients of its batches add up.
        official_edges: Not used.
        grad_function: What is made of the outputs: "logit", "prob", "logprob", or "logit_exp", whose
            sum over the vocabulary is taken as a constant.
        answer_function: The loss: right answers less wrong ones or right ones alone, negated, or the
            squared error of outputs that the answers give.
        mask_val: The value of all masks; at 0 with "logit" this is edge attribution patching (Syed et
            al. 2023).
        integrated_grad_samples: Instead, add up the gradients at so many steps from 0 to 1, both ends
            counted beside them, as integrated gradients (Sundararajan et al. 2017).
        ablation_type: What is patched in.
        clean_corrupt: Which prompts that is taken from, for the ablations of one batch alone.

    Raises:
        InputError: An option is not one of these, or not exactly one of `mask_val` and
            `integrated_grad_samples` is given.
    """
    for name, given, known in (
        ("grad_function", grad_function, _GRAD_FUNCTIONS),
        ("answer_function", answer_function, _LOSSES),
    ):
        if given not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; got {given!r}.")
    values, loss = _GRAD_FUNCTIONS[grad_function], _LOSSES[answer_function]
    outputs = batch_src_ablations(model, dataloader, ablation_type, clean_corrupt)
    with torch.enable_grad(), train_mask_mode(model) as masks:
        for mask_value in _path(mask_val, integrated_grad_samples):
            set_all_masks(model, mask_value)
            for batch in batches_of(dataloader):
                with patch_mode(model, outputs[batch.key]):
                    logits = model(batch.clean)[model.out_slice]
                    # The masks alone: the weights' own gradients are their owner's.
                    loss(values(logits), batch).backward(inputs=list(masks.values()))
        return {
            name: torch.zeros_like(mask) if mask.grad is None else mask.grad.detach().clone()
            for name, mask in masks.items()
        }


def edge_attribution_patching_prune_scores(
    model: PatchableModel,
    dataloader: PromptDataLoader,
    official_edges: Collection[object] | None,
    answer_diff: bool = True,
) -> ct.PruneScores:
    """`mask_gradient_prune_scores` of the logits at masks of 0, which is the same.

    Args:
        model: The model, from `patchable_model`.
        dataloader: The prompts.
        official_edges: Not used.
        answer_diff: Score by right answers less wrong ones; otherwise by right ones alone.
    """
    answers: AnswerFunction = "avg_diff" if answer_diff else "avg_val"
    return mask_gradient_prune_scores(
        model, dataloader, official_edges, "logit", answers, mask_val=0.0
    )


def _path(mask_val: float | None, n_samples: int | None) -> list[float]:
    """The values that all masks are set to, one after the other."""
    if (mask_val is None) == (n_samples is None):
        raise InputError(
            "Give either mask_val, for gradients at one value of all masks, or "
            "integrated_grad_samples, for those on the way from 0 to 1."
        )
    if mask_val is not None:
        return [mask_val]
    n = whole_number(n_samples)
    if n is None or n < 1:
        raise InputError(
            f"integrated_grad_samples must be a whole number, 1 or more; got {n_samples!r}."
        )
    return [sample / n for sample in range(n + 1)]
