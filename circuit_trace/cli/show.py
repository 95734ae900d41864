"""`circuit-trace show`: what a saved trace or a file of scores holds."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuit_trace.cli.options import (
    COMMAND,
    PICTURES,
    add_picture_options,
    add_score_options,
    add_table_options,
    check_out,
    is_trace,
    print_table,
    read_scores,
    read_trace,
)
from circuit_trace.cli.trace import write
from circuit_trace.errors import InputError
from circuit_trace.plan import flat_scores, select

if TYPE_CHECKING:
    from circuit_trace.trace import Trace

MOST_PROMPTS = 8
"""So many prompts of a batch are shown."""

EPILOG = """\
examples:
  circuit-trace show pass.trace
  circuit-trace show pass.trace --edges "*->A1.0.*" --by cosine --rows 50
  circuit-trace show pass.trace --edges "*->*" -o every-edge.csv
  circuit-trace show scores.pt
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help="say what a saved trace or a file of scores holds",
        description=(
            "Print what a saved trace is of (model, prompts, what was patched) and its edges, or the "
            "highest scores of a file of another tool; write the trace's table or picture."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="a .trace, or scores in any format that is known")
    parser.add_argument("--edges", nargs="+", metavar="EDGE", help="these edges only; globs work")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write a trace's table (.csv) or picture",
    )  # fmt: skip
    add_score_options(parser)
    add_table_options(parser)
    add_picture_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the file holds."""
    check_out(options.out, (".csv", ".trace", *PICTURES))
    if not is_trace(options.file):
        return _show_scores(options)
    trace = read_trace(options.file)
    _show_about(trace)
    print_table(trace, options, options.edges)
    write(trace, options, options.edges)
    return 0


def _show_about(trace: Trace) -> None:
    about = trace.about
    model = " ".join(filter(None, (about.model, about.model_class and f"({about.model_class})")))
    print(f"model    {model or 'not named'}, configuration {about.config_hash}")
    print(f"made by  {', '.join(f'{name} {version}' for name, version in about.versions.items())}")
    print(f"written  {about.written}")
    for element in range(min(trace.batch, MOST_PROMPTS)):
        strings = trace.token_strings(element)
        if strings is not None:
            print(f"prompt {element} {shown('|'.join(strings))}")
    if trace.batch > MOST_PROMPTS:
        print(f"         … {trace.batch} prompts in all")
    patched = "nothing patched"
    if trace.patched is not None:
        patched = f"{len(trace.edges):,} edges patched or named, {trace.patched.ablation}"
    heads = f"; attention of {', '.join(trace.heads)}" if trace.heads else ""
    shape = f"{trace.batch} × {trace.seq} tokens, {trace.graph.n_edges:,} edges"
    print(f"pass     {shape}, {patched}{heads}")


def shown(text: str) -> str:
    """A text as one line of a terminal."""
    escaped = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return textwrap.shorten(escaped, 200, placeholder=" …")


def _show_scores(options: argparse.Namespace) -> int:
    if options.out:
        raise InputError("-o writes a trace; use `circuit-trace draw` or `convert` for scores.")
    scores, graph = read_scores(options.file, options)
    chosen = graph.edges if options.edges is None else select(graph, options.edges)
    flat = flat_scores(graph, scores)[torch.tensor(chosen.numbers, dtype=torch.long)]
    strongest = flat.abs().sort(descending=True, stable=True).indices[: options.rows].tolist()
    positions = "" if graph.seq_len is None else f" at {graph.seq_len} positions"
    print(
        f"scores of {len(graph.srcs)} sources and {len(graph.dests)} destinations{positions}: "
        f"{len(flat):,} edges, {int((flat != 0).sum()):,} of them not 0\n"
    )
    for place in strongest:
        print(f"{flat[place].item():12.6g}  {chosen[place]}")
    return 0
