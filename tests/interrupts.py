"""Ctrl-C at any line: interrupts that a tracing function places where one is wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.nn import Module
from torch.utils.hooks import RemovableHandle

import circuit_trace

OURS = os.path.dirname(circuit_trace.__file__)
INTEGRATIONS = os.path.join(os.path.dirname(OURS), "integrations")
TORCHS = {
    Module.register_forward_hook.__code__,
    Module.register_forward_pre_hook.__code__,
    RemovableHandle.__init__.__code__,
}
"""What torch does when a hook is put on counts too: between any two of its lines."""


class Interrupt:
    """Raises KeyboardInterrupt at the line with that number (from 0) of those that run."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.n_lines = 0
        self.where = ""

    def run(self, do: Callable[[], object]) -> bool:
        """Whether the interrupt came out of what was run."""
        others = sys.gettrace()
        sys.settrace(self._enters)
        try:
            do()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(others)
        return False

    def _enters(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        is_ours = code.co_filename.startswith((OURS, INTEGRATIONS)) or code in TORCHS
        return self._runs if is_ours else None

    def _runs(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.n_lines += 1
            if self.n_lines - 1 == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._runs


def n_lines(do: Callable[[], object]) -> int:
    """How many lines run where no interrupt comes, what is cached being known."""
    do()
    count = Interrupt(None)
    assert not count.run(do)
    return count.n_lines
