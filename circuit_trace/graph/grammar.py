"""How an edge, or many at once, is written; one reader for every way.

A5.2->A7.1.Q            names as they are, spaces around the arrow or not
A5.2->A7.1.Q @3         at one token position; so is (3, "A5.2->A7.1.Q")
("A5.2", "A7.1.Q")      a source and a destination
A5.*->MLP *             globs, as for files: `*` any text, `?` one character, `[0-3]` one of these
a5.h2->a7.h1<q>         EAP-IG's names: input, a5.h2, m3, logits; Edge-Pruning's a7.h1.q
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import index
from typing import Any

from circuit_trace.errors import EdgeError
from circuit_trace.graph.nodes import Edge, SrcNode

EdgeSpec = str | Edge | tuple[int, str] | tuple[str, str]
"""How a user names an edge, or with globs many: `"A0.1->A1.2.Q"`, `(3, "A0.1->A1.2.Q")` at position
3, `("A0.1", "A1.2.Q")`, or an `Edge`."""

NodeSpec = str | SrcNode | tuple[int, str]
"""How a user names a source, or with globs many: `"A0.1"`, `(3, "A0.1")` at position 3, or a
`SrcNode`."""

ARROW = "->"
GLOBS = frozenset("*?[")

_AT = re.compile(r"^(.*?)\s*@\s*(\d+)\s*$", re.DOTALL)
_PART = r"[\d*?\[\]!-]+"
_HEAD = re.compile(rf"a({_PART})\.h({_PART})(?:<([qkv*?])>|\.([qkv*?]))?")
_MLP = re.compile(rf"m({_PART})")
_ENDS = {"input": "Resid Start", "logits": "Resid End"}


@dataclass(frozen=True)
class Name:
    """One or more nodes, as they were written, and where: at one token position or (`None`) all."""

    text: str
    seq_idx: int | None

    @property
    def is_glob(self) -> bool:
        """Whether it may stand for several nodes."""
        return is_glob(self.text)

    @property
    def rank(self) -> tuple[bool, bool]:
        """How closely it names what it names: a name before a glob, a position before all."""
        return not self.is_glob, self.seq_idx is not None


@dataclass(frozen=True)
class EdgeName:
    """An edge or more, as its ends were written, and where."""

    src: str
    dest: str
    seq_idx: int | None

    @property
    def text(self) -> str:
        """The edge without its position."""
        return f"{self.src}{ARROW}{self.dest}"

    @property
    def is_glob(self) -> bool:
        """Whether it may stand for several edges."""
        return is_glob(self.src) or is_glob(self.dest)

    @property
    def rank(self) -> tuple[bool, bool]:
        """How closely it names what it names: a name before a glob, a position before all."""
        return not self.is_glob, self.seq_idx is not None


def read_edge(spec: Any, example: str) -> EdgeName:
    """Read whatever names an edge.

    >>> read_edge("a5.h2 -> a7.h1<q> @3", "Resid Start->Resid End")
    EdgeName(src='a5.h2', dest='a7.h1<q>', seq_idx=3)

    Raises:
        EdgeError: It names none; the message gives `example`.
    """
    if isinstance(spec, Edge):
        return EdgeName(spec.src.name, spec.dest.name, spec.seq_idx)
    if _is_pair_of_text(spec) and not any(ARROW in part for part in spec):
        spec = ARROW.join(spec)
    name = _positioned(spec, f"an edge: expected a name such as '{example}'", "an Edge", "the edge")
    src, arrow, dest = (part.strip() for part in name.text.partition(ARROW))
    if not arrow or not src or not dest or ARROW in dest:
        raise EdgeError(
            f"Cannot read the edge {name.text!r}: expected 'source->destination', for example "
            f"'{example}'."
        )
    return EdgeName(src, dest, name.seq_idx)


def read_node(spec: Any, example: str, role: str = "source") -> Name:
    """Read whatever names a node.

    >>> read_node((3, "A0.*"), "MLP 1")
    Name(text='A0.*', seq_idx=3)

    Raises:
        EdgeError: It names none; the message gives `example`.
    """
    if isinstance(spec, SrcNode):
        return Name(spec.name, None)
    what = f"a node: expected a {role}'s name such as {example!r}"
    return _positioned(spec, what, "a SrcNode", "the node")


def is_glob(text: str) -> bool:
    """Whether a name has a glob's characters."""
    return not GLOBS.isdisjoint(text)


def own_name(text: str) -> str:
    """The name here of a node that is written as EAP-IG or Edge-Pruning write it, else as it is.

    >>> [own_name(name) for name in ("input", "a5.h2", "a7.h1<q>", "a*.h1.k", "m3", "MLP 3")]
    ['Resid Start', 'A5.2', 'A7.1.Q', 'A*.1.K', 'MLP 3', 'MLP 3']
    """
    if text in _ENDS:
        return _ENDS[text]
    if head := _HEAD.fullmatch(text):
        letter = head[3] or head[4]
        return f"A{head[1]}.{head[2]}" + (f".{letter.upper()}" if letter else "")
    if mlp := _MLP.fullmatch(text):
        return f"MLP {mlp[1]}"
    return text


def whole_number(value: Any) -> int | None:
    """A whole number of any integer type (NumPy's too), None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _is_pair_of_text(spec: Any) -> bool:
    return isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(s, str) for s in spec)


def _positioned(spec: Any, what: str, object_name: str, noun: str) -> Name:
    """Read a name, a name with its position behind an @, or a pair (seq_idx, name)."""
    text, given = spec, None
    if isinstance(spec, tuple) and len(spec) == 2:
        given, text = whole_number(spec[0]), spec[1]
    if not isinstance(text, str) or (text is not spec and given is None):
        raise EdgeError(
            f"Cannot read {spec!r} as {what}, a pair (seq_idx, name), or {object_name}."
        )
    if "@" not in text:
        return Name(text, given)
    found = _AT.match(text)
    if found is None or "@" in found[1]:
        raise EdgeError(
            f"Cannot read the position of {noun} {text!r}: expected a whole number behind the @, as "
            "in '… @3'."
        )
    at = int(found[2])
    if given not in (None, at):
        raise EdgeError(
            f"{noun[:1].upper()}{noun[1:]} {spec!r} names two positions, {given} and {at}."
        )
    return Name(found[1], at)
