"""Layers on different devices: what is added moves to where it is read, and nothing else moves.

No GPU is needed: fake tensors carry a device and refuse to be mixed with those of another, but hold
no values. What the values must be is tested everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import circuit_trace as ct
from circuit_trace.hooks import record
from tests.anatomy.toy import ToyModel, anatomy

FIRST, SECOND = torch.device("cpu:0"), torch.device("cpu:1")
TO_SECOND = ["Resid Start->B1.0", "B0.0->B1.0", "B0.1->B1.1"]
SOURCES = ("Resid Start", "B0.0", "B0.1")
TO_END = ["Resid Start->Resid End", "B1.0->Resid End"]


class Spread(ToyModel):
    """Each layer on a device of its own; the stream goes from one to the next."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = layer(x.to(layer.factors.device))  # pyright: ignore[reportCallIssue]
        return self.end(x)


class Moves(TorchDispatchMode):
    """Counts the copies from one GPU to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            ends = {one.device for one in (*args, out) if isinstance(one, Tensor)}
            self.count += {FIRST, SECOND} <= ends
        return out


@pytest.fixture(autouse=True)
def _no_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be found to add up or not, and fake directions are forgotten afterwards."""
    monkeypatch.setattr("circuit_trace.engine.warn_of_gap", lambda graph, record: None)
    yield
    record.directions.cache_clear()
    record._rows.cache_clear()


def moves(edges: list[str], mask: float = 1.0, *, grad: bool = False) -> int:
    """How many copies between the devices a patched pass makes."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = Spread()
    with fake:
        for layer, device in zip(model.layers, (FIRST, SECOND), strict=True):
            layer.factors = nn.Parameter(torch.empty(2, 2, device=device))
        clean, corrupt = (torch.empty(2, 4, 2, device=FIRST) for _ in range(2))
    wrapped = ct.wrap(model, anatomy=anatomy(model), verify=False)
    with fake, wrapped.patch():  # source_outputs compares random states, and fakes have no values
        model(corrupt)
        patched = wrapped.last_trace.current
    with (
        wrapped.patch(patched, edges=dict.fromkeys(edges, mask)),
        torch.set_grad_enabled(grad),
        fake,
        Moves() as counter,
    ):
        out = model(clean)
    assert out.device == SECOND
    assert out.shape == (2, 4, 2)
    with fake:
        trace = wrapped.last_trace
        assert trace.current.stack().device == FIRST
        assert trace.edge("B1.0->Resid End").current.device == FIRST
        assert trace.dest("Resid End").current.shape == (5, 2, 4, 2)
    return counter.count


def test_nothing_moves_but_the_stream() -> None:
    assert moves([]) == 1
    assert moves(["Resid Start->B0.1"]) == 1


def test_a_change_moves_once_for_all_heads_that_read_it() -> None:
    assert moves(TO_SECOND[:1]) == 1 + 1
    assert moves(TO_SECOND) == 1 + 1


def test_a_source_on_the_second_device_joins_the_others() -> None:
    assert moves(TO_END) == 1 + 1 + 1  # the stream, the source's difference, the sum
    assert moves(TO_SECOND + TO_END) == 1 + 1 + 1 + 1


def test_whole_matrices_of_masks_move_their_sum_once() -> None:
    every = [f"{source}->{dest}" for dest in ("B1.0", "B1.1") for source in SOURCES]
    assert moves(every, 0.5) == 1 + 1


def test_with_gradients_too() -> None:
    assert moves(TO_SECOND + TO_END, grad=True) == 1 + 1 + 1 + 1
