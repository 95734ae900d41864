"""`circuit-trace score`: which edges matter, for a prompt or a file of prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_trace.cli.options import (
    COMMAND,
    MODEL,
    PICTURES,
    ablation_named,
    add_picture_options,
    at_positions,
    check_out,
    count,
    picture,
    wrapped,
)
from circuit_trace.errors import InputError
from circuit_trace.plan import flat_scores

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from circuit_trace.model import PatchableModel
    from circuit_trace.plan import PruneScores

FILES = {".pkl": "prune_scores", ".pt": "prune_scores", ".json": "eap_ig", ".graphml": "graphml"}
"""What scores are written as, by extension."""

COLUMNS = ("clean", "corrupt", "answers", "wrong_answers")

EPILOG = """\
examples:
  circuit-trace score --clean "When Mary and John went to the store , John gave a drink to" \\
    --corrupt "When John and Mary went to the store , Mary gave a drink to" \\
    --answers Mary John --method exact --positions -o scores.pkl scores.html
  circuit-trace score --model gpt2 --data prompts.csv --method eap-ig --resume run.part -o scores.json

prompts.csv (or .jsonl) has a prompt pair a row: clean, corrupt and, where the metric needs them,
answers and wrong_answers, a token each. Then: circuit-trace trace --scores scores.pkl …
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "score",
        help="score every edge: how much does the metric change when it is patched?",
        description=(
            "Score every edge of a model by how much a metric of the clean prompt changes when that "
            "edge is patched from the corrupt one; print the strongest and write scores and pictures."
        ),
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument("--model", default="bundled", help=MODEL)
    add_prompt_options(parser)
    add_method_options(parser)
    parser.add_argument("--positions", action="store_true", help="tell token positions apart")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from here after a kill")
    parser.add_argument("--rows", type=count, default=20, help="print so many, the strongest (20)")
    parser.add_argument(
        "-o", "--out", nargs="+", type=Path, default=[], metavar="FILE",
        help="write the scores: " + ", ".join(FILES) + "; or a picture: "
        + ", ".join(one for one in PICTURES if one not in FILES),
    )  # fmt: skip
    add_picture_options(parser)
    parser.set_defaults(run=run)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """The prompts that are measured, and how."""
    parser.add_argument("--clean", metavar="PROMPT", help="what is run")
    parser.add_argument(
        "--corrupt", metavar="PROMPT", help="what is patched in, aligned at the end"
    )
    parser.add_argument(
        "--answers", nargs="+", metavar="TOKEN", help="the right next token, and the wrong one"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="a .csv or .jsonl of prompt pairs instead"
    )
    parser.add_argument("--batch-size", type=count, default=16, help="rows that run at once (16)")
    parser.add_argument(
        "--metric",
        default="logit_diff",
        help="logit_diff (the default), kl, answer_logprob or loss",
    )
    parser.add_argument("--ablation", default="resample", help="what is patched in, as in trace")


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """How edges are scored."""
    parser.add_argument(
        "--method",
        default="eap",
        help="eap (the default), eap-ig, eap-ig-activations, clean-corrupted, mask-gradient, exact "
        "or magnitude",
    )
    parser.add_argument("--steps", type=count, default=5, help="of the eap-ig methods (5)")


def run(options: argparse.Namespace) -> int:
    """Score; print the strongest edges and write the files."""
    check_out(options.out, (*FILES, *PICTURES))
    for path in options.out:
        if options.positions and path.suffix.lower() == ".json":
            raise InputError(
                f"{str(path)!r} would be EAP-IG's format, which has no token positions: write .pkl or "
                ".graphml, or leave --positions out."
            )
    import circuit_trace as ct
    from circuit_trace.score.options import read_method

    if options.method != "exact":
        read_method(options.method)
    ablation = ablation_named(options.ablation)
    rows = prompt_rows(options)
    model = wrapped(options.model)
    if options.positions:
        model = at_positions(model, len(_first(model, rows)))
    scores = ct.score_edges(
        model,
        list(batches(rows, options.batch_size)),
        options.metric,
        method=options.method,
        steps=options.steps,
        ablation=ablation,
        resume=options.resume,
        bar=sys.stderr.isatty(),
    )
    tokens = _tokens(model, rows)
    table = _strongest(model, scores, options.rows, tokens)
    print(table.to_string(index=False))
    print(
        f"The {len(table):,} strongest of {model.n_edges:,} edges, by {options.method} and "
        f"{options.metric}; prompts: {len(rows):,}."
    )
    for path in options.out:
        if path.suffix.lower() in FILES:
            ct.save_scores(scores, path, model, format=FILES[path.suffix.lower()])
        else:
            drawn = {"seq_labels": tokens, **picture(options)}
            ct.draw_seq_graph(model, scores, file_path=path, **drawn)
        print(f"wrote {path}")
    return 0


