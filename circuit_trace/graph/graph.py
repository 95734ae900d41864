"""The graph of a model: its nodes, and its edges by name and by number.

An ordered collection of edges holds numbers instead of a million objects.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, overload

from circuit_trace.errors import EdgeError
from circuit_trace.graph.grammar import (
    ARROW,
    EdgeName,
    EdgeSpec,
    Name,
    NodeSpec,
    is_glob,
    own_name,
    read_edge,
    read_node,
    whole_number,
)
from circuit_trace.graph.nodes import DestModule, DestNode, Edge, SrcNode
from circuit_trace.graph.shared import shared_inputs, warn_of_missed


class Edges(Sequence[Edge]):
    """An ordered, lazy sequence of edges: positions first, then destinations, then sources.

    It holds the edges' numbers; an `Edge` is made when it is asked for. `len` is free, slices are
    again lazy, and `in` takes an edge or a name.
    """

    def __init__(self, graph: Graph, numbers: Sequence[int]) -> None:
        self.graph = graph
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Edge: ...
    @overload
    def __getitem__(self, index: slice) -> Edges: ...
    def __getitem__(self, index: int | slice) -> Edge | Edges:
        if isinstance(index, slice):
            return Edges(self.graph, self.numbers[index])
        return self.graph.edge_at(self.numbers[index])

    def __iter__(self) -> Iterator[Edge]:
        return map(self.graph.edge_at, self.numbers)

    def __contains__(self, edge: object) -> bool:
        """Whether the edge, or an edge of that name at any position, is among these."""
        numbers = self.graph.known_numbers(edge)
        return any(number in self.numbers for number in numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edges) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        shown = ", ".join(str(edge) for edge in self[:3])
        return f"<Edges: {len(self):,} ({shown}{', …' if len(self) > 3 else ''})>"


@dataclass(frozen=True, eq=False)
class Graph:
    """Every source, every destination, and every edge from a source to a later destination.

    Edges are numbered: positions first, then destination modules, then their destinations, then
    sources. A module's edges are thus a block of numbers that runs like its flattened scores.
    """

    srcs: tuple[SrcNode, ...]
    modules: tuple[DestModule, ...]
    seq_len: int | None = None

    def is_like(self, other: Graph) -> bool:
        """Whether another graph has the same nodes and positions, so that edges' numbers agree."""
        return self is other or (self.seq_len == other.seq_len and self.nodes == other.nodes)

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

    def edge(self, name: EdgeSpec, seq_idx: int | None = None) -> Edge:
        """Look an edge up by its name, such as `A5.2->A7.1.Q`, or as `circuit_trace.graph.grammar`
        lists.

        Raises:
            EdgeError: The name is malformed or means several edges, a node is unknown (the nearest
                names are given), the source does not stand before the destination, or the position
                is outside.
        """
        read = self.read(name)
        if seq_idx is not None:
            if read.seq_idx not in (None, seq_idx):
                raise EdgeError(
                    f"The edge {name!r} names two positions, {read.seq_idx} and {seq_idx}."
                )
            read = replace(read, seq_idx=seq_idx)
        if read.is_glob:
            raise EdgeError(
                f"{read.text!r} may mean several edges, and one is needed here. Name it in full, as "
                f"in '{self._example}'."
            )
        return self._edge(read)

    def _edge(self, read: EdgeName) -> Edge:
        src = self._node(read.src, self.src_by_name, "source", read.text)
        dest = self._node(read.dest, self.dest_by_name, "destination", read.text)
        if src.idx >= dest.n_sources:
            raise EdgeError(
                f"There is no edge {read.text!r}: {src.name} does not write before {dest.name} reads. "
                f"The last source that {dest.name} reads is {self.srcs[dest.n_sources - 1].name}."
            )
        return Edge(src, dest, self._position(read.seq_idx, f"the edge {read.text!r}"))

    def dest(self, name: str) -> DestNode:
        """Look a destination up by its name, such as `A7.1.Q`.

        Raises:
            EdgeError: There is none; the message gives the nearest names.
        """
        read = read_node(name, self.dests[-1].name, "destination")
        return self._node(read.text, self.dest_by_name, "destination", None)

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
        """The numbers of what a user named: one edge, with positions a name's edge at each, with
        globs every edge that matches. A glob for one head's inputs warns of those that are not its
        own alone, as keys and values are not where query heads share them.

        Raises:
            EdgeError: As `edge`, where a glob matches nothing, and for anything that names no edge.
        """
        return self.numbers_of(self.read(spec))

    def numbers_of(self, read: EdgeName) -> Sequence[int]:
        """The numbers of an edge or more that were read before."""
        if not read.is_glob:
            edge = self._edge(read)
            first = self.number(edge)
            if self.seq_len is None or edge.seq_idx is not None:
                return (first,)
            return range(first, self.n_edges, self.n_edges_per_position)
        srcs = self._matching(read.src, self.src_by_name, "source", f" in the edge {read.text!r}")
        dests = self._matching(
            read.dest, self.dest_by_name, "destination", f" in the edge {read.text!r}"
        )
        if is_glob(read.dest):
            warn_of_missed(self.modules, dests, own_name(read.dest), read.text)
        numbers = self._between(srcs, dests, read.seq_idx, f"the edge {read.text!r}")
        if not numbers:
            raise EdgeError(
                f"No edge matches {read.text!r}: every source that does writes after every "
                "destination that does has read."
            )
        return numbers

    def numbers_from(self, spec: NodeSpec | Name) -> Sequence[int]:
        """The numbers of all edges that start at a source, or at those that a glob matches.

        Raises:
            EdgeError: There is no such source or position.
        """
        read = spec if isinstance(spec, Name) else self.read_source(spec)
        srcs = self._matching(read.text, self.src_by_name, "source", "")
        return self._between(srcs, self.dests, read.seq_idx, f"the node {read.text!r}")

    def numbers_into(self, spec: str | DestNode | tuple[int, str]) -> Sequence[int]:
        """The numbers of all edges that end at a destination, at those that a glob matches, or at
        all inputs of a node ("A1.2" for its query, key and value; shared ones are left out with a
        warning).

        Raises:
            EdgeError: There is no such destination or position.
        """
        given = spec.name if isinstance(spec, DestNode) else spec
        read = read_node(given, self.dests[-1].name, "destination")
        name = own_name(read.text)
        inputs = [dest for dest in self.dests if dest.unit == name]
        dests = inputs or self._matching(read.text, self.dest_by_name, "destination", "")
        if inputs or is_glob(name):
            pattern = f"{name}.*" if inputs else name
            warn_of_missed(self.modules, dests, pattern, read.text)
        return self._between(self.srcs, dests, read.seq_idx, f"the node {read.text!r}")

    def _between(
        self, srcs: Sequence[SrcNode], dests: Sequence[DestNode], seq_idx: Any, what: str
    ) -> Sequence[int]:
        """The numbers of every edge from one of the sources to one of the destinations."""
        at = self._position(seq_idx, what)
        positions = range(self.seq_len or 1) if at is None else (at,)
        everything = len(srcs) == len(self.srcs) and len(dests) == len(self.dests)
        if everything and at is None:
            return range(self.n_edges)
        in_position = [
            module.offset + dest.slot * module.n_sources + src.idx
            for dest in dests
            for module in (self.module_by_name[dest.module_name],)
            for src in srcs
            if src.idx < module.n_sources
        ]
        return [p * self.n_edges_per_position + n for p in positions for n in in_position]

    def known_numbers(self, spec: object) -> Sequence[int]:
        """The numbers of an edge or a name, none where this graph has no such edge."""
        try:
            return self.numbers(spec)  # pyright: ignore[reportArgumentType]
        except EdgeError:
            return ()

    def read(self, spec: EdgeSpec) -> EdgeName:
        """Read what should be an edge or more; whether they are here is not looked up yet."""
        return read_edge(spec, self._example)

    def read_source(self, spec: NodeSpec) -> Name:
        """Read what should be a source or more; whether they are here is not looked up yet."""
        return read_node(spec, self.srcs[-1].name)

    @property
    def _example(self) -> str:
        return f"{self.srcs[0].name}{ARROW}{self.dests[-1].name}"

    def _matching(self, name: str, known: dict, role: str, where: str) -> list:
        """The node of that name, or those that a glob matches, in order."""
        if not is_glob(name):
            return [self._node(name, known, role, None)]
        for pattern in (name, own_name(name)):
            if found := [node for key, node in known.items() if fnmatchcase(key, pattern)]:
                return found
        names = list(known)
        raise EdgeError(
            f"No {role} matches {name!r}{where}. The {role}s run from {names[0]!r} to {names[-1]!r}."
        )

    def _node(self, name: str, known: dict, role: str, edge_name: str | None):
        for one in (name, own_name(name)):
            if one in known:
                return known[one]
        where = "" if edge_name is None else f" in the edge {edge_name!r}"
        raise EdgeError(f"Unknown {role} {name!r}{where}.{self._hint(own_name(name), role)}")

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
        for _, shared, own in shared_inputs(self.modules, self.dests):
            if name == own and role == "destination":
                hint = f" Several heads of this model share it: its name is {shared.name!r}."
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
