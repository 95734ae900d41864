"""Texts of unequal length in one batch of the real model count as they do one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.real.tasks import FACT, IOI

SHORT = (
    "Then Mary and John went home, and John gave a kiss to",
    "Then John and Mary went home, and Mary gave a kiss to",
)
CLEAN, CORRUPT = [IOI.clean, SHORT[0]], [IOI.corrupt, SHORT[1]]
DATA = (CLEAN, CORRUPT, [" Mary", " Mary"], [" John", " John"])


def test_scores_of_texts_of_unequal_length(model: ct.PatchableModel, bridge: Any) -> None:
    lengths = [bridge.to_tokens(text).shape[1] for text in CLEAN]
    assert lengths[0] != lengths[1]
    found = ct.score_edges(model, DATA)
    alone = [(c, d, " Mary", " John") for c, d in zip(CLEAN, CORRUPT, strict=True)]
    for key, score in ct.score_edges(model, alone).items():
        assert_close(found[key], score, rtol=1e-3, atol=2e-3)


def test_all_edges_patched_give_each_corrupt_prompts_own_logits(
    model: ct.PatchableModel, bridge: Any
) -> None:
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["*->*"])
    assert trace.logits is not None
    with torch.no_grad():
        for row, text in enumerate(CORRUPT):
            expected = bridge(bridge.to_tokens(text))[0, -1]
            assert_close(trace.logits[row, -1], expected, atol=2e-3, rtol=1e-4)


def test_paris_without_its_space(model: ct.PatchableModel) -> None:
    """Both are tokens; the model says the one with the space."""
    data = (FACT.clean, FACT.corrupt, "Paris", " Berlin")
    message = (
        r"^The answer 'Paris' of prompt 0 has the logit -?[\d.]+ on the clean prompt, but ' Paris'"
    )
    with pytest.warns(ct.DataWarning, match=message):
        ct.exact_scores(model, data, edges="A29.*->Resid End")
