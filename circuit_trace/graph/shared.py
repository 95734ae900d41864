"""Inputs that several heads share, as query heads do their keys and values, and globs that miss them.

Where they do, the destinations of keys and values are a key-value head's, so what is written for all
inputs of one head (`A23.5.*`) finds its query alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from circuit_trace.errors import EdgeWarning
from circuit_trace.graph.nodes import DestModule, DestNode
from circuit_trace.warn import warn

MOST_NAMED = 4
"""So many names are listed in a warning."""


def shared_inputs(
    modules: Sequence[DestModule], dests: Iterable[DestNode]
) -> list[tuple[DestNode, DestNode, str]]:
    """For every destination of one head alone each input that its head shares with others, and the
    name that this would have if it were the head's own: `A23.5.Q`, `A23.1.K` and "A23.5.K"."""
    by_layer: dict[object, list[DestModule]] = defaultdict(list)
    for module in modules:
        by_layer[module.dests[0].layer, module.dests[0].kind].append(module)
    found = []
    for dest in dests:
        alike = by_layer[dest.layer, dest.kind]
        n_heads = next(len(m.dests) for m in alike if m.name == dest.module_name)
        for module in alike:
            if len(module.dests) < n_heads:  # heads that share follow one another
                shared = module.dests[dest.slot * len(module.dests) // n_heads]
                own_name = dest.unit + shared.name.removeprefix(shared.unit)
                found.append((dest, shared, own_name))
    return found


def warn_of_missed(
    modules: Sequence[DestModule], dests: Sequence[DestNode], pattern: str, text: str
) -> None:
    """Warn where a glob, by what it says, means inputs of a head that have another name here.

    Args:
        modules: All modules of the graph.
        dests: The destinations that were found.
        pattern: The glob as names here are written.
        text: As it was written.
    """
    missed = [
        (dest, shared)
        for dest, shared, own_name in shared_inputs(modules, dests)
        if shared not in dests and fnmatchcase(own_name, pattern)
    ]
    if missed:
        heads = _listed(dest.unit for dest, _ in missed)
        inputs = _listed(shared.name for _, shared in missed)
        queries = _listed(dest.name for dest, _ in missed)
        warn(
            f"{text!r} leaves out keys and values of {heads}: in this model several heads share them, "
            f"and they are called {inputs}. Name these too; or, if the queries alone are meant, write "
            f"{queries}.",
            EdgeWarning,
        )


def _listed(names: Iterable[str]) -> str:
    once = list(dict.fromkeys(names))
    more = f", … ({len(once)} in all)" if len(once) > MOST_NAMED else ""
    return ", ".join(once[:MOST_NAMED]) + more
