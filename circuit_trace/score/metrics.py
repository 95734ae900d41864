"""Metrics: one number a prompt from the logits, whose change by patching an edge is its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.plan import PromptPairs, mean_at

MetricName = Literal["logit_diff", "kl", "answer_logprob", "loss"]

Metric = MetricName | Callable[..., Tensor]
"""A name, or a function `(logits [batch, seq, d_vocab], batch) -> [batch] or a scalar`; the logits
after each prompt's last token are `batch.last_logits(logits)`."""

_IN_WORDS = {
    "logit_diff": "the logit difference",
    "answer_logprob": "the answers' log-probability",
    "kl": "the KL divergence from the clean pass",
    "loss": "the loss",
}

PerPrompt = Callable[[Tensor, PromptPairs, Tensor | None], Float[Tensor, " batch"]]
"""Logits, the batch, and the clean prompts' own logits (for those that compare with them)."""


def read_metric(metric: Any) -> PerPrompt:
    """The metric of that name, or the user's function, checked each time it is called.

    - `"logit_diff"`: the answers' mean logit less the wrong answers', at the last position.
    - `"answer_logprob"`: the answers' mean log-probability at the last position.
    - `"kl"`: KL(clean ‖ patched) of the next token at the last position, in nats; 0 when nothing is
      patched.
    - `"loss"`: the mean cross-entropy of the next token over all positions of the clean prompt.

    Padding is no position: the last one is that of each clean prompt's last token.

    Raises:
        InputError: It is neither; when called: answers that it needs are missing, or the result is no
            tensor of one number a prompt, or none with a gradient.
    """
    if isinstance(metric, str):
        if metric not in _NAMED:
            raise InputError(
                f"metric must be one of {', '.join(get_args(MetricName))}, or a function of logits and "
                f"batch; got {metric!r}."
            )
        return _NAMED[metric]
    if not callable(metric):
        raise InputError(
            f"metric must be one of {', '.join(get_args(MetricName))}, or a function of logits and "
            f"batch; got {metric!r}."
        )
    return _Own(metric)


def signs_of(metric: Any, *, is_estimate: bool) -> tuple[str, str]:
    """What the signs of scores say: what patching the edge does to the metric.

    >>> signs_of("loss", is_estimate=False)
    ('patching it raises the loss', 'patching it lowers the loss')
    """
    own = getattr(metric, "__name__", "")
    name = (
        _IN_WORDS[metric]
        if isinstance(metric, str)
        else own
        if own.isidentifier()
        else "the metric"
    )
    name += " (estimate)" if is_estimate else ""
    return f"patching it raises {name}", f"patching it lowers {name}"


class _Own:
    """A user's metric."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self._metric = metric

    def __call__(
        self, logits: Tensor, batch: PromptPairs, clean_logits: Tensor | None
    ) -> Float[Tensor, " batch"]:
        value = self._metric(logits, batch)
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        if not is_number or value.numel() not in (1, len(batch)):
            got = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"The metric must return one number, or one for each of the {len(batch)} prompts, as a "
                f"float tensor; got {got}."
            )
        if logits.requires_grad and not value.requires_grad:
            raise InputError(
                "The metric has no gradient: it must be computed from the logits by torch, without "
                ".item(), .detach(), argmax or no_grad."
            )
        return value.reshape(-1).expand(len(batch))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _answers(batch: PromptPairs, name: str) -> Tensor:
    found = getattr(batch, name)
    if found is None:
        raise InputError(
            f"This metric needs {name}: give batches as (clean, corrupt, answers, wrong_answers)."
        )
    return found


def _logit_difference(logits: Tensor, batch: PromptPairs, _clean: Tensor | None) -> Tensor:
    last = _wide(batch.last_logits(logits))
    right = mean_at(last, _answers(batch, "answers"))
    return right - mean_at(last, _answers(batch, "wrong_answers"))


def _answer_log_probability(logits: Tensor, batch: PromptPairs, _clean: Tensor | None) -> Tensor:
    last = _wide(batch.last_logits(logits)).log_softmax(-1)
    return mean_at(last, _answers(batch, "answers"))


def _kl(logits: Tensor, batch: PromptPairs, clean_logits: Tensor | None) -> Tensor:
    own = logits if clean_logits is None else clean_logits
    before = _wide(batch.last_logits(own).detach()).log_softmax(-1)
    after = _wide(batch.last_logits(logits)).log_softmax(-1)
    return torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)


def _loss(logits: Tensor, batch: PromptPairs, _clean: Tensor | None) -> Tensor:
    guesses = _wide(logits[:, :-1]).transpose(1, 2)
    targets = batch.clean[:, 1:].to(logits.device, torch.long)
    real = torch.ones_like(batch.clean) if batch.attention_mask is None else batch.attention_mask
    counts = (real[:, :-1] * real[:, 1:]).to(logits.device, torch.bool)  # a token after a token
    if not counts.any(1).all():
        raise InputError("The loss needs prompts of two tokens or more.")
    losses = torch.nn.functional.cross_entropy(guesses, targets, reduction="none")
    return torch.where(counts, losses, torch.zeros_like(losses)).sum(1) / counts.sum(1)


_NAMED: dict[str, PerPrompt] = {
    "logit_diff": _logit_difference,
    "kl": _kl,
    "answer_logprob": _answer_log_probability,
    "loss": _loss,
}
