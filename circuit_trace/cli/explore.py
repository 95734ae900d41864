"""`circuit-trace explore`: a saved trace as one offline page to click through."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from circuit_trace.cli.options import BATCH, COMMAND, check_out, count, element, read_trace

EPILOG = """\
examples:
  circuit-trace explore pass.trace -o pass.html
  circuit-trace explore pass.trace --edges "*->A1.*.Q" --scores scores.pkl -o queries.html
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explore",
        help="make a page to click through a saved trace",
        description=(
            "Write one page, which needs no network, to look through a saved trace: filter edges by "
            "size, find a node, open an edge, and isolate what flows in and out of a node."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="a .trace")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the page, an .html file"
    )
    parser.add_argument(
        "--edges", nargs="+", metavar="EDGE",
        help="these edges only; globs work; without, those that were patched, or all",
    )  # fmt: skip
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="scores that are shown beside what flowed"
    )
    parser.add_argument(
        "--direction", nargs=2, metavar=("TOKEN", "OTHER"),
        help="what outputs are projected on: a logit difference",
    )  # fmt: skip
    parser.add_argument("--batch", type=element, default=0, help=BATCH)
    parser.add_argument("--max-edges", type=count, help="at most so many edges, the largest (2000)")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    check_out([options.out], (".html", ".htm"))
    trace = read_trace(options.file)
    chosen: dict[str, Any] = {}
    if options.scores is not None:
        from circuit_trace.integrations.files import (  # pyright: ignore[reportMissingImports]
            load_scores,
        )

        chosen["scores"] = load_scores(options.scores, trace)
    if options.max_edges is not None:
        chosen["max_edges"] = options.max_edges
    trace.explore(
        edges=options.edges,
        direction=tuple(options.direction) if options.direction else None,
        batch_idx=options.batch,
        theme=options.theme,
        file_path=options.out,
        **chosen,
    )
    print(f"wrote {options.out}")
    return 0
