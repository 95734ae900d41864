"""While hooks are on a model, what `torch.compile` made of it runs as it was written.

Compiled code has the hooks in it that were there when it was compiled, and sees no later ones: a
patched pass through it would be an unpatched one, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from time import sleep
from typing import Any
from weakref import WeakSet

import torch

_held: WeakSet[RunsEagerly] = WeakSet()
_go_back: Callable[..., Any] | None = None
_IN_HERE: dict[str, int] = {}
"""The thread that changes these two now, if any. An interrupt may keep a `with lock:` from letting go
for ever; whom this names comes in again, as `surely` makes it, and then lets go."""


class RunsEagerly:
    """Holds torch's compiler off from `begin` to `end`; several may do so, and end in any order.

    >>> import torch
    >>> doubled = torch.compile(lambda x: x * 2)
    >>> eager = RunsEagerly()
    >>> eager.begin()
    >>> doubled(torch.ones(2))
    tensor([2., 2.])
    >>> eager.end()
    """

    def begin(self) -> None:
        """Let compiled code run as plain Python from now on, in the whole process."""
        _alone(self._begin)

    def end(self) -> None:
        """Let it go back to what it was, when nobody else holds it off. Twice does no harm."""
        _alone(self._end)

    def _begin(self) -> None:
        global _go_back
        # Nothing was compiled yet without this module; torch before 2.6 has no such switch.
        is_compiling = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
        if _go_back is None and is_compiling:
            _go_back = torch.compiler.set_stance("force_eager").__exit__
        _held.add(self)

    def _end(self) -> None:
        global _go_back
        _held.discard(self)
        if not _held and _go_back is not None:
            _go_back(None, None, None)
            _go_back = None


def _alone(change: Callable[[], None]) -> None:
    """Run it in one thread at a time, also where an interrupt came in the last one."""
    thread = get_ident()
    while _IN_HERE.setdefault("thread", thread) != thread:
        sleep(0)
    try:
        change()
    finally:
        _IN_HERE.clear()
