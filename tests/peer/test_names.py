"""Every public name of auto-circuit's is in the drop-in, or is refused with what to use instead."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from circuit_trace.integrations import auto_circuit
from circuit_trace.integrations.auto_circuit.absent import why_absent

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")


def names_in(source: str) -> set[str]:
    """The functions, classes, types and constants that a module defines at its top, less what is left
    over there of a notebook (`fig`, `n_layers`)."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {
            name.id for name in targets if isinstance(name, ast.Name) and name.id[0].isupper()
        }
    return {name for name in found if not name.startswith("_")}


def test_every_name() -> None:
    spec = find_spec("auto_circuit")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = [file for at in spec.submodule_search_locations for file in Path(at).rglob("*.py")]
    by_file = {file: names_in(file.read_text()) for file in sorted(files)}
    assert sum(map(len, by_file.values())) > 200
    lost = {
        f"{file.stem}.{name}"
        for file, names in by_file.items()
        for name in names
        if name not in vars(auto_circuit) and why_absent(name) is None
    }
    assert lost == set()
