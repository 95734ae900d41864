"""`circuit-trace diff`: what changed between two traces, or between two files of scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuit_trace.cli.options import (
    COMMAND,
    PICTURES,
    add_picture_options,
    add_row_options,
    add_score_options,
    check_out,
    is_trace,
    picture,
    print_rows,
    read_scores,
    read_trace,
    write_text,
)
from circuit_trace.errors import InputError
from circuit_trace.plan import flat_scores, select

if TYPE_CHECKING:
    import pandas as pd

    from circuit_trace.graph import Graph
    from circuit_trace.plan import PruneScores

EPILOG = """\
examples:
  circuit-trace diff before.trace after.trace --rows 10
  circuit-trace diff mine.pkl theirs.json -o difference.html difference.csv --side-by-side
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "diff",
        help="compare two saved traces, or two files of scores",
        description=(
            "Print the edges that changed most from the first file to the second, and write the table "
            "or a picture of what appeared, vanished, grew and shrank. Of traces, changes are norms of "
            "what the source wrote and of what the destination received."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="a .trace, or scores in any format that is known")
    parser.add_argument("other", type=Path, help="another of the same kind and model")
    parser.add_argument("--edges", nargs="+", metavar="EDGE", help="these edges only; globs work")
    parser.add_argument("--side-by-side", action="store_true", help="draw two diagrams, not one")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write the table, .csv, or a picture: " + ", ".join(PICTURES),
    )  # fmt: skip
    add_row_options(parser, "received_change of traces, change of scores")
    add_score_options(parser)
    add_picture_options(parser, table=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the difference and write the files."""
    check_out(options.out, (".csv", *PICTURES))
    paths = options.file, options.other
    are_traces = [is_trace(path) for path in paths]
    if are_traces[0] != are_traces[1]:
        raise InputError("Compare two traces, or two files of scores; got one of each.")
    if all(are_traces):
        graph, (before, after) = None, map(read_trace, paths)
        table = before.diff(after).table(options.edges or "*->*", batch_idx=options.batch)
        print_rows(table, options.rows, options.by or "received_change")
    else:
        (before, graph), (after, other) = (read_scores(path, options) for path in paths)
        _check_same(graph, other)
        table = _changes(graph, before, after, options.edges)
        print_rows(table, options.rows, options.by or "change")
    for path in options.out:
        if path.suffix.lower() == ".csv":
            write_text(path, table.to_csv(index=False))
        else:
            _draw(before, after, graph, path, options)
        print(f"wrote {path}")
    return 0


def _check_same(graph: Graph, other: Graph) -> None:
    if (graph.nodes, graph.seq_len) != (other.nodes, other.seq_len):
        shapes = [
            f"{len(one.nodes)} nodes" + (f" at {one.seq_len} positions" if one.seq_len else "")
            for one in (graph, other)
        ]
        raise InputError(f"The two files are of different models: {shapes[0]} and {shapes[1]}.")


def _changes(
    graph: Graph, before: PruneScores, after: PruneScores, edges: list[str] | None
) -> pd.DataFrame:
    """A row per edge: its score in each file, and what the second adds."""
    import pandas as pd

    chosen = graph.edges if edges is None else select(graph, edges)
    numbers = torch.tensor(chosen.numbers, dtype=torch.long)
    was, now = (flat_scores(graph, scores)[numbers].numpy() for scores in (before, after))
    columns: dict[str, Any] = {"edge": [edge.name for edge in chosen]}
    if graph.seq_len is not None:
        columns["seq_idx"] = [edge.seq_idx for edge in chosen]
    return pd.DataFrame({**columns, "score": was, "other_score": now, "change": now - was})


def _draw(before: Any, after: Any, graph: Graph | None, path: Path, options: Any) -> None:
    from circuit_trace.visualize import draw_difference

    stems = options.file.stem, options.other.stem
    names = stems if stems[0] != stems[1] else (str(options.file), str(options.other))
    draw_difference(
        before,
        after,
        model=graph,  # pyright: ignore[reportArgumentType]
        side_by_side=options.side_by_side,
        names=names if names[0] != names[1] else ("before", "after"),
        batch_idx=options.batch,
        file_path=path,
        **picture(options),
    )
