"""The next tokens that a metric compares: ids for each prompt, from ids or text."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import DataWarning, InputError

NONE = -1
"""Stands in place of an answer where a prompt has fewer than others of its batch."""

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The kinds of numbers that may be a token's id."""

CLEARLY = 2.0
"""A token with a logit so much larger is preferred clearly: it is seven times as likely."""


@dataclass(frozen=True)
class Twin:
    """An answer given as text, and the token that differs from it by the space before it."""

    prompt: int
    text: str
    token: int
    twin_text: str
    twin: int


@dataclass(frozen=True, eq=False)
class Answers:
    """Ids for each prompt, `NONE` behind them where others have more, and the twins of texts."""

    ids: Int[Tensor, "batch answer"]
    twins: tuple[Twin, ...] = ()


def read_answers(
    anatomy: Anatomy, given: Any, n_prompts: int, name: str, device: torch.device
) -> Answers:
    """Answers as token ids `[batch]` or `[batch, n]`, or for each prompt an id, a text, or several.

    One for a batch of several prompts is that of each of them, with a warning.

    Raises:
        InputError: They are none, are no single tokens, or not as many as there are prompts.
    """
    if isinstance(given, str | int):
        given = [given]
    rows, twins = given, ()
    if isinstance(given, Sequence):
        rows, twins = _rows(anatomy, given, name)
    if not isinstance(rows, Tensor) or rows.dtype not in WHOLE or rows.ndim > 2:
        raise InputError(
            f"{name} must be token ids [batch] or [batch, n], or single tokens as text; got {given!r}."
        )
    n_rows = rows.shape[0] if rows.ndim else 1
    if n_rows not in (1, n_prompts) or rows.numel() == 0:
        hint = (
            " Several answers of one prompt are a list within the list." if rows.ndim == 2 else ""
        )
        raise InputError(
            f"{name} must have a row for each of the {n_prompts} prompts; got the shape "
            f"{tuple(rows.shape)}.{hint}"
        )
    ids = rows.to(device, torch.long).view(n_rows, -1)
    _check_ids(ids, getattr(anatomy.cfg, "d_vocab", None) or float("inf"), name)
    if n_rows < n_prompts:
        warnings.warn(
            f"One row of {name} was given for {n_prompts} prompts, so it is taken for each of them. "
            "Give each prompt its own.",
            DataWarning,
            stacklevel=2,
        )
    return Answers(ids.expand(n_prompts, -1), twins)


def check_differ(right: Int[Tensor, "batch answer"], wrong: Int[Tensor, "batch wrong"]) -> None:
    """Check that a prompt's answers are not its wrong answers.

    Raises:
        InputError: They are, so that their difference is 0 whatever is patched.
    """
    for prompt, rows in enumerate(zip(right.tolist(), wrong.tolist(), strict=True)):
        one, other = (Counter(token for token in row if token != NONE) for row in rows)
        shares = [{t: n / many.total() for t, n in many.items()} for many in (one, other)]
        if shares[0] == shares[1]:
            raise InputError(
                f"The answers and the wrong answers of prompt {prompt} are the same tokens, "
                f"{sorted(one)}, so their difference is 0 whatever is patched."
            )


def mean_at(
    values: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch answer"]
) -> Float[Tensor, " batch"]:
    """The mean of each row's values at its own ids, however many they are.

    >>> mean_at(torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]]), torch.tensor([[0, 1], [2, -1]]))
    tensor([1.5000, 5.0000])
    """
    ids = ids.to(values.device)
    is_one = ids != NONE
    found = values.gather(1, ids.clamp_min(0))
    return torch.where(is_one, found, torch.zeros_like(found)).sum(1) / is_one.sum(1)


def warn_of_twins(last: Float[Tensor, "batch d_vocab"], twins: Sequence[Twin]) -> None:
    """Warn where the model clearly prefers an answer's twin: " Paris" where "Paris" was given."""
    for twin in twins:
        asked, other = (float(last[twin.prompt, token]) for token in (twin.token, twin.twin))
        if other > asked + CLEARLY:
            warnings.warn(
                f"The answer {twin.text!r} of prompt {twin.prompt} has the logit {asked:.2f} on the "
                f"clean prompt, but {twin.twin_text!r}, a token too, has {other:.2f}. Was "
                f"{twin.twin_text!r} meant?",
                DataWarning,
                stacklevel=2,
            )


def _check_ids(ids: Int[Tensor, "row answer"], d_vocab: float, name: str) -> None:
    if (ids == NONE).all(1).any():
        row = int((ids == NONE).all(1).nonzero()[0])
        raise InputError(f"Prompt {row} has none of the {name}: each needs one or more.")
    low = int(ids[ids != NONE].min())
    if low < 0 or int(ids.max()) >= d_vocab:
        raise InputError(
            f"{name} run from {low} to {int(ids.max())}; this model knows the tokens 0 to "
            f"{d_vocab - 1}."
        )


def _rows(
    anatomy: Anatomy, given: Sequence[Any], name: str
) -> tuple[Int[Tensor, "row answer"], tuple[Twin, ...]]:
    """Token ids of answers as text, or as numbers, for each prompt."""
    rows: list[list[int]] = []
    twins: list[Twin] = []
    for prompt, some in enumerate(given):
        some = some.reshape(-1).tolist() if _is_whole(some) else some
        several = some if isinstance(some, list | tuple) else [some]
        rows.append([_token(anatomy, one, name) for one in several])
        for text, token in zip(several, rows[-1], strict=True):
            twin = _twin(anatomy, text, token, prompt) if isinstance(text, str) else None
            twins += [twin] if twin else []
    longest = max(map(len, rows), default=0)
    filled = [row + [NONE] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.long).view(len(rows), longest), tuple(twins)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in WHOLE


def _token(anatomy: Anatomy, answer: Any, name: str) -> int:
    if _is_whole(answer) and answer.numel() == 1:
        return int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    to_ids = None if anatomy.unembed is None else anatomy.unembed.to_ids
    if not isinstance(answer, str) or to_ids is None:
        raise InputError(
            f"Cannot read {answer!r} as one of the {name}: expected a token's id, or its text where "
            "the model has a tokenizer."
        )
    ids = to_ids(answer)
    if len(ids) != 1:
        pieces = "" if anatomy.to_strings is None else f", {anatomy.to_strings(torch.tensor(ids))}"
        raise InputError(
            f"{name} must be single tokens, but {answer!r} is {len(ids)} of them{pieces}. Mind the "
            "space before a word, choose words that are one token, or give the token that tells the "
            "answers apart, as its text or its id."
        )
    read = _read_back(anatomy, answer, ids)
    if not _is_spelt(read, answer):
        raise InputError(f"{name}: the tokenizer does not know {answer!r}, it reads {read!r}.")
    return ids[0]


def _twin(anatomy: Anatomy, text: str, token: int, prompt: int) -> Twin | None:
    """The token for the same text with the space before it left out, or put there."""
    other = text[1:] if text.startswith(" ") else f" {text}"
    assert anatomy.unembed is not None
    assert anatomy.unembed.to_ids is not None
    ids = anatomy.unembed.to_ids(other) if other.strip() else []
    if len(ids) != 1 or ids[0] == token or not _is_spelt(_read_back(anatomy, other, ids), other):
        return None
    return Twin(prompt, text, token, other, ids[0])


def _read_back(anatomy: Anatomy, text: str, ids: list[int]) -> str:
    return text if anatomy.to_strings is None else anatomy.to_strings(torch.tensor(ids))[0]


def _is_spelt(read: str, text: str) -> bool:
    return read.strip().casefold() == text.strip().casefold()
