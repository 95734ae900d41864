"""A pretrained model under Ctrl-C and under threads computes what it did, to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import circuit_trace as ct
from tests.footprint import hooks_of
from tests.interrupts import Interrupt, n_lines

CLEAN, CORRUPT = torch.arange(40, 52)[None], torch.arange(90, 102)[None]
EDGES = ["A3.1->A12.4.Q", "MLP 7->MLP 20", "A29.4->Resid End"]


def test_ctrl_c_in_the_middle_of_a_patch(model: ct.PatchableModel, bridge: Any) -> None:
    patched, before = model.source_outputs(CORRUPT), hooks_of(bridge)

    def patch() -> None:
        with torch.no_grad(), model.patch(patched, edges=EDGES):
            bridge(CLEAN)

    with torch.no_grad():
        plain = bridge(CLEAN)
    n = n_lines(patch)
    for at in (n // 2, n - 12):
        interrupt = Interrupt(at)
        assert interrupt.run(patch), interrupt.where
        assert hooks_of(bridge) == before, interrupt.where
    with torch.no_grad():
        assert torch.equal(bridge(CLEAN), plain)


def test_threads_that_share_it(model: ct.PatchableModel, bridge: Any) -> None:
    """One traces, one records, and one runs it plainly, at once; each gets what it gets alone."""
    before = hooks_of(bridge)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return bridge(CLEAN)

    def traced() -> torch.Tensor:
        return model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES).logits

    def recorded() -> torch.Tensor:
        return model.source_outputs(CORRUPT)["A12.4"]

    alone = [run() for run in (plain, traced, recorded)]
    with ThreadPoolExecutor(3) as pool:
        together = [pool.submit(run) for run in (plain, traced, recorded)]
        for one, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(one.result(), expected)
    assert (alone[1] - alone[0]).abs().max() > 1e-2
    assert hooks_of(bridge) == before
