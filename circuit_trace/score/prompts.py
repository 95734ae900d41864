"""Pairs of clean and corrupt prompts, batch by batch, with the answers that a metric compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from circuit_trace.errors import InputError

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

FIELDS = ("clean", "corrupt", "answers", "wrong_answers")
"""What a batch may hold, in this order where it is a tuple."""

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The kinds of numbers that may be a token's id."""


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """A batch of clean prompts and as many corrupt ones of the same length.

    `answers` and `wrong_answers` are the ids of the tokens that should and should not follow, one
    or more a prompt; None where the metric needs none.
    """

    clean: Shaped[Tensor, "batch seq *input"]
    corrupt: Shaped[Tensor, "batch seq *input"] | None
    answers: Int[Tensor, "batch answer"] | None = None
    wrong_answers: Int[Tensor, "batch wrong"] | None = None

    def __len__(self) -> int:
        return self.clean.shape[0]


def read_batches(model: PatchableModel, data: Any) -> Iterator[PromptPairs]:
    """Read what a user gives as data: one batch, or any iterable (a torch DataLoader) of batches.

    A batch is a tuple or list `(clean, corrupt)`, `(clean, corrupt, answers)` or
    `(clean, corrupt, answers, wrong_answers)`, or a mapping or an object with these names; corrupt may
    be None for an ablation that needs none. Prompts
    are tokens `[batch, seq]`, a string or a list of strings; answers token ids `[batch]` or
    `[batch, n]`, a string, or a string (or list of them) for each prompt.

    Raises:
        InputError: No batch at all, something that is none, or prompts that do not fit each other;
            the number of the batch is named.
    """
    # A list of tuples of strings is a dataset of pairs, but as a batch what a DataLoader collates.
    is_one = not isinstance(data, list) and _fields(data, texts=list) is not None
    batches = [data] if is_one else data
    if isinstance(batches, str | Tensor | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            "Expected pairs of prompts, (clean, corrupt) or (clean, corrupt, answers, wrong_answers), "
            f"or an iterable of such batches; got {type(data).__name__}."
        )
    number = -1
    for number, batch in enumerate(batches):
        fields = _fields(batch)
        if fields is None:
            raise InputError(
                f"Batch {number} is no pair of prompts but a {type(batch).__name__}: expected "
                "(clean, corrupt), (clean, corrupt, answers, wrong_answers), or a mapping or object "
                f"with some of the names {', '.join(FIELDS)}."
            )
        try:
            yield _read(model, fields)
        except InputError as error:
            raise InputError(f"Batch {number}: {error}") from error
    if number < 0:
        raise InputError("The data is empty: there is no batch to score.")


def _fields(batch: Any, texts: Any = (list, tuple)) -> dict[str, Any] | None:
    """The fields of a batch, None for what is none; several texts come in a list or tuple."""
    found: dict[str, Any]
    if isinstance(batch, Mapping):
        found = {name: batch[name] for name in FIELDS if name in batch}
    elif isinstance(batch, tuple | list):
        is_texts = isinstance(batch, list) and all(isinstance(one, str) for one in batch)
        is_batch = 2 <= len(batch) <= 4 and not is_texts
        is_batch = is_batch and _is_prompts(batch[0], texts)
        is_batch = is_batch and (batch[1] is None or _is_prompts(batch[1], texts))
        found = dict(zip(FIELDS, batch, strict=False)) if is_batch else {}
    elif isinstance(batch, PromptPairs):
        found = {name: getattr(batch, name) for name in FIELDS}
    else:
        found = {name: getattr(batch, name) for name in FIELDS if hasattr(batch, name)}
    return found if "clean" in found else None


def _is_prompts(value: Any, texts: Any) -> bool:
    is_texts = isinstance(value, texts) and bool(value)
    return isinstance(value, Tensor | str) or (
        is_texts and all(isinstance(one, str) for one in value)
    )


def _read(model: PatchableModel, fields: Mapping[str, Any]) -> PromptPairs:
    clean = model.tokens_of(fields["clean"])
    corrupt = fields.get("corrupt")
    corrupt = None if corrupt is None else model.tokens_of(corrupt)
    if corrupt is not None and corrupt.shape[:2] != clean.shape[:2]:
        raise InputError(
            f"clean and corrupt prompts must have the same number of prompts and of tokens, got "
            f"{tuple(clean.shape[:2])} and {tuple(corrupt.shape[:2])} ([batch, seq])."
        )
    answers, wrong = (_answers(model, fields.get(name), clean, name) for name in FIELDS[2:])
    return PromptPairs(clean, corrupt, answers, wrong)


def _answers(
    model: PatchableModel, given: Any, clean: Tensor, name: str
) -> Int[Tensor, "batch answer"] | None:
    if given is None:
        return None
    if isinstance(given, str):
        given = [given] * clean.shape[0]
    if isinstance(given, Sequence):
        given = _rows(model, given, name)
    if not isinstance(given, Tensor) or given.dtype not in WHOLE or given.ndim > 2:
        raise InputError(
            f"{name} must be token ids [batch] or [batch, n], or single tokens as text; got {given!r}."
        )
    n_rows = given.shape[0] if given.ndim else 1
    if n_rows not in (1, clean.shape[0]) or given.numel() == 0:
        raise InputError(
            f"{name} must have a row for each of the {clean.shape[0]} prompts; got the shape "
            f"{tuple(given.shape)}."
        )
    ids = given.to(clean.device, torch.long).view(n_rows, -1)
    d_vocab = getattr(model.cfg, "d_vocab", None) or float("inf")
    if int(ids.min()) < 0 or int(ids.max()) >= d_vocab:
        raise InputError(
            f"{name} run from {int(ids.min())} to {int(ids.max())}; this model knows the tokens 0 to "
            f"{d_vocab - 1}."
        )
    return ids.expand(clean.shape[0], -1)


def _rows(model: PatchableModel, given: Sequence[Any], name: str) -> Tensor:
    """Token ids of answers as text, or as numbers, for each prompt."""
    rows = [
        list(one) if isinstance(one, Sequence) and not isinstance(one, str) else [one]
        for one in given
    ]
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"{name} must be equally many for each prompt; got {given!r}.")
    return torch.tensor([[_token(model, one, name) for one in row] for row in rows])


def _token(model: PatchableModel, answer: Any, name: str) -> int:
    if isinstance(answer, Tensor) and answer.numel() == 1 and not answer.is_floating_point():
        return int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    to_ids = None if model.anatomy.unembed is None else model.anatomy.unembed.to_ids
    if not isinstance(answer, str) or to_ids is None:
        raise InputError(
            f"Cannot read {answer!r} as one of the {name}: expected a token's id, or its text where "
            "the model has a tokenizer."
        )
    ids = to_ids(answer)
    if len(ids) != 1:
        raise InputError(
            f"{name} must be single tokens, but {answer!r} is {len(ids)} of them. Mind the space "
            "before a word, or give a token's id."
        )
    to_strings = model.anatomy.to_strings
    read = answer if to_strings is None else to_strings(torch.tensor(ids))[0]
    if read.strip().casefold() != answer.strip().casefold():
        raise InputError(f"{name}: the tokenizer does not know {answer!r}, it reads {read!r}.")
    return ids[0]
