"""Whether a file is for a model of a given shape, and how other tools call the inputs of its heads."""

from __future__ import annotations

from dataclasses import replace

from circuit_trace.errors import FormatError
from circuit_trace.graph import DestNode, Graph, Shape


def check_fits(shape: Shape, graph: Graph, what: str, *, grouped: bool = False) -> None:
    """Check that a file for a model of that shape, without token positions, fits a model's graph.

    Args:
        shape: What the file says.
        graph: The model's.
        what: What the file is called in the message.
        grouped: The file tells key and value inputs apart for each query head; which of them share
            a key-value head is not its matter.

    Raises:
        FormatError: It does not; both are told in words.
    """
    mine = Shape.of_graph(graph)
    compared = replace(mine, n_kv_heads=mine.n_heads) if grouped else mine
    if compared != shape:
        raise FormatError(f"{what} is for a model of {shape}; the model given is one of {mine}.")
    check_no_positions(graph, what)


def check_no_positions(graph: Graph, what: str) -> None:
    """Check that a model's graph tells no positions apart, since the file does not either.

    Raises:
        FormatError: It does.
    """
    if graph.seq_len is not None:
        raise FormatError(
            f"{what} has no token positions, and the model given was wrapped with "
            f"seq_len={graph.seq_len}. Give the model wrapped without it; where one score shall count "
            f"at every position: {{name: s.expand({graph.seq_len}, *s.shape) for name, s in …}}."
        )


def letter(dest: DestNode) -> str:
    """Which input of a head a destination is: "Q", "K" or "V", or "" where it is none of them.

    >>> letter(Shape(1, 1, 1).graph().dest_by_name["A0.0.K"])
    'K'
    """
    return dest.name[len(dest.unit) + 1 :]
