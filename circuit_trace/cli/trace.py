"""`circuit-trace trace`: one patched pass, as a table, a record to keep, and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_trace.cli.options import (
    COMMAND,
    MODEL,
    PICTURES,
    ablation_named,
    add_picture_options,
    add_table_options,
    at_positions,
    check_out,
    count,
    picture,
    print_table,
    scores_for,
    table_of,
    wrapped,
    write_text,
)
from circuit_trace.errors import InputError
from circuit_trace.graph import Graph
from circuit_trace.plan import AblationType, PruneScores, flat_scores, is_circuit, n_not_zero

if TYPE_CHECKING:
    from circuit_trace.trace import Trace

EPILOG = """\
an edge is written
  A5.2->A7.1.Q          a source and a destination: Resid Start, A5.2, MLP 3; A7.1.Q, MLP 7, Resid End
  "A5.*->MLP *"         with globs, many (quote it: the shell reads * and >)
  "a5.h2->a7.h1<q>"     as EAP-IG writes it
  "A5.2->A7.1.Q @3"     at one token position
  "A5.2->A7.1.Q = 0.5"  half way between current and patched

examples:
  circuit-trace trace --clean "When Mary and John went to the store , John gave a drink to" \\
    --corrupt "When John and Mary went to the store , Mary gave a drink to" \\
    --edges "A1.0->Resid End" "MLP 0->A1.0.V = 0.5" --answers " Mary" " John" --complement \\
    -o pass.trace circuit.html
  circuit-trace trace --model gpt2 --clean "…" --corrupt "…" --scores scores.pt --top-scores 20 \\
    -o circuit.pdf
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "trace",
        help="patch edges in one forward pass; print, keep and draw what flowed along them",
        description=(
            "Run the clean prompt with some edges patched from the corrupt one, print a row for each "
            "edge, and write the record (.trace, for `circuit-trace show` and ct.Trace.load), tables "
            "(.csv) and pictures. Without edges nothing is patched: the pass is only recorded."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("--model", default="bundled", help=MODEL)
    parser.add_argument("--clean", required=True, nargs="+", metavar="PROMPT", help="what is run")
    parser.add_argument(
        "--corrupt", nargs="+", metavar="PROMPT", help="what is patched in, as many tokens long"
    )
    parser.add_argument("--edges", nargs="+", default=[], metavar="EDGE", help="what is patched")
    parser.add_argument(
        "--nodes", nargs="+", default=[], metavar="NODE", help="sources all of whose edges are"
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="patch the edges that another tool scored highest, or a circuit (0 and 1), whole",
    )
    parser.add_argument(
        "--top-scores",
        type=count,
        default=20,
        help="so many of them (20), where they are no circuit",
    )
    parser.add_argument(
        "--ablation",
        default="resample",
        help="resample (the corrupt prompt, the default), zero, batch_tokenwise_mean, …",
    )
    parser.add_argument(
        "--patch",
        choices=("circuit", "complement"),
        default="circuit",
        help="patch these edges (circuit), or keep them and patch all others (complement)",
    )
    parser.add_argument(
        "--answers",
        nargs=2,
        metavar=("RIGHT", "WRONG"),
        help="the next token of each prompt: say the difference of their logits in the clean, the "
        "corrupt and this pass",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="say this instead: logit_diff, answer_logprob, kl or loss"
    )
    parser.add_argument(
        "--complement",
        action="store_true",
        help="say it with everything else patched too: the faithfulness of these edges",
    )
    parser.add_argument(
        "--positions", action="store_true", help="tell token positions apart, a diagram for each"
    )
    parser.add_argument(
        "--heads", nargs="+", metavar="HEAD", help="heads whose attention is kept too, such as A1.*"
    )
    parser.add_argument(
        "--unembed",
        action="store_true",
        help="keep what reads outputs as tokens in x.trace too, for --direction and --tokens later",
    )
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write x.trace, x.csv, or a picture: " + ", ".join(PICTURES),
    )  # fmt: skip
    add_table_options(parser)
    add_picture_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trace the pass; print its table and write the files."""
    check_out(options.out, (".trace", ".csv", *PICTURES))
    ablation = ablation_named(options.ablation)
    edges = dict(map(_masked, options.edges))
    nodes = dict(map(_masked, options.nodes))
    is_patched = bool(edges or nodes or options.scores)
    if is_patched and options.corrupt is None and ablation is AblationType.RESAMPLE:
        raise InputError(
            "What is to be patched in? Give --corrupt with a prompt, or --ablation zero."
        )
    model = wrapped(options.model)
    if options.positions or any("@" in name for name in (*edges, *nodes)):
        aligned = model.pair_of(options.clean, options.corrupt)
        model = at_positions(model, aligned.clean.shape[1])
    if options.scores is not None:
        scores, graph, placed = scores_for(options.scores, model)
        model = placed or model
        edges |= _highest(scores, graph, options.top_scores)
    trace = model.trace(
        options.clean,
        corrupt=options.corrupt,
        edges=edges or None,
        nodes=nodes or None,
        ablation=ablation,
        heads=options.heads,
        answers=tuple(options.answers) if options.answers else None,
        metric=options.metric,
        patch=options.patch,
        complement=options.complement,
    )
    print_table(trace, options)
    write(trace, options, unembed=options.unembed)
    return 0


def write(
    trace: Trace, options: argparse.Namespace, edges: Any = None, *, unembed: bool = False
) -> None:
    """Write a trace to every file that is asked for, each in the way that its extension says."""
    for path in options.out:
        if path.suffix == ".trace":
            trace.save(path, unembed=unembed)
        elif path.suffix == ".csv":
            write_text(path, table_of(trace, options, edges).to_csv(index=False))
        else:
            trace.draw(file_path=path, batch_idx=options.batch, **picture(options))
        print(f"wrote {path}")


def _masked(text: str) -> tuple[str, float]:
    """An edge and its mask, `A5.2->A7.1.Q = 0.5`."""
    name, equals, mask = text.partition("=")
    try:
        return name.strip(), float(mask) if equals else 1.0
    except ValueError:
        raise InputError(
            f"Cannot read the mask in {text!r}: expected a number behind the =, as in "
            "'A5.2->A7.1.Q = 0.5'."
        ) from None


def _highest(scores: PruneScores, graph: Graph, most: int) -> dict[str, float]:
    """The edges of the highest |score|, by name; of a circuit all that are in it."""
    flat, n_scored = flat_scores(graph, scores), n_not_zero(scores)
    if is_circuit(scores):
        most = n_scored
    elif n_scored > most:
        print(f"patches {most:,} of {n_scored:,} edges that score, the strongest (--top-scores)")
    strongest = flat.abs().topk(min(most, n_scored)).indices.tolist()
    return {str(graph.edge_at(number)): 1.0 for number in strongest}
