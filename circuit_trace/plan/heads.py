"""Read which heads a user asks to record."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from circuit_trace.errors import EdgeError
from circuit_trace.graph import Graph, SrcNode
from circuit_trace.graph.grammar import own_name

HeadsArg = str | SrcNode | Iterable[str | SrcNode]
"""Heads: names such as "A5.2", patterns such as "A5.*" and "*", or `SrcNode` objects."""


def head_names(graph: Graph, heads: Any) -> tuple[str, ...]:
    """The names of the heads that are meant, each once, in the graph's order.

    Raises:
        EdgeError: A name is no head's, or a pattern matches none (the nearest names are given).
    """
    asked = (heads,) if isinstance(heads, str | SrcNode) else heads
    known = [src.name for src in graph.srcs if src.kind == "attention"]
    if not isinstance(asked, Iterable):
        raise EdgeError(_unreadable(heads))
    found: set[str] = set()
    for one in asked:
        if not isinstance(one, str | SrcNode):
            raise EdgeError(_unreadable(one))
        patterns = (str(one), own_name(str(one)))
        meant = [name for name in known if any(fnmatchcase(name, p) for p in patterns)]
        if not meant:
            raise EdgeError(_unknown(str(one), known))
        found.update(meant)
    return tuple(name for name in known if name in found)


def _unreadable(given: object) -> str:
    return (
        f"Cannot read {given!r} as heads: expected names such as 'A0.1' or patterns such as 'A0.*' "
        "or '*' for all."
    )


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"No head is called {name!r}: this model's graph has no heads."
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
    return f"No head is called {name!r}.{hint} The heads run from {known[0]!r} to {known[-1]!r}."
