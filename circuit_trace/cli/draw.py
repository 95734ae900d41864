"""`circuit-trace draw`: anybody's scores, or a saved trace, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from circuit_trace.cli.options import (
    COMMAND,
    PICTURES,
    add_picture_options,
    add_score_options,
    check_out,
    is_trace,
    picture,
    read_scores,
    read_trace,
)

EPILOG = """\
examples:
  circuit-trace draw scores.json -o circuit.html               EAP-IG's or MIB's scores
  circuit-trace draw scores.pt --threshold 0.05 -o circuit.png auto-circuit's
  circuit-trace draw edges.json --model gpt2 -o circuit.pdf    Edge-Pruning's, which name no model
  circuit-trace draw pass.trace -o circuit.svg --page-width 3.25
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "draw",
        help="draw a file of scores, or a saved trace",
        description=(
            "Draw scores as a Sankey diagram per token position: auto-circuit's PruneScores, EAP-IG's "
            "and MIB's .json and .pt, ACDC's .pth, Edge-Pruning's edges.json, GraphML, DOT and Mermaid "
            "are told apart by what is in the file. A .trace is drawn with its activations."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="scores in any format that is known, or a .trace")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, required=True, metavar="FILE",
        help="the picture: " + ", ".join(PICTURES),
    )  # fmt: skip
    add_score_options(parser)
    add_picture_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the file, once for each picture that is asked for."""
    check_out(options.out, PICTURES)
    from circuit_trace.visualize import draw_seq_graph

    if is_trace(options.file):
        drawn, scores = read_trace(options.file), None
    else:
        scores, drawn = read_scores(options.file, options)
    for path in options.out:
        draw_seq_graph(drawn, scores, file_path=path, **picture(options))
        print(f"wrote {path}")
    return 0
