"""`circuit-trace faithfulness`: how well circuits of growing size do what the whole model does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_trace.cli.options import (
    COMMAND,
    MODEL,
    PICTURES,
    ablation_named,
    add_choice_options,
    add_score_options,
    check_out,
    meant,
    scores_for,
    size,
    wrapped,
    write_text,
)
from circuit_trace.cli.score import (
    add_method_options,
    add_prompt_options,
    batches,
    prompt_rows,
)

if TYPE_CHECKING:
    import pandas as pd

    from circuit_trace.model import PatchableModel
    from circuit_trace.score.faithfulness import Faithfulness

CURVES = tuple(suffix for suffix in PICTURES if suffix not in (".mmd", ".dot"))
"""What a curve is drawn as."""

EPILOG = """\
examples:
  circuit-trace faithfulness --clean "When Mary and John went to the store , John gave a drink to" \\
    --corrupt "When John and Mary went to the store , Mary gave a drink to" \\
    --answers Mary John -o curve.html curve.csv        of edges scored by eap on this prompt
  circuit-trace faithfulness --scores mine.pkl theirs.json --data prompts.csv -o curves.pdf
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "faithfulness",
        help="measure circuits of growing size: how small a circuit will do?",
        description=(
            "Keep the strongest edges, patch all others, and measure the metric, for circuits of "
            "growing size: 1 where it is as on the clean prompts, 0 where it is as with every edge "
            "patched. Print the curve and MIB's two areas (CPR, CMD); write it as a table or picture. "
            "Scores come from files, or are made from the prompts."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument(
        "--scores", nargs="+", type=Path, default=[], metavar="FILE",
        help="files of scores, a curve for each; without, edges are scored on the prompts",
    )  # fmt: skip
    add_prompt_options(parser)
    add_method_options(parser)
    add_score_options(parser, model=MODEL)
    curve = parser.add_argument_group("the curve")
    curve.add_argument(
        "--sizes", nargs="+", type=size, metavar="SIZE",
        help="parts of all edges, such as 0.01 0.1 1, or numbers of edges, such as 10 100",
    )  # fmt: skip
    curve.add_argument(
        "--patch",
        choices=("complement", "circuit"),
        default="complement",
        help="patch all but the circuit (the default), or the circuit alone",
    )
    add_choice_options(curve, "--choose")
    curve.add_argument("--linear", action="store_true", help="draw sizes on a linear scale")
    curve.add_argument("--theme", choices=("light", "dark"), default="light")
    curve.add_argument("--page-width", type=size, metavar="INCHES", help="of a .pdf or .svg")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write the table, .csv, or the picture: " + ", ".join(CURVES),
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure; print the curves and write the files."""
    check_out(options.out, (".csv", *CURVES))
    rows = prompt_rows(options)
    model = wrapped(options.model)
    data = list(batches(rows, options.batch_size))
    curves = _curves(model, data, options)
    for name, curve in curves.items():
        print(f"{name}: {curve.metric}, {curve.n_all:,} edges, prompts: {len(rows):,}")
        print(curve.table().round(4).dropna(axis="columns", how="all").to_string(index=False))
        if options.patch == "complement" and len(curve.fractions) > 1:
            print(f"CPR {curve.cpr:.4f} (higher is better), CMD {curve.cmd:.4f} (lower is better)")
        print()
    _write(curves, options)
    return 0


def _curves(
    model: PatchableModel, data: list[Any], options: argparse.Namespace
) -> dict[str, Faithfulness]:
    """A curve for each file of scores, or of those that are made now."""
    import circuit_trace as ct

    ablation = ablation_named(options.ablation)
    bar = sys.stderr.isatty()
    found: dict[str, tuple[PatchableModel, Any]] = {}
    for path in options.scores:
        scores, _, placed = scores_for(path, model, **meant(options))
        name = (
            path.stem if [one.stem for one in options.scores].count(path.stem) == 1 else str(path)
        )
        assert placed is not None
        found[name] = placed, scores
    if not found:
        scores = ct.score_edges(
            model, data, options.metric, method=options.method, steps=options.steps,
            ablation=ablation, bar=bar,
        )  # fmt: skip
        found[options.method] = model, scores
    sizes: dict[str, Any] = {} if options.sizes is None else {"sizes": _sizes(options.sizes)}
    return {
        name: ct.faithfulness(
            placed, data, scores, options.metric, patch=options.patch, circuit=options.choose,
            prune=options.prune, ablation=ablation, bar=bar, **sizes,
        )
        for name, (placed, scores) in found.items()
    }  # fmt: skip


def _sizes(given: list[float]) -> list[float] | list[int]:
    """Numbers of edges where all are whole, 1 alone excepted: it is the whole model."""
    if all(one.is_integer() for one in given) and max(given) > 1:
        return [int(one) for one in given]
    return given


def _write(curves: dict[str, Faithfulness], options: argparse.Namespace) -> None:
    from circuit_trace.visualize import draw_faithfulness

    for path in options.out:
        if path.suffix.lower() == ".csv":
            write_text(path, _table(curves).to_csv(index=False))
        else:
            draw_faithfulness(
                next(iter(curves.values())) if len(curves) == 1 else curves,
                log=not options.linear,
                theme=options.theme,
                page_width=options.page_width,
                display_ipython=False,
                file_path=path,
            )
        print(f"wrote {path}")


def _table(curves: dict[str, Faithfulness]) -> pd.DataFrame:
    import pandas as pd

    tables = {name: curve.table() for name, curve in curves.items()}
    return pd.concat(tables, names=["scores"]).reset_index(level="scores")
