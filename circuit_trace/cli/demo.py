"""`circuit-trace demo`: the main job once, on the bundled or any model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from circuit_trace.cli.options import COMMAND, MODEL, count

EPILOG = """\
examples:
  circuit-trace demo                     the bundled model, offline
  circuit-trace demo --top 8 --out pics  the eight strongest edges, into pics/
  circuit-trace demo --model gpt2        any TransformerLens model (needs a network)
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo",
        help="find, patch and draw the edges that move a name to the end of a sentence",
        description=(
            "Trace a clean prompt against one with the names swapped: score every edge by what "
            "patching it alone does to the logit difference between the two answers, patch the "
            "strongest connected edges together, and write their per-token circuit as circuit.html "
            "and circuit.png, beside their scores as scores.html and scores.png, as explorer.html, a "
            "page to click through, and as circuit.trace, the record."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    demo.add_argument("--model", default="bundled", help=MODEL)
    demo.add_argument("--clean", help="the prompt that is run")
    demo.add_argument("--corrupt", help="the prompt that is patched in, as many tokens long")
    demo.add_argument(
        "--answers", nargs=2, metavar=("RIGHT", "WRONG"), help="the next token of each prompt"
    )
    demo.add_argument("--top", type=count, default=24, help="edges to patch together (default 24)")
    demo.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write to (default out)"
    )
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do the main job, print its table, and name the files."""
    # Imported here so that --help answers at once.
    from circuit_trace.demo.main_job import run_demo
    from circuit_trace.demo.prompts import BUNDLED, PRETRAINED, Prompts
    from circuit_trace.integrations.models import (  # pyright: ignore[reportMissingImports]
        load_model,
    )

    usual = BUNDLED if options.model == "bundled" else PRETRAINED
    answers = tuple(options.answers) if options.answers else usual.answers
    prompts = Prompts(options.clean or usual.clean, options.corrupt or usual.corrupt, answers)
    model = load_model(options.model)
    report = run_demo(
        model, prompts, n_edges=options.top, folder=options.out, bar=sys.stderr.isatty()
    )

    print(f"model    {options.model} ({type(model).__name__})")
    print(f"clean    {prompts.clean}  [{prompts.answers[0].strip()}]")
    print(f"corrupt  {prompts.corrupt}  [{prompts.answers[1].strip()}]\n")
    shown = report.table.rename(columns={"seq_idx": "position"})
    columns = ["edge", "position", "token", "clean_norm", "received_norm", "cosine", "score"]
    print(shown[columns].round(2).to_string(index=False))
    how = f"measured for each of {report.n_edges:,} edges"
    if report.method != "exact":
        how = f"estimated for all {report.n_edges:,} edges by integrated gradients (EAP-IG)"
    print(
        f"\n{report.outcome}\n"
        f"  That these {len(report.table)} edges, patched, turn the answer round says that it runs "
        "through them; so it may through\n  a few near the start. The evidence for a circuit is its "
        "faithfulness: 1 where these edges alone, all\n  others patched, keep the metric at clean, 0 "
        "where it falls to corrupt.\n"
        f"score: its change when the edge is patched alone, {how}\n"
    )
    figures = ", ".join(map(str, (*report.pages, *report.pictures)))
    print(
        f"wrote {figures}; {report.explorer}, a page to click through; and {report.saved}, the "
        f"record (circuit-trace show {report.saved})"
    )
    if report.no_pictures:
        print(f"no PNG: {report.no_pictures}")
    return 0
