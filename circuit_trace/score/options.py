"""Read and check how edges are to be scored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from circuit_trace.errors import InputError
from circuit_trace.graph import whole_number
from circuit_trace.score.methods import METHODS, Method
from circuit_trace.score.prompts import PromptPairs

if TYPE_CHECKING:
    from circuit_trace.model import PatchableModel

Steps = int | Sequence[float]
"""How many points of a path, or the points themselves: 0 is the clean run, 1 the patched one."""

ForwardArg = Mapping[str, Any] | Callable[[PromptPairs], Mapping[str, Any]]
"""More arguments of a forward pass, or what makes them for a batch."""


def read_path(steps: Any) -> tuple[float, ...]:
    """The points on the way from clean (0) to patched (1).

    Raises:
        InputError: They are none.
    """
    number = whole_number(steps)
    if number is not None and number >= 1:
        return tuple((k + 0.5) / number for k in range(number))
    if number is None and isinstance(steps, Sequence) and not isinstance(steps, str):
        points = tuple(steps)
        if points and all(isinstance(p, int | float) and 0 <= p <= 1 for p in points):
            return tuple(float(point) for point in points)
    raise InputError(
        "steps must be a whole number of points, 1 or more, or a list of points from 0 (clean) to 1 "
        f"(patched); got {steps!r}."
    )


def read_method(name: Any) -> Method:
    """The method of that name.

    Raises:
        InputError: There is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, exact; got {name!r}.")
    return METHODS[name]


def read_mask_value(value: Any) -> float:
    """Where all masks are held.

    Raises:
        InputError: It is no finite number.
    """
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise InputError(
            f"mask_value must be a finite number (0 = current, 1 = patched); got {value!r}."
        )
    return float(value)


def read_forward(given: Any) -> Callable[[PromptPairs], Mapping[str, Any]]:
    """More arguments of the forward pass for each batch.

    Raises:
        InputError: They are neither a mapping nor a function.
    """
    if given is None or isinstance(given, Mapping):
        return lambda batch: given or {}
    if callable(given):
        return partial(_made_for, given)
    raise InputError(
        "forward must map names of the model's forward arguments to values, or be a function of the "
        f'batch that returns such a mapping, as {{"attention_mask": mask}}; got {given!r}.'
    )


def _made_for(make: Callable[[PromptPairs], Any], batch: PromptPairs) -> Mapping[str, Any]:
    made = make(batch)
    if not isinstance(made, Mapping):
        raise InputError(
            f"The function given as forward= must return a mapping of arguments; got {made!r}."
        )
    return made


def check_exact(forward: Any) -> None:
    """Refuse what patching every edge alone cannot take.

    Raises:
        InputError: It was given.
    """
    if forward is not None:
        raise InputError("method='exact' takes no forward=: score prompts without padding.")


def check_not_flat(metric: Any, method: str, path: tuple[float, ...], mask_value: float) -> None:
    """Refuse gradients of KL where it is least, since there they say nothing.

    Raises:
        InputError: The method takes them where nothing is patched.
    """
    is_at_clean = {
        "eap": True,
        "eap-ig": set(path) == {0.0},
        "eap-ig-activations": set(path) == {0.0},
        "mask-gradient": mask_value == 0,
    }
    if metric == "kl" and is_at_clean.get(method):
        raise InputError(
            f"KL is 0 and has no slope where nothing is patched, so method={method!r} would score every "
            "edge 0 there. Use method='eap-ig', 'clean-corrupted', 'exact', or 'mask-gradient' with "
            "mask_value=1."
        )


def check_model(model: Any) -> None:
    """Check that a model is wrapped, unpatched, and keeps what its backward pass needs.

    Raises:
        InputError: It is not.
        AnatomyError: It was changed since, and cannot be traced as it now is.
    """
    from circuit_trace.model import PatchableModel

    if not isinstance(model, PatchableModel):
        raise InputError(f"Expected a wrapped model, ct.wrap(model); got {type(model).__name__}.")
    if model.has_open_patch:
        raise InputError(
            "A patch is open on this model, so the clean pass would not be clean. Close it first."
        )
    model._renew()
    for module in model.wrapped_model.modules():
        if module.training and getattr(module, "gradient_checkpointing", False) is True:
            raise InputError(
                "The model runs its layers again in the backward pass (gradient checkpointing): call "
                "model.eval() first."
            )


@contextmanager
def same_every_time(model: PatchableModel) -> Iterator[None]:
    """Refuse passes that draw random numbers, as dropout in training mode does: a source's output
    would be another one each time. It shows in the generators' states, however deep it is hidden.

    Raises:
        InputError: The passes that ran meanwhile have drawn some.
    """
    devices = {p.device for p in model.wrapped_model.parameters() if p.is_cuda}
    before = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    yield
    after = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    if not all(map(torch.equal, before, after)):
        raise InputError(
            "The model draws random numbers as it runs (dropout in training mode?), so no two passes "
            "agree: call model.eval() first."
        )
