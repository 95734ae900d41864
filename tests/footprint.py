"""What a model is made of, in a form that two moments can be compared by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class _Empty:
    """No settings."""


_NONE = _Empty()


def hooks_of(model: nn.Module) -> dict[str, list[Any]]:
    """Every torch hook on every module, by place; a module without any has no entry."""
    return {
        f"{name}.{table}": list(getattr(module, table).values())
        for name, module in model.named_modules(remove_duplicate=False)
        for table in HOOK_TABLES
        if getattr(module, table)
    }


def n_hooks(model: nn.Module) -> int:
    """How many forward hooks and pre-hooks are on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@dataclass(frozen=True)
class Footprint:
    """Hooks, TransformerLens' own lists of hooks, modules, weights, settings and flags."""

    hooks: dict[str, list[Any]]
    lens_hooks: dict[str, list[Any]]
    modules: list[tuple[str, int, bool]]
    weights: dict[str, tuple[int, int, bool, bool]]
    settings: dict[str, Any]
    attributes: dict[str, list[str]]


def footprint(model: nn.Module) -> Footprint:
    """Take a footprint; run the model once first, for a bridge puts hooks of its own on then."""
    return Footprint(
        hooks=hooks_of(model),
        lens_hooks={
            name: [*module.fwd_hooks, *module.bwd_hooks]  # pyright: ignore[reportGeneralTypeIssues]
            for name, module in model.named_modules()
            if hasattr(module, "fwd_hooks")
        },
        modules=[(name, id(module), module.training) for name, module in model.named_modules()],
        weights={
            name: (p.data_ptr(), p._version, p.requires_grad, p.grad is None)
            for name, p in model.named_parameters()
        },
        settings={name: repr(value) for name, value in vars(getattr(model, "cfg", _NONE)).items()},
        attributes={name: sorted(vars(module)) for name, module in model.named_modules()},
    )


@contextmanager
def lent(model: Any) -> Iterator[Any]:
    """Lend a shared model to one test; its hooks are put back however the test ends."""
    tables = [
        (getattr(module, table), dict(getattr(module, table)))
        for module in model.modules()
        for table in HOOK_TABLES
    ]
    lists = [
        (handles, list(handles))
        for module in model.modules()
        if hasattr(module, "fwd_hooks")
        for handles in (module.fwd_hooks, module.bwd_hooks)
    ]
    yield model
    for table, before in tables:
        table.clear()
        table.update(before)
    for handles, before in lists:
        handles[:] = before
