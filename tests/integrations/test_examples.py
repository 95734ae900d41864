"""The examples in the docstrings of `integrations`, where nothing else looks for them."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import circuit_trace.integrations  # pyright: ignore[reportMissingImports]

MODULES = [found.name for found in pkgutil.iter_modules(circuit_trace.integrations.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(import_module(f"circuit_trace.integrations.{name}"))
    assert failed == 0


def test_there_are_some() -> None:
    module = import_module("circuit_trace.integrations.files")
    assert doctest.testmod(module).attempted > 10
