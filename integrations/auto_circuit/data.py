"""Batches of clean and corrupt prompts, and loaders of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from circuit_trace.errors import InputError

BatchKey = int
"""A number that tells a batch from others; equal prompts have an equal one, in every process."""

Answers = Tensor | list[Tensor]
"""Tokens `[batch, n_answers]`; a list of `[n_answers]` where prompts have different numbers."""


@dataclass(frozen=True, eq=False)
class PromptPair:
    """A clean and a corrupt prompt, `[seq]`, with right and wrong next tokens, `[n_answers]`."""

    clean: Tensor
    corrupt: Tensor
    answers: Tensor
    wrong_answers: Tensor


@dataclass(frozen=True, eq=False)
class PromptPairBatch:
    """A batch of prompt pairs: prompts `[batch, seq]` and their answers.

    `batch_diverge_idx` is the first position at which any clean prompt differs from its corrupt one.
    """

    key: BatchKey
    batch_diverge_idx: int
    clean: Tensor
    corrupt: Tensor
    answers: Answers
    wrong_answers: Answers


class PromptDataset(Dataset[PromptPair]):
    """Pairs of prompts of one length, given in lists of `[seq]` or tensors `[n_prompts, seq]`."""

    def __init__(
        self,
        clean_prompts: Sequence[Tensor] | Tensor,
        corrupt_prompts: Sequence[Tensor] | Tensor,
        answers: Sequence[Tensor],
        wrong_answers: Sequence[Tensor],
    ) -> None:
        lists = (clean_prompts, corrupt_prompts, answers, wrong_answers)
        if len({len(one) for one in lists}) > 1:
            raise InputError(
                "A dataset needs as many clean prompts as corrupt ones, answers and wrong answers; "
                f"got {', '.join(str(len(one)) for one in lists)}."
            )
        self.clean_prompts = clean_prompts
        self.corrupt_prompts = corrupt_prompts
        self.answers = answers
        self.wrong_answers = wrong_answers

    def __len__(self) -> int:
        return len(self.clean_prompts)

    def __getitem__(self, idx: int) -> PromptPair:
        return PromptPair(
            self.clean_prompts[idx],
            self.corrupt_prompts[idx],
            self.answers[idx],
            self.wrong_answers[idx],
        )


class PromptDataLoader(DataLoader[PromptPair]):
    """A `DataLoader` whose batches are `PromptPairBatch`es, all of one size: what is left is dropped.

    `seq_len` is the prompts' length where it is fixed, `diverge_idx` how many positions a cached
    prefix (`kv_cache`) has taken from the prompts, `seq_labels` a label for each position, and
    `word_idxs` the positions of words.
    """

    def __init__(
        self,
        prompt_dataset: Dataset[PromptPair],
        seq_len: int | None,
        diverge_idx: int,
        kv_cache: Any = None,
        seq_labels: list[str] | None = None,
        word_idxs: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        if kv_cache is not None and diverge_idx == 0:
            raise InputError("A kv_cache holds a prefix: diverge_idx must say its length, not 0.")
        super().__init__(prompt_dataset, **kwargs, drop_last=True, collate_fn=collate_fn)
        self.seq_len = seq_len
        self.diverge_idx = diverge_idx
        self.kv_cache = kv_cache
        self.seq_labels = seq_labels
        self.word_idxs = dict(word_idxs or {})


def batches_of(loader: Iterable[Any]) -> Iterator[PromptPairBatch]:
    """The batches of a loader, checked as they come.

    Raises:
        InputError: One is no batch of prompt pairs.
    """
    for batch in loader:
        if not all(hasattr(batch, name) for name in ("key", "clean", "corrupt")):
            raise InputError(
                "Expected a PromptDataLoader, which gives PromptPairBatches; got a "
                f"{type(batch).__name__} as a batch."
            )
        yield batch


def collate_fn(pairs: list[PromptPair]) -> PromptPairBatch:
    """Make a batch of some pairs."""
    lengths = {len(prompt) for pair in pairs for prompt in (pair.clean, pair.corrupt)}
    if len(lengths) > 1:
        raise InputError(
            f"The prompts of a batch must have the same number of tokens, got {sorted(lengths)}."
        )
    clean = torch.stack([pair.clean for pair in pairs])
    corrupt = torch.stack([pair.corrupt for pair in pairs])
    return PromptPairBatch(
        _key(clean, corrupt),
        first_difference(clean, corrupt),
        clean,
        corrupt,
        _stacked([pair.answers for pair in pairs]),
        _stacked([pair.wrong_answers for pair in pairs]),
    )


def first_difference(clean: Tensor, corrupt: Tensor) -> int:
    """The first position at which a clean prompt differs from its corrupt one; 0 where none does."""
    return int((clean != corrupt).int().argmax(1).min())


def _stacked(answers: list[Tensor]) -> Answers:
    is_even = len({one.shape for one in answers}) == 1
    return torch.stack(answers) if is_even else answers


def _key(clean: Tensor, corrupt: Tensor) -> BatchKey:
    text = f"{clean.tolist()} {corrupt.tolist()}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
