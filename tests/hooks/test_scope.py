"""A scope: open or not, in one thread, and its hooks off whatever happened on the way."""

from __future__ import annotations

import _thread
import copy
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import circuit_trace as ct
from circuit_trace.hooks.scope import Scope, move_last, surely
from tests.footprint import hooks_of

X = torch.tensor([1.0, 2.0])


def both(scope: Scope, layer: nn.Module) -> None:
    """A hook on each side: the input is doubled, 1 is added to the output."""
    scope.before(layer, lambda args, kwargs: ((args[0] * 2,), kwargs))
    scope.after(layer, lambda args, output: output + 1)


def test_hooks_act_from_opening_to_closing() -> None:
    layer, scope = nn.Identity(), Scope()
    both(scope, layer)
    assert torch.equal(layer(X), X), "not open yet"
    scope.open()
    assert torch.equal(layer(X), 2 * X + 1)
    scope.close()
    assert torch.equal(layer(X), X)
    assert hooks_of(layer) == {}
    scope.open()
    both(scope, layer)
    assert torch.equal(layer(X), X), "it opens once"


def test_what_is_left_behind_does_nothing_and_goes_at_the_next_pass() -> None:
    """As after a second Ctrl-C, in the very act of taking off."""
    layer, scope = nn.Identity(), Scope()
    both(scope, layer)
    scope.open()
    left = [(table, dict(table)) for table in (layer._forward_hooks, layer._forward_pre_hooks)]
    scope.close()
    for table, hooks in left:
        table.update(hooks)
    layer._forward_pre_hooks_with_kwargs.clear()  # nor does it matter how far torch had come
    assert hooks_of(layer)
    assert torch.equal(layer(X), X)
    assert hooks_of(layer) == {}


def test_on_a_copy_of_the_model_too() -> None:
    layer, scope = nn.Identity(), Scope()
    both(scope, layer)
    scope.open()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(X), X)
    assert hooks_of(twin), "as long as it is open"
    scope.close()
    assert torch.equal(twin(X), X)
    assert hooks_of(twin) == {}


def test_other_threads_pass_by() -> None:
    layer, scope, seen = nn.Identity(), Scope(), []
    both(scope, layer)
    scope.open()
    in_thread(lambda: seen.append(layer(X)))
    assert torch.equal(seen[0], X)
    assert torch.equal(layer(X), 2 * X + 1), "nor do they take the hooks off"


def test_hooks_that_move_last_keep_their_order() -> None:
    layer, scope, order = nn.Identity(), Scope(), list[str]()
    ours = [scope.after(layer, lambda *_, n=n: order.append(n)) for n in ("first", "second")]
    scope.open()
    layer.register_forward_hook(lambda *_: order.append("theirs"))
    layer(X)
    move_last(ours)
    layer(X)
    assert order == ["first", "second", "theirs", "theirs", "first", "second"]


@pytest.mark.parametrize("failing", [(), (0,), (1,), (0, 1)])
def test_closing_comes_surely(failing: tuple[int, ...]) -> None:
    """Where the first call of `close` is interrupted a second one follows."""
    calls: list[str] = []

    def run() -> str:
        if 1 in failing:
            raise KeyError("run")
        return "result"

    def close() -> None:
        calls.append("close")
        if 0 in failing and len(calls) == 1:
            raise KeyboardInterrupt

    if not failing:
        assert surely(run, close) == "result"
        assert calls == ["close"]
        return
    with pytest.raises(KeyboardInterrupt if 0 in failing else KeyError):
        surely(run, close)
    assert calls == ["close", "close"]


class Layers(nn.Module):
    """Two layers, the second of which is run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.two, self.one(x), use_reentrant=False)


def in_thread(run: Callable[[], object], *, of_python: bool = True) -> None:
    """Run in another thread; not of Python, as far as `threading` knows, as autograd's for a GPU are."""
    done = Event()

    def until_done() -> None:
        try:
            run()
        finally:
            done.set()

    if of_python:
        Thread(target=until_done).start()
    else:
        _thread.start_new_thread(until_done, ())
    assert done.wait(20)


@pytest.mark.parametrize("of_python", [True, False])
def test_layers_that_autograd_runs_again_in_a_thread_of_its_own_are_refused(
    of_python: bool,
) -> None:
    """They would run without the patch. A thread of the user's own runs a pass of its own."""
    model, scope = Layers(), Scope()
    scope.before(model.two, lambda args, kwargs: ((args[0] * 2,), kwargs))
    scope.open()
    loss = model(X).sum()
    failed: list[Any] = []

    def backward() -> None:
        try:
            loss.backward() if not of_python else model(X).sum().backward()
        except ct.InputError as error:
            failed.append(str(error))

    in_thread(backward, of_python=of_python)
    assert failed == (
        []
        if of_python
        else [
            "A backward pass runs layers of this model again (gradient checkpointing) while a patch "
            "is open, and would run them without it. Close the context first, or switch gradient "
            "checkpointing off."
        ]
    )
