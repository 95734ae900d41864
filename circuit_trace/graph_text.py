"""A graph as text that other tools draw: Mermaid (Markdown pages, GitHub) and DOT (Graphviz)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from circuit_trace.text import dot_text, mermaid_text


@dataclass(frozen=True)
class TextNode:
    """A node: its id in the text, what Mermaid shows and which class it gives it, and attributes as
    DOT writes them."""

    id: str
    label: str = ""
    kind: str = ""
    dot: str = ""


@dataclass(frozen=True)
class TextArrow:
    """An arrow between two ids, what Mermaid writes on it, and attributes as DOT writes them."""

    source: str
    target: str
    label: str = ""
    dot: str = ""
    is_dotted: bool = False


@dataclass(frozen=True)
class TextGroup:
    """Nodes and the arrows between them, in a frame where they have a title."""

    nodes: Sequence[TextNode]
    arrows: Sequence[TextArrow]
    title: str = ""


def mermaid(
    groups: Iterable[TextGroup],
    direction: str = "LR",
    head: Sequence[str] = (),
    tail: Sequence[str] = (),
) -> str:
    """A Mermaid flowchart; `head` and `tail` are lines of its own.

    >>> print(mermaid([TextGroup([TextNode("a", "A0.1")], [TextArrow("a", "b", "1 %")])]), end="")
    flowchart LR
      a["A0.1"]
      a -->|"1 #37;"| b
    """

    def inside(group: TextGroup) -> Iterator[str]:
        for node in group.nodes:
            kind = f":::{node.kind}" if node.kind else ""
            yield f'{node.id}["{mermaid_text(node.label)}"]{kind}'
        for arrow in group.arrows:
            said = f'|"{mermaid_text(arrow.label)}"|' if arrow.label else ""
            yield f"{arrow.source} {'-.->' if arrow.is_dotted else '-->'}{said} {arrow.target}"

    lines = [f"flowchart {direction}", *(f"  {line}" for line in head)]
    for number, group in enumerate(groups):
        frame = [f'subgraph p{number}["{mermaid_text(group.title)}"]'], ["end"]
        lines += _framed(inside(group), *(frame if group.title else ([], [])))
    return "\n".join([*lines, *(f"  {line}" for line in tail)]) + "\n"


def dot(groups: Iterable[TextGroup], settings: Sequence[str] = ()) -> str:
    """A DOT digraph; `settings` are statements about the whole.

    >>> print(dot([TextGroup([TextNode("A0.1")], [TextArrow("A0.1", "b", dot="penwidth=2")])]), end="")
    digraph "circuit" {
      "A0.1";
      "A0.1" -> "b" [penwidth=2];
    }
    """

    def inside(group: TextGroup) -> Iterator[str]:
        for node in group.nodes:
            yield _statement(quoted(node.id), node.dot)
        for arrow in group.arrows:
            yield _statement(f"{quoted(arrow.source)} -> {quoted(arrow.target)}", arrow.dot)

    lines = ['digraph "circuit" {', *(f"  {setting};" for setting in settings)]
    for number, group in enumerate(groups):
        frame = [f"subgraph cluster_{number} {{", f"  label={quoted(group.title)};"], ["}"]
        lines += _framed(inside(group), *(frame if group.title else ([], [])))
    return "\n".join([*lines, "}"]) + "\n"


def quoted(text: str) -> str:
    """Text as DOT writes it."""
    return f'"{dot_text(text)}"'


def attributes(values: Mapping[str, object]) -> str:
    """Attributes as DOT writes them: what is text is in quotes already.

    >>> attributes({"layer": 1, "inner": True, "label": quoted("a")})
    'layer=1, inner=true, label="a"'
    """
    return ", ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in values.items()
    )


def _statement(what: str, own: str) -> str:
    return f"{what} [{own}];" if own else f"{what};"


def _framed(lines: Iterable[str], before: list[str], after: list[str]) -> list[str]:
    indent = "    " if before else "  "
    return [
        *(f"  {line}" for line in before),
        *(indent + line for line in lines),
        *(f"  {line}" for line in after),
    ]
