"""The warning about positions comes where it matters, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from circuit_trace.integrations.embedding import adds_positions, warn_without_positions
from tests.integrations.circuits import PLAIN, no_warning, scores_for, warned


def with_positions(kind: str) -> Any:
    return SimpleNamespace(cfg=SimpleNamespace(positional_embedding_type=kind))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, None),
        (PLAIN, None),
        (with_positions("standard"), True),
        (with_positions("rotary"), False),
        (with_positions("alibi"), False),
    ],
)
def test_who_adds_positions(model: Any, expected: bool | None) -> None:
    assert adds_positions(model) is expected
    scores = scores_for(PLAIN, share=0.0)
    with no_warning():
        warn_without_positions(scores, model, "A tool", "'input'")
    scores["blocks.1.hook_mlp_in"][0] = 1e-9
    if expected is False:
        with no_warning():
            warn_without_positions(scores, model, "A tool", "'input'")
    else:
        with warned(r"^A tool's 'input' is the embedding without positions"):
            warn_without_positions(scores, model, "A tool", "'input'")
