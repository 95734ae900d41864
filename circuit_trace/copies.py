"""Copies and pickles of a wrapped model: the model's own, with the anatomy found anew in it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from circuit_trace.anatomy import Anatomy
from circuit_trace.engine import Engine
from circuit_trace.errors import AnatomyError, InputError
from circuit_trace.graph import Graph

Wrapped = TypeVar("Wrapped", bound=Engine)

UNPICKLABLE = (AttributeError, TypeError, RuntimeError, pickle.PicklingError)
"""What pickle and torch raise for a model with functions or handles in it."""


def of(wrapped: Wrapped, model: nn.Module, anatomy: Anatomy | None = None) -> Wrapped:
    """A model wrapped as another one is; without an anatomy its own is found."""
    return _wrapped(type(wrapped), model, anatomy, *_how(wrapped))


def check(wrapped: Engine) -> None:
    """Raise AnatomyError where the anatomy of a copy cannot be found."""
    if wrapped._anatomy_of is None:
        raise AnatomyError(
            "A model wrapped with an anatomy of your own cannot be copied with it: copy "
            ".wrapped_model and wrap the copy with its own anatomy."
        )


def pickled(wrapped: Engine) -> tuple[Any, ...]:
    """What a wrapped model is pickled as.

    Raises:
        AnatomyError: Its anatomy could not be found again.
        InputError: A patch is open, or the model itself cannot be pickled.
    """
    check(wrapped)
    if wrapped.has_open_patch:
        raise InputError(
            "A patch is open on this model, whose hooks no pickle can hold. Close it first."
        )
    try:
        model = pickle.dumps(wrapped.wrapped_model)
    except UNPICKLABLE as error:
        raise InputError(
            f"A {type(wrapped.wrapped_model).__name__} cannot be pickled ({error}). Load and wrap the "
            "model where it is needed, or send what was made with it: traces, source outputs, scores "
            "and tables can be pickled."
        ) from error
    return _unpickled, (type(wrapped), model, *_how(wrapped))


def _how(wrapped: Engine) -> tuple[Any, ...]:
    is_verified = wrapped.anatomy.verified
    return wrapped._anatomy_of, wrapped.graph, getattr(wrapped, "slice_output", None), is_verified


def _unpickled(kind: Any, model: bytes, *how: Any) -> Any:
    return _wrapped(kind, pickle.loads(model), None, *how)


def _wrapped(
    kind: Any,
    model: nn.Module,
    anatomy: Anatomy | None,
    anatomy_of: Any,
    graph: Graph,
    slice_output: Any,
    verified: bool,
) -> Any:
    own = anatomy or replace(anatomy_of(model), verified=verified)
    twin = kind(model, own, graph, slice_output)
    twin._anatomy_of = anatomy_of
    return twin
