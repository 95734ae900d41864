"""`circuit-trace convert`: scores from one tool's format to another's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuit_trace.cli.options import COMMAND, add_score_options, read_scores, size
from circuit_trace.errors import InputError

EPILOG = """\
what is written goes by the extension:
  .pkl      auto-circuit's PruneScores      .graphml  networkx, Gephi, yEd
  .pth      ACDC's circuit                  .dot      Graphviz
  .json     --format eap_ig | edge_pruning  .mmd      Mermaid, for Markdown
  .pt       --format prune_scores | eap_ig

examples:
  circuit-trace convert scores.pt scores.json --format eap_ig
  circuit-trace convert scores.json circuit.pth --threshold 0.05
  circuit-trace convert circuit.pkl circuit.json --format eap_ig --groups same
  circuit-trace convert pass.trace masks.pkl                  the masks of a traced pass
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "convert",
        help="turn a file of scores into another tool's format",
        description=(
            "Read scores in any format that is known and write them in another. Scores stay the same "
            "to the last bit; what a format cannot hold is refused, and said."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="scores in any format that is known, or a .trace")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="where several tools write files of that extension, as below",
    )
    parser.add_argument(
        "--sum-positions", action="store_true", help="sum over token positions, for formats without"
    )
    parser.add_argument(
        "--threshold",
        type=size,
        help="write the circuit of |score| ≥ this: 1, and 0 for the others",
    )
    add_score_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the scores and write them."""
    from circuit_trace.integrations.files import (  # pyright: ignore[reportMissingImports]
        save_scores,
    )

    scores, graph = read_scores(options.file, options)
    if options.sum_positions:
        if graph.seq_len is None:
            raise InputError("--sum-positions is for scores of token positions; these have none.")
        scores = {name: score.sum(0) for name, score in scores.items()}
        graph = replace(graph, seq_len=None)
    if options.threshold is not None:
        scores = {n: ((s != 0) & (s.abs() >= options.threshold)).float() for n, s in scores.items()}
    save_scores(scores, options.out, graph, format=options.format, groups=options.groups)
    print(f"wrote {options.out}")
    return 0