def prompt_rows(options: argparse.Namespace) -> list[dict[str, str]]:
    """The prompt pairs, each with those of the columns that are given."""
    if (options.data is None) == (options.clean is None):
        raise InputError("Give one prompt with --clean, or a file of them with --data.")
    if options.data is not None:
        for name in ("corrupt", "answers"):
            if getattr(options, name) is not None:
                raise InputError(
                    f"--{name} is for --clean; with --data it is a column of the file."
                )
        return _read(options.data)
    answers = options.answers or []
    if len(answers) > 2:
        raise InputError(
            f"--answers takes the right next token and the wrong one; got {len(answers)} of them."
        )
    if options.metric == "logit_diff" and options.method != "magnitude" and len(answers) != 2:
        raise InputError(
            "logit_diff compares two tokens: give both, --answers RIGHT WRONG, or another --metric."
        )
    given = (options.clean, options.corrupt, *answers)
    return [{name: text for name, text in zip(COLUMNS, given, strict=False) if text is not None}]


def _read(path: Path) -> list[dict[str, str]]:
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise InputError(f"--data must be a .csv or .jsonl file; got {str(path)!r}.")
    try:
        if suffix == ".csv":
            table = pd.read_csv(path, dtype="str", keep_default_na=False)
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            table = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
    except (OSError, ValueError, TypeError) as error:  # whatever cannot be parsed
        raise InputError(f"Cannot read {str(path)!r}: {error}") from error
    columns = [name for name in COLUMNS if name in table.columns]
    if "clean" not in columns or not len(table):
        raise InputError(
            f"{str(path)!r} must have a row for each prompt pair and a column 'clean', and may have "
            f"{', '.join(map(repr, COLUMNS[1:]))}; its {len(table)} rows have "
            f"{', '.join(map(repr, table.columns)) or 'none'}."
        )
    wrong = table[columns].map(lambda cell: not isinstance(cell, str) or not cell)
    if wrong.to_numpy().any():
        row, column = (int(one[0]) for one in wrong.to_numpy().nonzero())
        raise InputError(
            f"{str(path)!r}: row {row}, column {columns[column]!r} is "
            f"{table[columns].iloc[row, column]!r}; expected text."
        )
    return [dict(zip(columns, row, strict=True)) for row in table[columns].itertuples(index=False)]


def batches(rows: list[dict[str, str]], size: int) -> Iterator[dict[str, list[str]]]:
    """Neighbouring rows, up to `size` of them; those of unequal length are padded when they are read."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield {name: [row[name] for row in part] for name in part[0]}


def _tokens(model: PatchableModel, rows: list[dict[str, str]]) -> list[str] | None:
    """The tokens of a single prompt whose positions are told apart."""
    to_strings = model.anatomy.to_strings
    if model.seq_len is None or to_strings is None or len(rows) > 1:
        return None
    return to_strings(_first(model, rows))


def _first(model: PatchableModel, rows: list[dict[str, str]]) -> Tensor:
    """The tokens of the first clean prompt, as long as its pair."""
    return model.pair_of(rows[0]["clean"], rows[0].get("corrupt")).clean[0]


def _strongest(
    model: PatchableModel, scores: PruneScores, n: int, tokens: list[str] | None
) -> pd.DataFrame:
    import pandas as pd

    flat = flat_scores(model.graph, scores)
    found = flat.abs().topk(min(n, len(flat))).indices.tolist()
    edges = [model.graph.edge_at(number) for number in found]
    columns: dict[str, list[Any]] = {"edge": [edge.name for edge in edges]}
    if model.seq_len is not None:
        columns["position"] = [edge.seq_idx for edge in edges]
    if tokens is not None:
        columns["token"] = [tokens[edge.seq_idx or 0] for edge in edges]
    return pd.DataFrame({**columns, "score": flat[found].tolist()}).round(4)
