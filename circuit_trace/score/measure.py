"""A metric of one traced prompt or batch, and what to call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import InputError
from circuit_trace.plan import PromptPairs, with_answers
from circuit_trace.record.outcome import Outcome, Patch
from circuit_trace.score.metrics import PerPrompt, read_metric


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric that is ready to be taken of logits of these prompts."""

    metric: PerPrompt
    prompts: PromptPairs
    name: str
    answers: tuple[int, int] | None

    @classmethod
    def read(
        cls, anatomy: Anatomy, pairs: PromptPairs, answers: Any, metric: Any
    ) -> Measure | None:
        """The metric that a user asks for, by its name, as a function, or (a difference of logits)
        by the right and the wrong answers; None where none is asked for.

        Raises:
            InputError: The answers are no pair, do not fit the prompts or are no tokens, or there is
                no such metric.
        """
        if answers is None and metric is None:
            return None
        fields: dict[str, Any] = {}
        if answers is not None:
            if not isinstance(answers, tuple | list) or len(answers) != 2:
                raise InputError(
                    "answers must be two, what should follow and what should not, such as (' Mary', "
                    f"' John'); each may be several tokens in a list. Got {answers!r}."
                )
            fields["answers"], fields["wrong_answers"] = (
                _for_each(one, len(pairs)) for one in answers
            )
        prompts = with_answers(anatomy, pairs, fields)
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "the metric")
        pair = _lone_pair(prompts)
        if metric is None:
            name = "logit_diff"
            if pair is not None and anatomy.to_strings is not None:
                right, wrong = anatomy.to_strings(torch.tensor(pair))
                name = f"logit({right}) − logit({wrong})"
        return cls(read_metric(metric or "logit_diff"), prompts, name, pair)

    def outcome(self, logits: Mapping[str, Tensor | None], patch: Patch | None) -> Outcome:
        """The metric of the passes whose logits these are, by what they patched; `patch` says which of
        them is the traced one, None if it patched nothing.

        Raises:
            InputError: A pass had no logits, or the metric fails.
        """
        if logits["clean"] is not None:
            self.prompts.warn_of_twins(logits["clean"])
        values = {name: self._of(one, logits["clean"]) for name, one in logits.items()}
        return Outcome(self.name, patch=patch, answers=self.answers, **values)

    def _of(self, logits: Tensor | None, clean_logits: Tensor | None) -> Float[Tensor, " batch"]:
        if logits is None:
            raise InputError(
                "A metric needs logits, but this pass recorded none: was the model run without them?"
            )
        return self.metric(logits, self.prompts, clean_logits).detach().double().cpu()


def _for_each(answers: Any, n_prompts: int) -> Any:
    """Answers as a batch has them: one token is that of every prompt, several tokens those of the one
    prompt there is."""
    if not isinstance(answers, list | tuple):
        return [answers] * n_prompts if isinstance(answers, str | int) else answers
    if n_prompts == 1 and not any(isinstance(one, list | tuple) for one in answers):
        return [list(answers)]
    return answers


def _lone_pair(prompts: PromptPairs) -> tuple[int, int] | None:
    """The right and the wrong token, where all prompts have one of each and the same."""
    found = []
    for ids in (prompts.answers, prompts.wrong_answers):
        if ids is None or ids.shape[1] != 1 or not bool((ids == ids[0]).all()):
            return None
        found.append(int(ids[0, 0]))
    return found[0], found[1]
