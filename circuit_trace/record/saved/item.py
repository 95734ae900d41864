"""A look at data from a file that trusts nothing: each value is checked when it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from circuit_trace.errors import FormatError


@dataclass(frozen=True)
class Item:
    """A value, and where in the file it stands.

    >>> Item({"seq_len": "six"}, "graph")["seq_len"].whole(1)
    Traceback (most recent call last):
    ...
    circuit_trace.errors.FormatError: The file's graph.seq_len is 'six': expected a whole number ...
    """

    value: Any
    where: str

    def __getitem__(self, name: str) -> Item:
        if not isinstance(self.value, dict):
            self.refuse("an object")
        if name not in self.value:
            raise FormatError(f"The file's {self.where} has no {name!r}, which Trace.save writes.")
        return Item(self.value[name], f"{self.where}.{name}")

    def maybe(self, name: str) -> Item | None:
        """A field that older files do not have, or that is null: None."""
        is_there = isinstance(self.value, dict) and self.value.get(name) is not None
        return self[name] if is_there else None

    @property
    def optional(self) -> Item | None:
        """This, None where the value is null."""
        return None if self.value is None else self

    def entries(self, least: int = 0, most: int | None = None) -> list[Item]:
        """The entries of a list."""
        n = len(self.value) if isinstance(self.value, list) else -1
        if n < least or (most is not None and n > most):
            self.refuse(
                f"a list of {least} to {most if most is not None else 'any number of'} entries"
            )
        return [Item(one, f"{self.where}[{place}]") for place, one in enumerate(self.value)]

    def pairs(self) -> list[tuple[str, Item]]:
        """The entries of an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return [(name, self[name]) for name in self.value]

    def text(self, among: Sequence[str] | None = None) -> str:
        """A string, one of `among` if it is given."""
        if not isinstance(self.value, str) or (among is not None and self.value not in among):
            self.refuse("text" if among is None else f"one of {', '.join(among)}")
        return self.value

    def whole(self, low: int, high: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        is_whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        if not is_whole or self.value < low or (high is not None and self.value > high):
            self.refuse(f"a whole number from {low}{'' if high is None else f' to {high}'}")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def refuse(self, expected: str) -> NoReturn:
        """Raise FormatError: something else was expected here."""
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        raise FormatError(f"The file's {self.where} is {shown}: expected {expected}.")
