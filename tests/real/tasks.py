"""Six tasks that SmolLM2-135M-Instruct can do: prompts, answers, and what plain passes give for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A clean prompt and one with a word changed; `answers` are right after the clean one, `wrong`
    after the corrupt one. `values` are the logit differences (means of the answers less means of the
    wrong ones, at the last position) of plain passes, and `top` the likeliest next token of each,
    all read off the model without this library."""

    name: str
    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    n_tokens: int
    values: tuple[float, float]
    top: tuple[str, str]

    @property
    def data(self) -> tuple[str, str, list[list[str]], list[list[str]]]:
        """A batch, as `score_edges` takes it."""
        return self.clean, self.corrupt, [list(self.answers)], [list(self.wrong)]


IOI = Task(
    "ioi",
    "When Mary and John went to the store, John gave a drink to",
    "When John and Mary went to the store, Mary gave a drink to",
    (" Mary",),
    (" John",),
    15,
    (5.2873, -6.2028),
    (" Mary", " John"),
)
FACT = Task(
    "fact",
    "The capital of France is",
    "The capital of Germany is",
    (" Paris",),
    (" Berlin",),
    6,
    (5.8815, -6.5699),
    (" Paris", " Berlin"),
)
AGREEMENT = Task(
    "agreement",
    "The keys to the cabinet",
    "The key to the cabinet",
    (" are", " were"),
    (" is", " was"),
    6,
    (1.1105, -3.2655),
    (".", "'s"),
)
PRONOUN = Task(
    "pronoun",
    "My brother went home because",
    "My sister went home because",
    (" he",),
    (" she",),
    6,
    (2.6892, -2.0592),
    (" he", " she"),
)
GREATER_THAN = Task(
    "greater_than",
    "The war lasted from the year 1761 to the year 17",
    "The war lasted from the year 1701 to the year 17",
    ("6", "7", "8", "9"),
    ("0", "1", "2"),
    18,
    (4.5713, -2.9483),
    ("6", "1"),
)
INDUCTION = Task(
    "induction",
    " lamp river stone cloud lamp river stone",
    " lamp river cloud stone lamp river stone",
    (" cloud",),
    (" lamp",),
    8,
    (1.7869, -2.6197),
    ("\n", "."),
)
TASKS = (IOI, FACT, AGREEMENT, PRONOUN, GREATER_THAN, INDUCTION)
