"""The patches that are open on models: each acts in the thread that opened it, and there they add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import get_ident
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import InputError
from circuit_trace.hooks.record import PassRecord
from circuit_trace.hooks.scope import Scope, surely
from circuit_trace.hooks.session import Session
from circuit_trace.plan import Plan

T = TypeVar("T")

_OPEN: WeakKeyDictionary[nn.Module, list[OpenPatch]] = WeakKeyDictionary()
"""All that is open on a model, of every thread and wrapper, in the order of opening."""


@dataclass(eq=False)
class OpenPatch:
    """A patch from entering to leaving; of several in one thread the last has the hooks of all."""

    model: nn.Module
    anatomy: Anatomy
    plan: Plan
    wrapper: object
    on_record: Callable[[PassRecord], None]
    thread: int = field(default_factory=get_ident)
    scope: Scope = field(default_factory=Scope)

    def enter(self) -> None:
        """Patch from now on; `leave` undoes it, also where this was interrupted."""
        _OPEN.setdefault(self.model, []).append(self)
        self.renew()

    def leave(self) -> None:
        """Patch no more; the thread's other patches of the model go on. Twice does no harm."""
        self.scope.close()
        opened = _OPEN.get(self.model, [])
        if self in opened:
            opened.remove(self)
        self.renew()

    def renew(self) -> None:
        """Put on the hooks of all that the thread has open; for an edge of two the inner counts."""
        opened = open_patches(self.model, self.thread)
        plans: list[Plan] = []
        for one in opened:
            one.scope.close()
            plans = [*(outer.without(one.plan) for outer in plans), one.plan]
        if opened:
            last = opened[-1]
            session = Session(last.model, last.anatomy, tuple(plans), on_record=last.on_record)
            # Known before it opens; what garbage collection may have opened meanwhile is closed.
            replaced, last.scope = last.scope, session.scope
            replaced.close()
            session.attach(last.thread)


def open_patches(model: nn.Module, thread: int | None = None) -> list[OpenPatch]:
    """The patches of a model that this thread, or another one, has open."""
    thread = thread or get_ident()
    return [one for one in tuple(_OPEN.get(model, ())) if one.thread == thread]


def check_alone(model: nn.Module, wrapper: object) -> None:
    """Two wrappers' patches of one destination cannot both be exact: refuse the second.

    Raises:
        InputError: This thread has a patch of another wrapper open.
    """
    if any(one.wrapper is not wrapper for one in open_patches(model)):
        raise InputError(
            "Another wrapper of this model has a patch open. Close it first, or open both "
            "patches on the same wrapper: contexts of one wrapper add up."
        )


def unpatched(model: nn.Module, run: Callable[[], T]) -> T:
    """What `run` returns outside every patch that this thread has open."""
    opened = open_patches(model)
    if not opened:
        return run()

    def outside() -> T:
        for one in opened:
            one.scope.close()
        return run()

    return surely(outside, opened[-1].renew)
