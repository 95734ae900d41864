"""Is an anatomy still that of its model? Whether modules were replaced or settings changed since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from circuit_trace.anatomy.sites import Anatomy


@dataclass(frozen=True, eq=False)
class Places:
    """The modules that an anatomy names, by their paths in the model, and the settings it was made by.

    A module that the model does not list among its own is not looked after.
    """

    paths: tuple[tuple[tuple[str, ...], nn.Module], ...]
    settings: Any

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy) -> Places:
        """Find them in the model as it is."""
        named = {id(point.module): point.module for point in anatomy.points()}
        paths = tuple(
            (tuple(name.split(".")) if name else (), module)
            for name, module in model.named_modules()
            if id(module) in named
        )
        return cls(paths, anatomy.settings())

    def hold(self, model: nn.Module, anatomy: Anatomy) -> bool:
        """Whether every module is where it was, and every setting what it was."""
        are_there = all(_at(model, path) is module for path, module in self.paths)
        return are_there and anatomy.settings() == self.settings


def _at(model: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """The module at a path; not by `get_submodule`, which takes ten times as long in a bridge."""
    found: nn.Module | None = model
    for part in path:
        found = None if found is None else found._modules.get(part)
    return found
