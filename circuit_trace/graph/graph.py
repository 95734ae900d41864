"""The graph of a model: its nodes, and its edges by name and by number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from operator import index
from typing import Any

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import EdgeError
from circuit_trace.graph.edges import Edge, Edges
from circuit_trace.graph.nodes import DestModule, DestNode, SrcNode

EdgeSpec = str | Edge | tuple[int, str]
"""How a user names an edge: "A0.1->A1.2.Q", (3, "A0.1->A1.2.Q") at position 3, or an `Edge`."""

NodeSpec = str | SrcNode | tuple[int, str]
"""How a user names a source: "A0.1", (3, "A0.1") at position 3, or a `SrcNode`."""

ARROW = "->"


def whole_number(value: Any) -> int | None:
    """A whole number of any integer type (NumPy's too), None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _position_and_name(spec: object, what: str, object_name: str) -> tuple[int | None, str]:
    """Read a name, or a pair (seq_idx, name)."""
    if isinstance(spec, str):
        return None, spec
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[1], str):
        position = whole_number(spec[0])
        if position is not None:
            return position, spec[1]
    raise EdgeError(f"Cannot read {spec!r} as {what}, a pair (seq_idx, name), or {object_name}.")


@dataclass(frozen=True, eq=False)
class Graph:
    """Every source, every destination, and every edge from a source to a later destination.

    Edges are numbered: positions first, then destination modules, then their destinations, then
    sources. A module's edges are thus a block of numbers that runs like its flattened scores.
    """

    srcs: tuple[SrcNode, ...]
    modules: tuple[DestModule, ...]
    seq_len: int | None = None

    @cached_property
    def dests(self) -> tuple[DestNode, ...]:
        """Every destination, in order."""
        return tuple(dest for module in self.modules for dest in module.dests)

    @cached_property
    def nodes(self) -> tuple[SrcNode | DestNode, ...]:
        """Every source, then every destination."""
        return self.srcs + self.dests

    @cached_property
    def n_edges_per_position(self) -> int:
        """How many edges there are when positions are not told apart."""
        return sum(module.n_edges for module in self.modules)

    @property
    def n_edges(self) -> int:
        """How many edges there are, each position counted."""
        return self.n_edges_per_position * (self.seq_len or 1)

    @cached_property
    def edges(self) -> Edges:
        """Every edge, lazily."""
        return Edges(self, range(self.n_edges))

    @cached_property
    def src_by_name(self) -> dict[str, SrcNode]:
        """Sources by their names."""
        return {src.name: src for src in self.srcs}

    @cached_property
    def dest_by_name(self) -> dict[str, DestNode]:
        """Destinations by their names."""
        return {dest.name: dest for dest in self.dests}

    @cached_property
    def module_by_name(self) -> dict[str, DestModule]:
        """Destination modules by their keys in `PruneScores`."""
        return {module.name: module for module in self.modules}

    @cached_property
    def _offsets(self) -> list[int]:
        return [module.offset for module in self.modules]

    def edge(self, name: str | tuple[int, str], seq_idx: int | None = None) -> Edge:
        """Look an edge up by its name, such as `A5.2->A7.1.Q`, or by `(seq_idx, name)`.

        Raises:
            EdgeError: The name is malformed, a node is unknown (the nearest names are given), the
                source does not stand before the destination, or the position is outside.
        """
        if isinstance(name, tuple) and len(name) == 2 and not isinstance(name[0], str):
            seq_idx, name = name
        parts = name.partition(ARROW) if isinstance(name, str) else ("", "", "")
        src_name, arrow, dest_name = (part.strip() for part in parts)
        if not arrow or not src_name or not dest_name or ARROW in dest_name:
            raise EdgeError(
                f"Cannot read the edge {name!r}: expected 'source->destination', for example "
                f"'{self.srcs[0].name}->{self.dests[-1].name}'."
            )
        src = self._node(src_name, self.src_by_name, "source", name)
        dest = self._node(dest_name, self.dest_by_name, "destination", name)
        if src.idx >= dest.n_sources:
            raise EdgeError(
                f"There is no edge {name!r}: {src.name} does not write before {dest.name} reads. "
                f"The last source that {dest.name} reads is {self.srcs[dest.n_sources - 1].name}."
            )
        return Edge(src, dest, self._position(seq_idx, f"the edge {name!r}"))

    def number(self, edge: Edge) -> int:
        """The number of an edge of this graph (at position 0 where it names none)."""
        module = self.module_by_name[edge.dest.module_name]
        in_position = module.offset + edge.dest.slot * module.n_sources + edge.src.idx
        return in_position + (edge.seq_idx or 0) * self.n_edges_per_position

    def edge_at(self, number: int) -> Edge:
        """The edge that has this number."""
        position, in_position = divmod(int(number), self.n_edges_per_position)
        module = self.modules[bisect_right(self._offsets, in_position) - 1]
        slot, source = divmod(in_position - module.offset, module.n_sources)
        seq_idx = None if self.seq_len is None else position
        return Edge(self.srcs[source], module.dests[slot], seq_idx)

    def numbers(self, spec: EdgeSpec) -> Sequence[int]:
        """The numbers of what a user named: one edge, or with positions a name's edge at each.

        Raises:
            EdgeError: As `edge`, and for anything that is not a name, an edge or a pair.
        """
        seq_idx, name = self._read(spec)
        first = self.number(self.edge(name, seq_idx))
        if self.seq_len is None or seq_idx is not None:
            return (first,)
        return range(first, self.n_edges, self.n_edges_per_position)

    def numbers_from(self, spec: NodeSpec) -> Sequence[int]:
        """The numbers of all edges that start at a source, at one position or at each.

        Raises:
            EdgeError: There is no such source or position.
        """
        position, name = self._read_node(spec)
        if name not in self.src_by_name:
            raise EdgeError(f"Unknown source {name!r}.{self._hint(name, 'source')}")
        src = self.src_by_name[name]
        at = self._position(position, f"the node {name!r}")
        positions = range(self.seq_len or 1) if at is None else (at,)
        return [
            p * self.n_edges_per_position + module.offset + slot * module.n_sources + src.idx
            for p in positions
            for module in self.modules
            if src.idx < module.n_sources
            for slot in range(len(module.dests))
        ]

    def known_numbers(self, spec: object) -> Sequence[int]:
        """The numbers of an edge or a name, none where this graph has no such edge."""
        try:
            return self.numbers(spec)  # pyright: ignore[reportArgumentType]
        except EdgeError:
            return ()

    def _read(self, spec: EdgeSpec) -> tuple[int | None, str]:
        """The position and the name of what should be an edge."""
        if isinstance(spec, Edge):
            return spec.seq_idx, spec.name
        example = f"{self.srcs[0].name}->{self.dests[-1].name}"
        return _position_and_name(spec, f"an edge: expected a name such as '{example}'", "an Edge")

    def _read_node(self, spec: NodeSpec) -> tuple[int | None, str]:
        """The position and the name of what should be a source."""
        if isinstance(spec, SrcNode):
            return None, spec.name
        example = self.srcs[-1].name
        what = f"a node: expected a source's name such as {example!r}"
        return _position_and_name(spec, what, "a SrcNode")

    def _node(self, name: str, known: dict, role: str, edge_name: object):
        if name in known:
            return known[name]
        raise EdgeError(
            f"Unknown {role} {name!r} in the edge {edge_name!r}.{self._hint(name, role)}"
        )

    def _hint(self, name: str, role: str) -> str:
        """The names nearest to one that is not a source or destination, and those there are."""
        known, other = self.src_by_name, self.dest_by_name
        if role == "destination":
            known, other = other, known
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
        if name in other:
            hint = (
                f" {name!r} can only be a {'destination' if role == 'source' else 'source'}.{hint}"
            )
        names = list(known)
        return f"{hint} The {role}s run from {names[0]!r} to {names[-1]!r}."

    def _position(self, given: Any, what: str) -> int | None:
        """A position, checked; None where none is given."""
        if given is None:
            return None
        seq_idx = whole_number(given)
        if seq_idx is None:
            raise EdgeError(
                f"Position {given!r} of {what} cannot be read: expected a whole number, the place "
                "of a token in the sequence."
            )
        if self.seq_len is None:
            raise EdgeError(
                f"{what[:1].upper()}{what[1:]} was asked for at position {seq_idx}, but the model "
                "was wrapped without positions. Wrap it with seq_len=<number of tokens> to tell "
                "them apart."
            )
        if not 0 <= seq_idx < self.seq_len:
            raise EdgeError(
                f"Position {seq_idx} of {what} is outside the sequence: the model was "
                f"wrapped with seq_len={self.seq_len}, so positions run from 0 to {self.seq_len - 1}."
            )
        return seq_idx


def build_graph(anatomy: Anatomy, seq_len: int | None) -> Graph:
    """Name the nodes of an anatomy and number its edges."""
    srcs: list[SrcNode] = []
    for site_idx, site in enumerate(anatomy.sources):
        for slot, name in enumerate(site.names):
            head = slot if site.kind == "attention" else None
            srcs.append(
                SrcNode(name, len(srcs), site_idx, slot, site.kind, site.depth, site.layer, head)
            )
    modules: list[DestModule] = []
    offset = 0
    for site in anatomy.dests:
        dests = tuple(
            DestNode(
                name=name,
                unit=unit,
                module_name=site.module_name,
                slot=slot,
                n_sources=site.n_sources,
                kind=site.kind,
                depth=site.depth,
                layer=site.layer,
                head=slot if site.has_heads else None,
            )
            for slot, (name, unit) in enumerate(zip(site.names, site.units, strict=True))
        )
        modules.append(DestModule(site.module_name, dests, site.n_sources, site.has_heads, offset))
        offset += modules[-1].n_edges
    return Graph(tuple(srcs), tuple(modules), seq_len)
