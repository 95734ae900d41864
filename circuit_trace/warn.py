"""Warnings that point at the line of the user's own code."""

from __future__ import annotations

import inspect
import warnings

_NOT_THE_USERS = frozenset({"circuit_trace", "contextlib", "torch"})
"""Packages that stand between a user's call and what warns of it."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the innermost call from outside this library, however deep the reason was found.

    Args:
        message: What is not as it seems, and what to do.
        category: The kind of warning, by which it can be switched off.
    """
    frame, level = inspect.currentframe(), 0
    while frame is not None and _package(frame.f_globals) in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
