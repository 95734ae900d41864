"""DOT, Graphviz' language: what is written here is read back line by line, anybody else's by pydot."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

from circuit_trace.errors import FormatError
from circuit_trace.graph import Graph
from circuit_trace.graph_text import TextArrow, TextGroup, TextNode, attributes, dot, quoted
from circuit_trace.plan import PruneScores

from .listing import (
    Listed,
    facts_in,
    listing_of,
    read_listing,
    score_text,
)
from .untrusted import lines_of

WHAT = "This DOT file"

MOST_FOREIGN = 300_000
"""Characters that pydot parses in some ten seconds; each brace inside of another doubles its time."""

LONGEST = 10_000
"""No line that is written here is longer."""

_NAME = r'"((?:[^"\\]|\\.)*)"'
_FACT = re.compile(r'  (\w+)=("?[\w.]+"?);')
_EDGE = re.compile(rf'  {_NAME} -> {_NAME} \[score="([^\s"]+)"(?:, seq_idx=(\d+))?\];')
_OTHER = re.compile(
    rf'digraph "circuit" {{|}}|  {_NAME} \[.*\];|  {_NAME} -> {_NAME} \[inner=true, .*\];'
)


def write_dot(scores: PruneScores, graph: Graph) -> bytes:
    """The scores as a DOT digraph: facts of the model, nodes, edges with scores, inner connections."""
    listing = listing_of(scores, graph)
    dtype = str(listing.facts["dtype"])
    nodes = []
    for name, node in listing.nodes.items():
        places = {k: v for k in ("layer", "head") if (v := getattr(node, k)) is not None}
        nodes.append(TextNode(name, dot=attributes({"kind": node.kind, **places})))
    arrows = []
    for src, dest, seq_idx, score in listing.edges:
        # Quoted: a bare number has no exponent in DOT.
        said = {"score": quoted(score_text(score, dtype))}
        said |= {} if seq_idx is None else {"seq_idx": str(seq_idx)}
        arrows.append(TextArrow(src, dest, dot=attributes(said)))
    inner = attributes({"inner": True, "style": "dotted"})
    arrows += [TextArrow(src, dest, dot=inner) for src, dest in listing.inner]
    facts = [attributes({name: value}) for name, value in listing.facts.items()]
    return dot([TextGroup(nodes, arrows)], ["rankdir=LR", *facts]).encode()


def read_dot(text: str, graph: Graph | None, *, in_graph: bool = False) -> PruneScores:
    """Scores from DOT: `score` and `seq_idx` of each edge that is not `inner`.

    Raises:
        FormatError: It is not DOT, too large or too deep to be parsed, or pydot is not there; or the
            edges do not fit the model.
    """
    read = _ours(text)
    facts, edges = _by_pydot(text) if read is None else read
    return read_listing(facts_in(facts), edges, graph, in_graph=in_graph, what=WHAT)


def _ours(text: str) -> tuple[dict[str, str], list[Listed]] | None:
    """What a file of our own says; None as soon as a line is not one that is written here."""
    facts: dict[str, str] = {}
    edges: list[Listed] = []
    for line in lines_of(text.rstrip(), "DOT"):
        if len(line) > LONGEST:
            return None
        if found := _EDGE.fullmatch(line):
            src, dest, score, seq_idx = found.groups()
            edges.append(_listed(_plain(src), _plain(dest), seq_idx, score))
        elif found := _FACT.fullmatch(line):
            facts[found[1]] = found[2]
        elif not _OTHER.fullmatch(line):
            return None
    return facts, edges


def _plain(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _listed(src: str, dest: str, seq_idx: str | None, score: str | None) -> Listed:
    position = int(seq_idx) if seq_idx and re.fullmatch(r"\d{1,9}", seq_idx) else seq_idx
    return Listed(src, dest, position, _number(score))


def _number(score: str | None) -> float | str | None:
    try:
        return None if score is None else float(score)
    except ValueError:
        return score


def _by_pydot(text: str) -> tuple[dict[str, str], list[Listed]]:
    try:
        import pydot
    except ImportError as error:
        raise FormatError(
            f"{WHAT} was not written by circuit_trace, or was changed since; others are read by pydot: "
            "pip install 'circuit-trace[dot]'."
        ) from error
    if len(text) * 2 ** (min(_depth(text), 99) - 1) > MOST_FOREIGN:
        raise FormatError(
            f"{WHAT} was not written by circuit_trace, or was changed since; others are read up to "
            f"{MOST_FOREIGN:,} characters, fewer where braces stand inside one another, as pydot is "
            "slow. Save it as GraphML."
        )
    try:
        # It prints where it fails.
        with contextlib.redirect_stdout(io.StringIO()):
            found: list[Any] | None = pydot.graph_from_dot_data(text)
    except Exception as error:  # whatever the parser meets
        raise FormatError(f"{WHAT} cannot be parsed: {type(error).__name__}.") from error
    if not found or found[0].get_type() != "digraph":
        raise FormatError("This begins like DOT and is no digraph that pydot can parse.")
    return _unquoted(found[0].get_attributes()), list(_edges(found[0]))


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in re.findall("[{}]", text):
        depth += 1 if char == "{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unquoted(said: dict[str, Any]) -> dict[str, str]:
    return {str(key): _name(value) for key, value in said.items()}


def _name(value: Any) -> str:
    text = str(value)
    return _plain(text[1:-1]) if text[:1] == text[-1:] == '"' and len(text) > 1 else text


def _edges(graph: Any) -> Iterator[Listed]:
    for edge in graph.get_edges():
        said = _unquoted(edge.get_attributes())
        if said.get("inner", "").lower() != "true":
            ends = [_name(end) for end in (edge.get_source(), edge.get_destination())]
            yield _listed(*ends, said.get("seq_idx"), said.get("score"))  # pyright: ignore[reportCallIssue]
    for inside in graph.get_subgraphs():
        yield from _edges(inside)
