"""The text of tokens, and the tokens of text, as far as a file holds them: no tokenizer is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from circuit_trace.errors import InputError

NO_TOKEN = -1
"""Stands for text that is not one token."""


@dataclass(frozen=True, eq=False)
class SavedStrings:
    """The strings of the rows of tokens that a pass ran, and of the vocabulary if it was saved."""

    rows: Mapping[tuple[int, ...], list[str]]
    vocabulary: Sequence[str] | None = None

    def __call__(self, row: Tensor) -> list[str]:
        """The strings of a row of tokens.

        Raises:
            InputError: They were not saved.
        """
        ids: tuple[int, ...] = tuple(row.tolist())
        if ids in self.rows:
            return list(self.rows[ids])
        if self.vocabulary is None or not all(0 <= one < len(self.vocabulary) for one in ids):
            raise InputError(
                "This trace was saved with the strings of its own tokens only. Save it with "
                "trace.save(path, unembed=True) to have those of the whole vocabulary."
            )
        return [self.vocabulary[one] for one in ids]


@dataclass(frozen=True, eq=False)
class SavedIds:
    """The tokens that texts of the vocabulary are, alone and behind a space."""

    vocabulary: Sequence[str]
    alone: Sequence[int]
    spaced: Sequence[int]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {text: place for place, text in reversed(list(enumerate(self.vocabulary)))}

    def __call__(self, text: str) -> list[int]:
        """The token that a text is.

        Raises:
            InputError: It is none, or several.
        """
        place = self._place.get(text)
        token = NO_TOKEN if place is None else self.alone[place]
        if token == NO_TOKEN and text.startswith(" "):
            place = self._place.get(text[1:])
            token = NO_TOKEN if place is None else self.spaced[place]
        if token == NO_TOKEN:
            raise InputError(
                f"{text!r} is no single token of the vocabulary that was saved with this trace. Mind "
                "the space before a word, or give a token's id."
            )
        return [token]
