"""Pairs of clean and corrupt prompts, batch by batch: the one reader of everything called data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import DataWarning, InputError
from circuit_trace.plan.answers import Twin, check_differ, read_answers, warn_of_twins
from circuit_trace.plan.prompts import (
    MASK,
    Prompts,
    is_text,
    last_positions,
    read_arguments,
    read_mask,
    read_prompts,
)

FIELDS = ("clean", "corrupt", "answers", "wrong_answers")
"""What a batch may hold, in this order where it is a tuple."""

MASKS = ("attention_mask", "corrupt_attention_mask")
"""What it may hold beside them where its parts have names."""


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """A batch of clean prompts and as many corrupt ones, aligned: what a metric of yours is given.

    `answers` and `wrong_answers` are the ids of the tokens that should and should not follow, one
    or more a prompt (-1 fills up the rows of prompts that have fewer); None where there are none.
    The masks say which positions hold a token, others being padding; they are None without padding.
    `arguments` are more arguments of both forward passes.

    The logits after the last token of each prompt, whichever side is padded, are
    `batch.last_logits(logits)`.
    """

    clean: Shaped[Tensor, "batch seq *input"]
    corrupt: Shaped[Tensor, "batch seq *input"] | None = None
    answers: Int[Tensor, "batch answer"] | None = None
    wrong_answers: Int[Tensor, "batch wrong"] | None = None
    attention_mask: Bool[Tensor, "batch seq"] | None = None
    corrupt_attention_mask: Bool[Tensor, "batch seq"] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    twins: tuple[Twin, ...] = ()

    def __len__(self) -> int:
        return self.clean.shape[0]

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """The position of each clean prompt's last token."""
        return last_positions(self.attention_mask, self.clean)

    def last_logits(
        self, logits: Float[Tensor, "batch seq d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """The logits at each clean prompt's last token."""
        if self.attention_mask is None:
            return logits[:, -1]
        prompts = torch.arange(len(self), device=logits.device)
        return logits[prompts, self.last.to(logits.device)]

    @property
    def clean_prompts(self) -> Prompts:
        """The clean prompts, ready to run."""
        return Prompts(self.clean, self.attention_mask, self.arguments)

    @property
    def corrupt_prompts(self) -> Prompts | None:
        """The corrupt prompts, ready to run."""
        if self.corrupt is None:
            return None
        return Prompts(self.corrupt, self.corrupt_attention_mask, self.arguments)

    @property
    def other_prompts(self) -> Prompts:
        """What is patched in is made of these: the corrupt prompts, or for lack of them the clean."""
        return self.clean_prompts if self.corrupt_prompts is None else self.corrupt_prompts

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What tells this batch from others: its prompts, answers and, where there are any, masks."""
        masks = (self.attention_mask, self.corrupt_attention_mask)
        given = (mask for mask in masks if mask is not None)
        return (self.clean, self.corrupt, self.answers, self.wrong_answers, *given)

    @property
    def same(self) -> list[int]:
        """The pairs whose corrupt prompt is the clean one, so that patching changes nothing."""
        if self.corrupt is None:
            return []
        is_same = self.clean == self.corrupt.to(self.clean.device)
        is_same = is_same.reshape(*is_same.shape[:2], -1).all(2)
        masks = (self.attention_mask, self.corrupt_attention_mask)
        one, other = (torch.ones_like(is_same) if mask is None else mask for mask in masks)
        is_same = (is_same | ~one) & (one == other)
        return is_same.all(1).nonzero()[:, 0].tolist()

    def warn_of_twins(self, logits: Float[Tensor, "batch seq d_vocab"]) -> None:
        """Warn where, on the clean prompts, the model prefers an answer with the space before it."""
        if self.twins:
            warn_of_twins(self.last_logits(logits), self.twins)


ForwardArg = Mapping[str, Any] | Callable[[PromptPairs], Mapping[str, Any]]
"""More arguments of a forward pass, or what makes them for a batch."""


def pair_of(
    anatomy: Anatomy, clean: Any, corrupt: Any = None, forward: ForwardArg | None = None
) -> PromptPairs:
    """Clean prompts and, where there are any, corrupt ones, aligned from the end.

    Raises:
        InputError: They are none, or do not fit each other.
    """
    return _with_forward(_read(anatomy, {"clean": clean, "corrupt": corrupt}), forward)


def read_pairs(
    anatomy: Anatomy, data: Any, forward: ForwardArg | None = None, *, resampled: bool = False
) -> Iterator[PromptPairs]:
    """Read what a user gives as data: one batch, or any iterable (a torch DataLoader) of batches.

    A batch is a tuple `(clean, corrupt)`, `(clean, corrupt, answers)` or `(clean, corrupt, answers,
    wrong_answers)`, or a mapping or object with these names, to which `attention_mask` and
    `corrupt_attention_mask` may be added; within an iterable it may also be a list of the four, as a
    DataLoader makes of tuples. Corrupt may be None for an ablation that needs none. Prompts are
    tokens `[batch, seq]`, a string or a list of strings; answers are token ids `[batch]` or
    `[batch, n]`, or a text or an id (or a list of them) for each prompt. A list is never one batch:
    `[(clean, corrupt), …]` holds batches.

    Args:
        anatomy: The model's.
        data: As above.
        forward: More arguments of the forward pass, or a function of a batch that returns them.
        resampled: Each corrupt prompt is patched into its clean one, so the two must differ.

    Raises:
        InputError: No batch at all, something that is none, or prompts that do not fit each other;
            the number of the batch is named.
    """
    if not callable(forward):
        read_arguments(forward)
    n_prompts = n_same = 0
    is_one = _is_one(data)
    for number, batch in enumerate(_batches(data)):
        if _fields(batch) is None:
            raise InputError(
                f"Batch {number} is no pair of prompts but a {type(batch).__name__}: expected "
                "(clean, corrupt), (clean, corrupt, answers, wrong_answers), or a mapping or object "
                f"with some of the names {', '.join(FIELDS)}."
            )
        with _named(number):
            pairs = _with_forward(_read(anatomy, batch), forward)
        n_prompts += len(pairs)
        same = pairs.same if resampled else []
        n_same += len(same)
        if is_one and n_same == n_prompts:
            break  # which is refused
        if same:
            warnings.warn(
                f"Batch {number}: the corrupt prompts {same} are the same as their clean prompts, so "
                "patching changes nothing there.",
                DataWarning,
                stacklevel=2,
            )
        yield pairs
    if n_prompts == 0:
        raise InputError("The data is empty: there is no batch to score.")
    if n_same == n_prompts:
        raise InputError(
            "Each corrupt prompt is the same as its clean prompt, so patching changes nothing and "
            "every score would be 0. Change what the metric depends on in the corrupt prompts."
        )


def read_prompt_sets(
    anatomy: Anatomy, data: Any, forward: ForwardArg | None, wanted: tuple[str, ...]
) -> Iterator[tuple[int, Prompts]]:
    """The clean prompts of each batch, its corrupt ones, or both (as `wanted` names them), with its
    number.

    Data is what `read_pairs` takes; where one of the two is wanted, also prompts without a pair,
    tokens or text, or any iterable of such.

    Raises:
        InputError: As `read_pairs`, or a batch has not the prompts that are wanted.
    """
    if _is_one(data) and isinstance(data, tuple) and len(data) > 2:
        _check_answers_are_no_prompts(data)
    is_alone = isinstance(data, Tensor) or (is_text(data) and not _is_one(data))
    for number, batch in enumerate([data] if is_alone else _batches(data)):
        with _named(number):
            found = _wanted(anatomy, batch, forward, wanted)
        yield from ((number, prompts) for prompts in found)


def _wanted(
    anatomy: Anatomy, batch: Any, forward: ForwardArg | None, wanted: tuple[str, ...]
) -> list[Prompts]:
    if _fields(batch) is None and len(wanted) == 1:
        # A DataLoader of a dataset of single tensors wraps each in a list.
        is_wrapped = isinstance(batch, list | tuple) and len(batch) == 1
        alone = batch[0] if is_wrapped and isinstance(batch[0], Tensor) else batch
        return [pair_of(anatomy, alone, None, forward).clean_prompts]
    found: dict[str, Prompts | None] = {}
    if _fields(batch) is not None:
        pairs = _with_forward(_read(anatomy, batch, answered=False), forward)
        found = {"clean": pairs.clean_prompts, "corrupt": pairs.corrupt_prompts}
    prompts = [one for name in wanted if (one := found.get(name)) is not None]
    if len(prompts) < len(wanted):
        raise InputError(
            f"Expected {' and '.join(wanted)} prompts, as (clean, corrupt) or under these names; got "
            f"a {type(batch).__name__} without them."
        )
    return prompts


def _batches(data: Any) -> Iterable[Any]:
    batches = [data] if _is_one(data) else data
    if isinstance(batches, str | Tensor | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            "Expected pairs of prompts, (clean, corrupt) or (clean, corrupt, answers, wrong_answers), "
            f"or an iterable of such batches; got {type(data).__name__}."
        )
    return batches


def _is_one(data: Any) -> bool:
    """Whether data is one batch. A list of tuples of texts is a dataset of pairs, but within data a
    list of two lists of texts is what a DataLoader makes of a batch of them."""
    return not isinstance(data, list) and _fields(data, texts=list) is not None


def _fields(batch: Any, texts: Any = (list, tuple)) -> Mapping[str, Any] | None:
    """The fields of a batch, None for what is none; several texts come in a list or tuple."""
    found: dict[str, Any]
    names = (*FIELDS, *MASKS)
    if isinstance(batch, Mapping):
        found = {name: batch[name] for name in names if name in batch}
    elif isinstance(batch, tuple | list):
        is_texts = isinstance(batch, list) and all(isinstance(one, str) for one in batch)
        is_batch = 2 <= len(batch) <= 4 and not is_texts
        is_batch = is_batch and _is_prompts(batch[0], texts)
        is_batch = is_batch and (batch[1] is None or _is_prompts(batch[1], texts))
        found = dict(zip(FIELDS, batch, strict=False)) if is_batch else {}
    else:
        found = {name: getattr(batch, name) for name in names if hasattr(batch, name)}
    return found if "clean" in found else None


def _is_prompts(value: Any, texts: Any) -> bool:
    is_some = isinstance(value, texts) and bool(value)
    return isinstance(value, Tensor | str) or (is_some and is_text(value))


def _check_answers_are_no_prompts(data: tuple[Any, ...]) -> None:
    """Three batches of prompts in a tuple read as `(clean, corrupt, answers)` would be a mean of the
    first alone."""
    shapes = {tuple(one.shape[1:]) if isinstance(one, Tensor) else None for one in data}
    if len(shapes) == 1 and None not in shapes and data[0].ndim == 2:
        raise InputError(
            f"A tuple is one batch, (clean, corrupt, answers, wrong_answers), but all {len(data)} of "
            "these look like prompts. Give several batches of prompts in a list."
        )


def _read(anatomy: Anatomy, batch: Any, *, answered: bool = True) -> PromptPairs:
    """A batch without its forward arguments: prompts aligned, answers as ids, what is odd said."""
    if isinstance(batch, PromptPairs):
        return batch
    fields = _fields(batch)
    assert fields is not None
    mask, other_mask = (fields.get(name) for name in MASKS)
    clean, corrupt = read_prompts(anatomy, fields["clean"], mask), None
    if fields.get("corrupt") is not None:
        other_mask = mask if other_mask is None else other_mask
        corrupt = read_prompts(anatomy, fields["corrupt"], other_mask)
        if is_text(fields["clean"]) and is_text(fields["corrupt"]):
            seq = max(clean.tokens.shape[1], corrupt.tokens.shape[1])
            clean, corrupt = (one.padded_to(seq, anatomy.pad_token) for one in (clean, corrupt))
        _check_same_shape(clean.tokens, corrupt.tokens)
    pairs = PromptPairs(
        clean.tokens,
        None if corrupt is None else corrupt.tokens,
        attention_mask=clean.real,
        corrupt_attention_mask=None if corrupt is None else corrupt.real,
    )
    return with_answers(anatomy, pairs, fields) if answered else pairs


def with_answers(anatomy: Anatomy, pairs: PromptPairs, fields: Mapping[str, Any]) -> PromptPairs:
    """A batch with its answers, as far as they are given.

    Raises:
        InputError: They are none, do not fit the prompts, or right and wrong ones are the same.
    """
    found = {
        name: read_answers(anatomy, fields[name], len(pairs), name, pairs.clean.device)
        for name in FIELDS[2:]
        if fields.get(name) is not None
    }
    if len(found) == 2:
        check_differ(found["answers"].ids, found["wrong_answers"].ids)
    ids = {name: one.ids for name, one in found.items()}
    twins = tuple(twin for one in found.values() for twin in one.twins)
    return replace(pairs, **ids, twins=twins)


def _with_forward(pairs: PromptPairs, forward: ForwardArg | None) -> PromptPairs:
    """A batch with the arguments of its forward passes; a mask among them is that of both prompts."""
    if forward is None:
        return pairs
    arguments = read_arguments(_made_for(forward, pairs) if callable(forward) else forward)
    mask = arguments.pop(MASK, None)
    if mask is not None:
        if pairs.attention_mask is not None or pairs.corrupt_attention_mask is not None:
            raise InputError(
                "The attention mask of these prompts is known already: it came with them, or they are "
                "texts of unequal length, which are padded and masked as they are tokenized. Leave "
                "attention_mask out of forward=."
            )
        real = read_mask(mask, pairs.clean)
        other = None if pairs.corrupt is None else read_mask(mask, pairs.corrupt)
        pairs = replace(pairs, attention_mask=real, corrupt_attention_mask=other)
    return replace(pairs, arguments=arguments)


def _made_for(
    make: Callable[[PromptPairs], Mapping[str, Any]], pairs: PromptPairs
) -> Mapping[str, Any]:
    made = make(pairs)
    if not isinstance(made, Mapping):
        raise InputError(
            f"The function given as forward= must return a mapping of arguments; got {made!r}."
        )
    return made


def _check_same_shape(clean: Tensor, corrupt: Tensor) -> None:
    if clean.shape[:2] != corrupt.shape[:2]:
        raise InputError(
            f"Clean and corrupt prompts must have the same number of prompts and of tokens, got "
            f"{tuple(clean.shape[:2])} and {tuple(corrupt.shape[:2])} ([batch, seq]). Texts of unequal "
            "length are padded and masked; tokens come with attention_mask and corrupt_attention_mask."
        )


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Name the batch in what is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"Batch {number}: {error}") from error
