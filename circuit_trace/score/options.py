"""Read and check how edges are to be scored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.graph import whole_number
from circuit_trace.score.methods import METHODS, Method

Steps = int | Sequence[float]
"""How many points of a path, or the points themselves: 0 is the clean run, 1 the patched one."""


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

    if not isinstance(model, Engine):
        raise InputError(f"Expected a wrapped model, ct.wrap(model); got {type(model).__name__}.")
    if model.has_open_patch:
        raise InputError(
            "A patch is open on this model, so the clean pass would not be clean. Close it first."
        )
    model.renew()
    for module in model.wrapped_model.modules():
        if module.training and getattr(module, "gradient_checkpointing", False) is True:
            raise InputError(
                "The model runs its layers again in the backward pass (gradient checkpointing): call "
                "model.eval() first."
            )
