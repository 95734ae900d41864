"""Attaching to a point: inputs given by place or by name, outputs bare or in a tuple."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuit_trace.anatomy import Point
from circuit_trace.hooks.attach import attach
from circuit_trace.hooks.scope import Scope


class Block(nn.Module):
    """Like a Hugging Face block: an input by place or by name, a tuple out."""

    def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        return hidden * scale, "cache"


X = torch.tensor([1.0, 2.0])
CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "by place": ((X,), {}),
    "by place, more by name": ((X,), {"scale": 3.0}),
    "all by place": ((X, 3.0), {}),
    "by name": ((), {"hidden": X}),
    "all by name": ((), {"hidden": X, "scale": 3.0}),
}


@pytest.fixture
def scope() -> Scope:
    scope = Scope()
    scope.open()
    return scope


@pytest.mark.parametrize("how", CALLS)
def test_an_input_is_seen_and_changed(how: str) -> None:
    args, kwargs = CALLS[how]
    block, seen = Block(), []
    factor = kwargs.get("scale", args[1] if len(args) > 1 else 1.0)
    watching, changing = Scope(), Scope()
    watching.open()
    changing.open()
    attach(watching, Point(block, "input"), seen.append)
    assert torch.equal(block(*args, **kwargs)[0], X * factor)
    assert torch.equal(seen[0], X)
    watching.close()
    attach(changing, Point(block, "input"), lambda tensor: tensor + 1)
    out, cache = block(*args, **kwargs)
    assert torch.equal(out, (X + 1) * factor)
    assert cache == "cache"
    changing.close()
    assert torch.equal(block(*args, **kwargs)[0], X * factor)
    assert len(seen) == 1


def test_the_output_in_a_tuple_is_its_first(scope: Scope) -> None:
    block, seen = Block(), []
    attach(scope, Point(block), seen.append)
    attach(scope, Point(block), lambda tensor: tensor * 10)
    out, cache = block(X)
    assert torch.equal(out, X * 10)
    assert cache == "cache"
    assert torch.equal(seen[0], X)


def test_a_bare_output(scope: Scope) -> None:
    layer = nn.Identity()
    attach(scope, Point(layer), lambda tensor: tensor * 10)
    assert torch.equal(layer(X), X * 10)


@pytest.mark.parametrize("side", ["input", "output"])
def test_first_goes_before_hooks_that_are_there(side: str, scope: Scope) -> None:
    layer, order = nn.Identity(), []
    register = {
        "input": lambda: layer.register_forward_pre_hook(lambda *_: order.append("theirs")),
        "output": lambda: layer.register_forward_hook(lambda *_: order.append("theirs")),
    }[side]
    register()
    attach(scope, Point(layer, side), lambda _: order.append("last"))
    attach(scope, Point(layer, side), lambda _: order.append("first"), first=True)
    layer(X)
    assert order == ["first", "theirs", "last"]
