"""`circuit-trace circuit`: the strongest edges of a file of scores, as a circuit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from circuit_trace.cli.options import (
    COMMAND,
    add_choice_options,
    add_score_options,
    check_out,
    count,
    read_scores,
    size,
)
from circuit_trace.plan import flat_scores

FILES = (".pkl", ".pt", ".pth", ".json", ".graphml", ".dot", ".gv", ".mmd", ".mermaid")
"""What circuits are written as, by extension; `circuit-trace draw` makes pictures of them."""

EPILOG = """\
examples:
  circuit-trace circuit scores.pkl --n-edges 20 --method greedy -o circuit.pkl
  circuit-trace circuit scores.json --threshold 0.05 -o circuit.json --format edge_pruning
  circuit-trace trace --clean "…" --corrupt "…" --scores circuit.pkl -o pass.trace    patch it
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "circuit",
        help="choose the edges of a circuit from a file of scores",
        description=(
            "Choose edges by |score|, print them, the strongest first, and write them as a circuit: 1 "
            "for each edge in it, 0 for the others. Edges on no path of chosen edges from the start of "
            "the stream to its end are left out."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("file", type=Path, help="scores in any format that is known, or a .trace")
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--n-edges", type=count, metavar="N", help="so many edges")
    sizes.add_argument("--threshold", type=size, metavar="X", help="those with |score| ≥ this")
    sizes.add_argument(
        "--fraction", type=size, metavar="PART", help="this part of all, from 0 to 1"
    )
    add_choice_options(parser, "--method")
    add_score_options(parser)
    parser.add_argument("--rows", type=count, default=20, help="print so many edges (20)")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write the circuit: " + ", ".join(FILES),
    )  # fmt: skip
    parser.add_argument(
        "--format", metavar="NAME", help="of .pt and .json: prune_scores, eap_ig or edge_pruning"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Choose; print the circuit and write the files."""
    check_out(options.out, FILES)
    import circuit_trace as ct

    scores, graph = read_scores(options.file, options)
    chosen = ct.circuit(
        scores,
        n_edges=options.n_edges,
        threshold=options.threshold,
        fraction=options.fraction,
        model=graph,
        method=options.method,
        prune=options.prune,
    )
    flat, kept = flat_scores(graph, scores), flat_scores(graph, chosen).nonzero()[:, 0]
    order = flat[kept].abs().sort(descending=True, stable=True).indices[: options.rows]
    print(f"circuit of {len(kept):,} of {graph.n_edges:,} edges\n")
    for number in kept[order].tolist():
        print(f"{flat[number].item():12.6g}  {graph.edge_at(number)}")
    if len(kept) > options.rows:
        print(f"… the {options.rows} strongest of {len(kept):,} edges (--rows)")
    for path in options.out:
        ct.save_scores(
            chosen,
            path,
            graph,
            format=options.format if path.suffix.lower() in (".pt", ".json") else None,
            groups=options.groups or "same",
        )
        print(f"wrote {path}")
    return 0
