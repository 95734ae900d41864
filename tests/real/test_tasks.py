"""What must come out of the real model: known answers, and passes that add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from tests.real.tasks import IOI, TASKS, Task


def difference(bridge: Any, task: Task, logits: torch.Tensor) -> float:
    """The task's logit difference, by TransformerLens' tokens and plain torch."""
    right, wrong = (
        [int(bridge.to_tokens(text, prepend_bos=False)[0, 0]) for text in texts]
        for texts in (task.answers, task.wrong)
    )
    return float(logits[0, -1, right].mean() - logits[0, -1, wrong].mean())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
class TestTasks:
    def test_the_model_does_it(self, bridge: Any, task: Task) -> None:
        for prompt, value, top in zip(
            (task.clean, task.corrupt), task.values, task.top, strict=True
        ):
            tokens = bridge.to_tokens(prompt)
            with torch.no_grad():
                logits = bridge(tokens)
            assert tokens.shape[1] == task.n_tokens
            assert difference(bridge, task, logits) == pytest.approx(value, abs=2e-3)
            assert bridge.to_string(logits[0, -1].argmax()) == top

    def test_all_edges_patched_give_the_corrupt_logits(
        self, model: ct.PatchableModel, bridge: Any, task: Task
    ) -> None:
        trace = model.trace(task.clean, corrupt=task.corrupt, edges=["*->*"])
        assert trace.logits is not None
        with torch.no_grad():
            corrupt = bridge(bridge.to_tokens(task.corrupt))
        torch.testing.assert_close(trace.logits, corrupt, atol=2e-3, rtol=1e-4)
        assert trace.reconstruction_error() < 1e-4


def test_the_graph(model: ct.PatchableModel) -> None:
    assert (len(model.srcs), len(model.dests), model.n_edges) == (301, 481, 70_651)
    assert ct.wrap(model.wrapped_model, seq_len=IOI.n_tokens, verify=False).n_edges == 1_059_765
