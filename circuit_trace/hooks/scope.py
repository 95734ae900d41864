"""Hooks that act while their context is open, in the thread that opened it, and never else.

An interrupt (Ctrl-C) may come between any two lines, also between torch's putting a hook on and our
learning of it, and other threads run the same model. So no hook relies on being taken off in time:
each asks its scope first, and one that is left behind does nothing but go at the next pass.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import _DummyThread, current_thread, get_ident
from typing import Any, TypeVar

import torch
from torch import nn

from circuit_trace.errors import InputError

T = TypeVar("T")

Hook = tuple[nn.Module, Callable[..., Any]]
"""A module and the function that torch calls when it runs."""

NOT_YET, CLOSED = 0, -1
"""A scope's thread before it opens and after it has closed; no thread has these numbers."""


class Scope:
    """Hooks that are put on together; closing them is one assignment, whatever becomes of the rest.

    >>> layer, scope = nn.Identity(), Scope()
    >>> _ = scope.after(layer, lambda args, output: output + 1)
    >>> scope.open()
    >>> layer(1)
    2
    >>> scope.close()
    >>> layer(1)
    1
    """

    def __init__(self) -> None:
        self._thread = NOT_YET
        self._hooks: list[Hook] = []

    def before(
        self, module: nn.Module, call: Callable[[tuple, dict], Any], *, first: bool = False
    ) -> Hook:
        """Call before the module runs, with what it is given; it is given what is returned, if any.

        `first` goes before the hooks that are there, else it goes behind them.
        """

        # Torch passes no kwargs while it is only half-way through putting the hook on.
        def hook(running: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
            return call(args, kwargs or {}) if self._acts((running, hook), module) else None

        self._hooks.append((module, hook))  # first, so that it is known however this ends
        module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)
        return module, hook

    def after(
        self, module: nn.Module, call: Callable[[tuple, Any], Any], *, first: bool = False
    ) -> Hook:
        """Call when the module has run, with what it was given and what it returns, as `before`."""

        def hook(running: nn.Module, args: tuple, output: Any) -> Any:
            return call(args, output) if self._acts((running, hook), module) else None

        self._hooks.append((module, hook))
        module.register_forward_hook(hook, prepend=first)
        return module, hook

    def open(self, thread: int | None = None) -> None:
        """Let the hooks act from now on, in this thread or another; only once."""
        if self._thread == NOT_YET:
            self._thread = thread or get_ident()

    def close(self) -> None:
        """Let the hooks never act again, and take them off."""
        self._thread = CLOSED
        for hook in self._hooks:
            _take_off(hook)
        self._hooks = []

    def during(self, run: Callable[[], T]) -> T:
        """What `run` returns, which may put hooks on; the scope is open meanwhile."""

        def opened() -> T:
            self.open()
            return run()

        return surely(opened, self.close)

    def _acts(self, hook: Hook, module: nn.Module) -> bool:
        """Whether a hook that torch calls for a module is to act; if never again, it goes."""
        if self._thread == get_ident():
            return hook[0] is module  # a copy of the model took the hook along
        if self._thread == CLOSED:
            _take_off(hook)
        elif self._thread != NOT_YET and hook[0] is module and _runs_layers_again():
            raise InputError(
                "A backward pass runs layers of this model again (gradient checkpointing) while a "
                "patch is open, and would run them without it. Close the context first, or switch "
                "gradient checkpointing off."
            )
        return False


def move_last(hooks: list[Hook]) -> None:
    """Let hooks go behind all others that are on their modules now, in the order of the list."""
    for hook in hooks:
        for table, _, key in _places(hook):
            table.move_to_end(key)


def surely(run: Callable[[], T], close: Callable[[], object]) -> T:
    """Run something and close behind it; `close` must do no harm twice.

    It is called again where an interrupt came in it, or just before it.
    """
    try:
        try:
            return run()
        finally:
            close()
    except BaseException:
        close()
        raise


def _places(hook: Hook) -> list[tuple[Any, dict, int]]:
    """Where torch keeps a hook: the table, that of its flags, and the key in both.

    We look for the hook itself, since an interrupt may have come before torch returned its key.
    """
    module, call = hook
    tables = (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    )
    return [
        (table, flags, key)
        for table, flags in tables
        for key, one in tuple(table.items())
        if one is call
    ]


def _take_off(hook: Hook) -> None:
    for table, flags, key in _places(hook):
        flags.pop(key, None)  # first, for by the table we find the rest after an interrupt
        table.pop(key, None)


def _runs_layers_again() -> bool:
    """Whether this is a thread of autograd's own, such as a GPU's: none that Python has started."""
    is_backward = torch._C._current_graph_task_id() != -1
    return is_backward and isinstance(current_thread(), _DummyThread)
