"""Attach one function to a point of a model as a plain torch forward hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuit_trace.anatomy import Point
from circuit_trace.hooks.scope import Hook, Scope

OnTensor = Callable[[Tensor], "Tensor | None"]
"""Sees the tensor that passes; what it returns, unless None, passes in its place."""


def attach(scope: Scope, point: Point, on_tensor: OnTensor, *, first: bool = False) -> Hook:
    """Call `on_tensor` whenever a tensor passes the point, before or after all other hooks there.

    Torch's own hooks are used, not TransformerLens', so `reset_hooks` (which `run_with_cache`
    calls on its way out) leaves them alone; layouts are therefore the model's raw ones.
    """
    if point.side == "output":

        def after(_args: tuple, output: Any) -> Any:
            is_tuple = isinstance(output, tuple)
            new = _see(on_tensor, output[0] if is_tuple else output)
            if new is None:
                return None
            return (new, *output[1:]) if is_tuple else new

        return scope.after(point.module, after, first=first)

    def before(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args:
            new = _see(on_tensor, args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = next(iter(kwargs))
        new = _see(on_tensor, kwargs[name])
        return None if new is None else (args, {**kwargs, name: new})

    return scope.before(point.module, before, first=first)


def unflattened(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """The tensor as `[batch, seq, ...]`: some models flatten the two (OPT, before its MLP)."""
    if tensor.ndim == 2 and len(tensor) == shape[0] * shape[1]:
        return tensor.unflatten(0, shape)
    return tensor


def _see(on_tensor: OnTensor, tensor: Any) -> Tensor | None:
    """Outside autocast: what we compute keeps the precision of its inputs."""
    is_real = isinstance(tensor, Tensor) and not tensor.is_meta  # there is no autocast on meta
    if is_real and torch.is_autocast_enabled(tensor.device.type):
        with torch.autocast(tensor.device.type, enabled=False):
            return on_tensor(tensor)
    return on_tensor(tensor)
