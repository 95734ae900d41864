"""What a destination read against what plain hooks see there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.models import CASES, TYPICAL, copy_of, oracle, shape_of, shared, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
TOY_CLEAN = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]])
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.mark.parametrize("name", CASES)
def test_every_destination_of_a_patched_pass(name: str) -> None:
    second = oracle(name)
    asks = shape_of(name).asks([1.0, 0.5, -0.5], n=12, seed=3)
    read = second.run(CLEAN, second.run(CORRUPT).wrote, asks).read
    edges = {f"{ask.src}->{ask.dest}": ask.mask for ask in asks}
    model = wrapped(name)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    assert set(read) == {dest.name for dest in model.dests}
    for dest, seen in read.items():
        found = trace.dest(dest).input
        assert found.shape == (2, SEQ, model.cfg.d_model)
        assert_close(found, seen.float(), msg=lambda text, dest=dest: f"{dest}: {text}", **CLOSE)


@pytest.mark.parametrize("name", TYPICAL)
def test_patched_at_positions_in_nested_contexts(name: str) -> None:
    second, model = oracle(name), wrapped(name, SEQ)
    asks = shape_of(name, SEQ).asks([1.0, 0.25], n=10, seed=5)
    corrupt = second.run(CORRUPT).wrote
    read = second.run(CLEAN, corrupt, asks).read
    patched = model.source_outputs(CORRUPT)
    halves = [
        {(ask.seq_idx, f"{ask.src}->{ask.dest}"): ask.mask for ask in half}
        for half in (asks[:5], asks[5:])
    ]
    with model.patch(patched, edges=halves[0]), model.patch(patched, edges=halves[1]):
        model(CLEAN)
    for dest, seen in read.items():
        assert_close(model.last_trace.dest(dest).input, seen.float(), **CLOSE)


def test_of_a_model_that_is_no_transformer() -> None:
    model = ToyModel()
    trace = ct.wrap(model, anatomy=toy_anatomy(model)).trace(TOY_CLEAN)
    assert_close(trace.dest("Resid End").input, model(TOY_CLEAN))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_other_precisions(dtype: torch.dtype) -> None:
    model = ct.wrap(copy_of(shared("hooked LN")).to(dtype))
    found = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->MLP 1"]).dest("MLP 1").input
    expected = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->MLP 1"])
    close = {"rtol": 0.1, "atol": 0.3} if dtype is torch.bfloat16 else CLOSE
    assert_close(found, expected.dest("MLP 1").input, **close)


def test_a_stream_that_hooks_changed_is_not_made_up() -> None:
    model = wrapped("hooked LN")

    def louder(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor * 2

    with model.wrapped_model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", louder)]):  # pyright: ignore[reportCallIssue]
        trace = model.trace(CLEAN)
    assert trace.dest("A0.1.Q").input.isfinite().all()
    for dest in ("A1.0.Q", "MLP 1", "Resid End"):
        with pytest.raises(ct.InputError, match=f"{dest} read something else than the sum of what"):
            _ = trace.dest(dest).input


def test_of_a_trace_saved_in_half_precision(tmp_path: Path) -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->MLP 1"])
    trace.save(tmp_path / "x.trace", dtype=torch.bfloat16)
    found = ct.Trace.load(tmp_path / "x.trace").dest("MLP 1").input
    assert_close(found, trace.dest("MLP 1").input, rtol=0.05, atol=0.05)
