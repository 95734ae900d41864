"""The pair of sentences that the demo traces: only the names are swapped.

The bundled model was trained on sentences of this kind, but on none in which Mary and John meet.
"""

from __future__ import annotations

from typing import NamedTuple

CLEAN = "When Mary and John went to the store , John gave a drink to"
CORRUPT = "When John and Mary went to the store , Mary gave a drink to"

ANSWERS = ("Mary", "John")
"""The next word after `CLEAN` and the next word after `CORRUPT`."""


class Prompts(NamedTuple):
    """A clean and a corrupt prompt, and the next word of each."""

    clean: str
    corrupt: str
    answers: tuple[str, str]


BUNDLED = Prompts(CLEAN, CORRUPT, ANSWERS)
"""For the bundled word-level model: words and punctuation set apart by spaces."""

PRETRAINED = Prompts(CLEAN.replace(" ,", ","), CORRUPT.replace(" ,", ","), (" Mary", " John"))
"""For models with subword tokens, whose words begin with a space."""
