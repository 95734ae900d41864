"""The order of the rooms, read off every import: also lazy ones, those for types and those by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from tests.conftest import FAST

ROOMS = (
    "errors", "warn", "text", "graph_text", "files", "file_kinds", "progress",
    "graph", "anatomy", "plan", "hooks", "record", "engine", "visualize", "score", "trace",
    "copies", "model", "integrations", "demo", "", "integrations.auto_circuit", "cli",
)  # fmt: skip
"""From the lowest to the highest: a file imports from its own room and those before it. The room "" is
`circuit_trace/__init__.py`, the public names; a room within another is told apart by its longer name."""

KNOWN_UP: set[tuple[str, str]] = set()
"""Arrows to a higher room. One that is gone must go from here as well."""

KNOWN_BACK: set[tuple[str, str]] = set()
"""Arrows within a room that close a circle, each by itself. These too."""

ROOT = Path(__file__).parents[1]


def _files() -> dict[str, Path]:
    """Every file of the package by its module's name, less the package's own."""
    found = {}
    for folder, prefix in (
        (ROOT / "circuit_trace", ()),
        (ROOT / "integrations", ("integrations",)),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = _files()


def imported(module: str, code: str) -> set[str]:
    """The files that a file imports, wherever in it and in whatever way it does."""
    is_package = module == "" or FILES[module].name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    found = (_house(name) for node in ast.walk(ast.parse(code)) for name in _names(node, package))
    return {name for name in found if name is not None} - {module}


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """The full names that may be modules in one piece of code of a file of that package."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = ["circuit_trace", *filter(None, package.split("."))]
        above = above[: len(above) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            within = f"{base}.{alias.name}"
            yield base if _house(within) is None else within
    elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
        yield from (one.value for one in node.args if isinstance(one, ast.Constant))


def _house(name: str) -> str | None:
    """The file of that full name, as it is called here."""
    if name == "circuit_trace":
        return ""
    short = name.removeprefix("circuit_trace.")
    return short if short != name and short in FILES else None


def room_of(module: str) -> str:
    """The innermost room that a file stands in."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(name for name in names if name in ROOMS)


ARROWS = {
    (module, other)
    for module, path in FILES.items()
    for other in imported(module, path.read_text("utf-8"))
}


def test_every_file_stands_in_a_room() -> None:
    assert len(FILES) > 150
    assert {room_of(module) for module in FILES} == set(ROOMS)


def test_no_arrow_points_up() -> None:
    up = {
        (module, other)
        for module, other in ARROWS
        if ROOMS.index(room_of(module)) < ROOMS.index(room_of(other))
    }
    assert up == KNOWN_UP


def test_no_file_imports_itself_by_way_of_others() -> None:
    house = nx.DiGraph(ARROWS - KNOWN_UP - KNOWN_BACK)
    circles = [sorted(some) for some in nx.strongly_connected_components(house) if len(some) > 1]
    assert circles == []
    assert {
        (module, other)
        for module, other in KNOWN_BACK & ARROWS
        if nx.has_path(house, other, module)
    } == KNOWN_BACK


WAYS = {
    "on top": "from circuit_trace.graph import Edge",
    "a module's name": "import circuit_trace.graph as g",
    "a file of a room": "from circuit_trace import graph",
    "in a function": "def f():\n    from circuit_trace.graph import Edge",
    "for types": "if TYPE_CHECKING:\n    from circuit_trace.graph import Edge",
    "relatively": "from ..graph import Edge",
    "relatively, the room": "from .. import graph",
    "by name": "importlib.import_module('circuit_trace.graph')",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("module", ["plan", "plan.masks"])
def test_no_way_to_import_is_overlooked(module: str, way: str) -> None:
    assert imported(module, WAYS[way]) == {"graph"}


def test_what_is_fast_is_there_and_touches_every_room() -> None:
    for one in FAST:
        place, _, name = one.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / "tests" / f"{place}.py").read_text("utf-8"), one
    rooms = {one.partition("/")[0].partition("::")[0].removeprefix("test_") for one in FAST}
    tried = {"anatomy", "graph", "plan", "hooks", "trace", "score", "visualize", "integrations"}
    assert rooms >= {*tried, "cli"}
