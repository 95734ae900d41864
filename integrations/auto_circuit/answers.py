"""How well a batch of outputs answers: values of right and wrong answers, and divergence.

A prompt's answers are for its last token, `[batch, n_answers]` beside values `[batch, d_vocab]`, or
for each of its positions, `[batch, seq, n_answers]` beside `[batch, seq, d_vocab]`; or a list with
`[n_answers]` or `[seq, n_answers]` for each prompt, where prompts have different numbers of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from circuit_trace.errors import InputError

from .data import Answers, PromptPairBatch


def batch_avg_answer_val(
    vals: Tensor, batch: PromptPairBatch, wrong_answer: bool = False
) -> Tensor:
    """The mean value of the right answers (or the wrong ones) of a batch.

    >>> answers = torch.tensor([[[0], [1]]])  # one prompt, at two positions
    >>> batch = PromptPairBatch(0, 0, torch.ones(1, 2), torch.ones(1, 2), answers, answers)
    >>> batch_avg_answer_val(torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]), batch)
    tensor(0.7500)

    Args:
        vals: A value for every token of the vocabulary, `[batch, d_vocab]` or `[batch, seq, d_vocab]`.
        batch: The prompts and their answers.
        wrong_answer: Take the wrong answers.

    Raises:
        InputError: The answers are not tokens, or for other prompts or positions than the values.
    """
    return _means(vals, batch.wrong_answers if wrong_answer else batch.answers).mean()


def batch_answer_diffs(vals: Tensor, batch: PromptPairBatch) -> Tensor:
    """The mean value of the right answers less that of the wrong ones, of each prompt `[batch]` and,
    where each of its positions has answers (but in a list), at each of them `[batch, seq]`."""
    right, wrong = batch.answers, batch.wrong_answers
    if not (isinstance(right, Tensor) and isinstance(wrong, Tensor)):
        right, wrong = list(right), list(wrong)
    return _means(vals, right) - _means(vals, wrong)


def batch_avg_answer_diff(vals: Tensor, batch: PromptPairBatch) -> Tensor:
    """The mean of `batch_answer_diffs`."""
    return batch_answer_diffs(vals, batch).mean()


def batch_answer_diff_percents(
    pred_vals: Tensor, target_vals: Tensor, batch: PromptPairBatch
) -> Tensor:
    """`batch_answer_diffs` as percentages of those in the target values."""
    return batch_answer_diffs(pred_vals, batch) / batch_answer_diffs(target_vals, batch) * 100


def correct_answer_proportion(logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """The part of the prompts, or of all their positions, whose one right answer is the highest logit.

    Raises:
        InputError: There is more than one right answer, or as `batch_avg_answer_val`.
    """
    correct = [
        row.argmax(-1, keepdim=True) == tokens.to(row.device)
        for row, tokens in _pairs(logits, _single(batch.answers))
    ]
    return torch.cat([one.flatten() for one in correct]).float().mean()


def correct_answer_greater_than_incorrect_proportion(
    logits: Tensor, batch: PromptPairBatch
) -> Tensor:
    """The part of the prompts, or of all their positions, whose one right answer has a logit as high
    as the highest of their wrong ones.

    Raises:
        InputError: There is more than one right answer, or as `batch_avg_answer_val`.
    """
    right, wrong = list(_single(batch.answers)), list(batch.wrong_answers)
    correct = [
        _at(row, tokens) >= _at(row, others).amax(-1, keepdim=True)
        for (row, tokens), (_, others) in zip(
            _pairs(logits, right), _pairs(logits, wrong), strict=True
        )
    ]
    return torch.cat([one.flatten() for one in correct]).float().mean()


def multibatch_kl_div(input_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
    """The mean KL divergence of log-probabilities `[..., d_vocab]` from those of a target.

    Raises:
        InputError: They have not the same shape.
    """
    if input_logprobs.shape != target_logprobs.shape:
        raise InputError(
            "The log-probabilities and their target must have the same shape; got "
            f"{tuple(input_logprobs.shape)} and {tuple(target_logprobs.shape)}."
        )
    n = input_logprobs[..., 0].numel()
    return kl_div(input_logprobs, target_logprobs, reduction="sum", log_target=True) / n


def _means(vals: Tensor, answers: Answers) -> Tensor:
    """The mean value of the answers at each place; in a list, of each prompt."""
    if isinstance(answers, Tensor):
        _check(vals, answers)
        return _at(vals, answers).mean(-1)
    return torch.stack([_at(row, tokens).mean() for row, tokens in _pairs(vals, answers)])


def _pairs(vals: Tensor, answers: Answers) -> list[tuple[Tensor, Tensor]]:
    """Each prompt's values and answers, checked."""
    if not len(vals) == len(answers) > 0:
        raise InputError(
            f"There are values of {len(vals)} prompts, but answers for {len(answers)}."
        )
    pairs = list(zip(vals, answers, strict=True))
    for row, tokens in pairs:
        _check(row, tokens)
    return pairs


def _at(vals: Tensor, answers: Tensor) -> Tensor:
    """The values `[..., n_answers]` at some tokens of the vocabulary, of each place its own."""
    return vals.gather(-1, answers.to(vals.device, torch.int64))


def _check(vals: Tensor, answers: Tensor) -> None:
    if vals.shape[:-1] != answers.shape[:-1] or not answers.numel():
        raise InputError(
            "Answers must be tokens [n_answers] for each prompt, or for each of its positions where "
            f"the values have positions; got answers {tuple(answers.shape)} for values "
            f"{tuple(vals.shape)}. What of the outputs is measured, slice_output of "
            "patchable_model says: 'last_seq', 'not_first_seq', or None for every position."
        )
    if answers.is_floating_point() or answers.is_complex() or answers.dtype is torch.bool:
        raise InputError(f"Answers must be tokens, whole numbers; got {answers.dtype}.")
    least, most = int(answers.min()), int(answers.max())
    if least < 0 or most >= vals.shape[-1]:
        raise InputError(
            f"The answers have the tokens {least} to {most}, but the values are of a vocabulary of "
            f"{vals.shape[-1]}."
        )


def _single(answers: Answers) -> Answers:
    """Answers, one for each place."""
    numbers = {one.shape[-1] if one.ndim else 0 for one in answers}
    if numbers != {1}:
        raise InputError(
            "Whether the right answer is the highest needs one right answer for each prompt; got "
            f"{sorted(numbers)} of them."
        )
    return answers
