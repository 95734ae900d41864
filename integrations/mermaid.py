"""Mermaid flowcharts, which code hosts draw in Markdown pages; what is written here is read back.

No parser of Mermaid exists for Python: a flowchart of another hand is read as far as it has the same
lines, `n1["A0.1"]` for a node and `n1 -->|"0.25 @3"| n2` for an edge with its score and position.
"""

from __future__ import annotations

import re

from circuit_trace.errors import FormatError
from circuit_trace.graph import Graph
from circuit_trace.graph_text import TextArrow, TextGroup, TextNode, mermaid
from circuit_trace.plan import PruneScores
from circuit_trace.text import plain_of_mermaid, told

from .listing import (
    Listed,
    facts_in,
    listing_of,
    read_listing,
    score_text,
)
from .untrusted import lines_of

WHAT = "This Mermaid file"

_FACTS = re.compile(r"%% circuit_trace((?: \w+=[\w.]+)*)")
_NODE = re.compile(r'(\w+)\["([^"]*)"\]')
_EDGE = re.compile(r'(\w+) -->(?:\|"?([^"|\s]*)(?: @(\d{1,9}))?"?\|)? ?(\w+)')
_PASSED = re.compile(
    r"|%%.*|\w+ -\.-> \w+|(flowchart|graph) [A-Z]{2};?|(classDef|linkStyle|class|style) .*"
)
"""Lines that say nothing of scores; dotted arrows lead from an input into its head."""


def write_mermaid(scores: PruneScores, graph: Graph) -> bytes:
    """The scores as a flowchart from left to right; nodes without an edge are left out."""
    listing = listing_of(scores, graph)
    dtype = str(listing.facts["dtype"])
    facts = " ".join(f"{name}={value}" for name, value in listing.facts.items())
    ends = {end for src, dest, _, _ in listing.edges for end in (src, dest)}
    inner = [(src, dest) for src, dest in listing.inner if src in ends and dest in ends]
    ids = {name: f"n{at}" for at, name in enumerate(n for n in listing.nodes if n in ends)}
    arrows = []
    for src, dest, seq_idx, score in listing.edges:
        said = score_text(score, dtype) + ("" if seq_idx is None else f" @{seq_idx}")
        arrows.append(TextArrow(ids[src], ids[dest], said))
    arrows += [TextArrow(ids[src], ids[dest], is_dotted=True) for src, dest in inner]
    group = TextGroup([TextNode(at, name) for name, at in ids.items()], arrows)
    return mermaid([group], head=[f"%% circuit_trace {facts}"]).encode()


def read_mermaid(text: str, graph: Graph | None, *, in_graph: bool = False) -> PruneScores:
    """Scores from a flowchart as `write_mermaid` makes it.

    Raises:
        FormatError: A line is of another kind, an edge has no score, or the edges do not fit the model.
    """
    facts: dict[str, str] = {}
    names: dict[str, str] = {}
    edges: list[Listed] = []
    for number, raw in enumerate(lines_of(text, "Mermaid"), 1):
        line = raw.strip()
        if found := _EDGE.fullmatch(line):
            src, score, position, dest = found.groups()
            where = None if position is None else int(position)
            edges.append(Listed(_named(src, names), _named(dest, names), where, _number(score)))
        elif found := _NODE.fullmatch(line):
            names[found[1]] = plain_of_mermaid(found[2])
        elif found := _FACTS.fullmatch(line):
            facts.update(re.findall(r"(\w+)=([\w.]+)", found[1]))
        elif not _PASSED.fullmatch(line):
            raise FormatError(
                f"{WHAT} cannot be read at line {number}: {told(line)}. Expected lines such as "
                'n1["A0.1"] and n1 -->|"0.25"| n2, nodes before edges.'
            )
    return read_listing(facts_in(facts), edges, graph, in_graph=in_graph, what=WHAT)


def _named(node: str, names: dict[str, str]) -> str:
    if node not in names:
        raise FormatError(f'{WHAT} has no line for the node {told(node)}, such as n1["A0.1"].')
    return names[node]


def _number(score: str | None) -> float | str | None:
    try:
        return float(score) if score else None
    except ValueError:
        return score
