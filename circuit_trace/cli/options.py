"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_trace.errors import FormatError, InputError
from circuit_trace.file_kinds import is_safetensors
from circuit_trace.files import checked_path, refusing, writing
from circuit_trace.plan import AblationType

if TYPE_CHECKING:
    import pandas as pd

    from circuit_trace.graph import Graph
    from circuit_trace.model import PatchableModel
    from circuit_trace.plan import PruneScores
    from circuit_trace.trace import Trace

COMMAND: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
"""How help is laid out, and that an option is written in full."""

PICTURES = (".html", ".json", ".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".mmd", ".dot")
"""What pictures can be written as."""

MODEL = "'bundled' or any TransformerLens name, such as gpt2 (needs a network)"


BATCH = "which prompt of the batch (0), or 'mean' for means over all"


def count(text: str) -> int:
    """A whole number, 1 or more."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return value


def index(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def element(text: str) -> int | str:
    """A prompt of a batch by its number, or "mean"."""
    return text if text == "mean" else index(text)


def size(text: str) -> float:
    """A number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text!r}")
    return value


def add_picture_options(parser: argparse.ArgumentParser, *, table: bool = True) -> None:
    """What a picture looks like."""
    looks = parser.add_argument_group("the picture")
    looks.add_argument("--threshold", type=size, default=0.01, help="smallest |value| drawn (0.01)")
    looks.add_argument("--max-edges", type=count, default=500, help="at most so many edges (500)")
    looks.add_argument(
        "--orientation", choices=("h", "v"), default="h", help="left to right, or down"
    )
    looks.add_argument("--theme", choices=("light", "dark"), default="light")
    looks.add_argument(
        "--layer-spacing", action="store_true", help="every node at its layer's place"
    )
    if table:
        looks.add_argument(
            "--table", action="store_true", help="list every edge below the diagrams"
        )
    looks.add_argument("--page-width", type=size, metavar="INCHES", help="of a .pdf or .svg")


def picture(options: argparse.Namespace) -> dict[str, Any]:
    """These options as `draw_seq_graph` takes them."""
    names = ("max_edges", "orientation", "theme", "layer_spacing", "table", "page_width")
    chosen = {name: getattr(options, name) for name in names if name in options}
    return {**chosen, "score_threshold": options.threshold, "display_ipython": False}


def add_choice_options(parser: Any, flag: str) -> None:
    """How the edges of a circuit are chosen."""
    parser.add_argument(
        flag,
        choices=("top", "greedy"),
        default="top",
        help="the strongest of all edges (top, the default), or from the end of the stream backwards, "
        "at each step the strongest into what is in the circuit already (greedy)",
    )
    parser.add_argument(
        "--no-prune", dest="prune", action="store_false", help="keep edges that lead nowhere"
    )


def add_score_options(parser: argparse.ArgumentParser, model: str | None = None) -> None:
    """What of a file of scores is meant; a command that runs the model says what `model` is."""
    parser.add_argument(
        "--model",
        default=None if model is None else "bundled",
        help=model or f"the model that the scores are of: {MODEL}; most files say",
    )
    parser.add_argument(
        "--select",
        metavar="NAME",
        help="which scores of a file that holds several, as task/algorithm",
    )
    parser.add_argument(
        "--in-graph",
        action="store_true",
        help="the edges that the file says are in the circuit, not their scores",
    )
    parser.add_argument(
        "--groups",
        choices=("sum", "same"),
        help="between EAP-IG's files and models whose query heads share keys and values: 'sum' for "
        "scores, which add up over a group, 'same' for circuits",
    )


def read_scores(path: Path, options: argparse.Namespace) -> tuple[PruneScores, Graph]:
    """The scores of a file, or a saved trace's masks, and the graph that they are of."""
    model = wrapped(options.model) if options.model else None
    scores, graph, _ = scores_for(path, model, **meant(options))
    return scores, graph


def meant(options: argparse.Namespace) -> dict[str, Any]:
    """Which scores of a file are asked for, as `load_scores` takes it."""
    return {
        "in_graph": options.in_graph,
        "select": options.select and tuple(options.select.split("/")),
        "groups": options.groups,
    }


def scores_for(
    path: Path, model: PatchableModel | None, **chosen: Any
) -> tuple[PruneScores, Graph, PatchableModel | None]:
    """As `read_scores`, for a model that is loaded, with the model at the scores' positions."""
    from circuit_trace.graph import graph_for
    from circuit_trace.integrations.files import (  # pyright: ignore[reportMissingImports]
        load_scores,
    )

    try:
        if is_trace(path):
            trace = read_trace(path)
            scores, graph = trace.masks, trace.graph
        else:
            scores = load_scores(path, **chosen)
            graph = graph_for(scores, None)
    except FormatError:
        if model is None or is_trace(path):
            raise
        return load_scores(path, model, **chosen), model.graph, model
    if model is None:
        return scores, graph, None
    if graph.seq_len is not None and model.seq_len is None:
        model = at_positions(model, graph.seq_len)
    if not is_trace(path):
        scores = load_scores(path, model, **chosen)
    return scores, model.graph, model


def wrapped(name: str) -> PatchableModel:
    """The model of that name, loaded and wrapped."""
    import circuit_trace as ct

    return ct.wrap(ct.load_model(name))


def at_positions(model: PatchableModel, seq_len: int) -> PatchableModel:
    """The same model with so many token positions told apart."""
    import circuit_trace as ct

    return ct.wrap(model.wrapped_model, seq_len=seq_len, verify=False)


def add_row_options(parser: argparse.ArgumentParser, by: str) -> Any:
    """Which rows of a table are printed, ranked by a column unless another is asked for."""
    rows = parser.add_argument_group("the table")
    rows.add_argument("--rows", type=count, default=20, help="at most so many, the first (20)")
    rows.add_argument(
        "--by",
        metavar="COLUMN",
        help=f"what they are ranked by ({by}): the largest first, but of 'cosine' the smallest, as "
        "there patching changes most",
    )
    rows.add_argument("--batch", type=element, default=0, help=BATCH)
    return rows


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Which rows of a trace's table are printed, and what of them."""
    rows = add_row_options(parser, "delta_norm")
    rows.add_argument(
        "--direction",
        nargs=2,
        metavar=("TOKEN", "OTHER"),
        help="add projections on a logit difference",
    )
    rows.add_argument("--tokens", type=count, default=0, help="add so many tokens that Δ promotes")


def table_of(trace: Trace, options: argparse.Namespace, edges: Any = None) -> pd.DataFrame:
    """The rows of a trace's table that are asked for."""
    direction = tuple(options.direction) if options.direction else None
    return trace.table(edges, batch_idx=options.batch, direction=direction, n_tokens=options.tokens)


def print_table(trace: Trace, options: argparse.Namespace, edges: Any = None) -> None:
    """Print what came of a pass, and the strongest rows of its table."""
    by = options.by or ("delta_norm" if trace.patched is not None else "current_norm")
    table = table_of(trace, options, edges)
    head = [] if trace.outcome is None else [str(trace.outcome)]
    if trace.patched is not None and len(table):
        head.append(f"delta_norm and cosine: {table.columns.name}")
    print("".join(f"{line}\n" for line in head))
    print_rows(table, options.rows, by)


def print_rows(table: pd.DataFrame, n: int, by: str) -> None:
    """Print the first rows of a table of edges, ranked by a column."""
    from circuit_trace.record import top_rows

    shown = top_rows(table, n, by)
    parts = ["src", "dest", "layer", "head", "dest_layer", "dest_head"]
    shown = shown.drop(columns=parts, errors="ignore")
    empty = [name for name in shown.columns if shown[name].isna().all()]
    print(shown.drop(columns=empty).round(3).to_string(index=False))
    if len(table) > len(shown):
        order = "smallest" if by == "cosine" else "largest"
        print(f"… the {len(shown)} {order} by {by} of {len(table):,} edges (--rows, --by)")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_trace(path: Path) -> Trace:
    """A saved trace."""
    from circuit_trace.trace import Trace

    return Trace.load(path)


def is_trace(path: Path) -> bool:
    """Whether a file is a saved trace: by its name, or as safetensors begin."""
    if path.suffix.lower() == ".trace":
        return True
    try:
        with checked_path(path).open("rb") as file:
            return is_safetensors(file.read(9))
    except OSError:  # whoever reads it says why not
        return False


def check_out(paths: list[Path], suffixes: tuple[str, ...]) -> None:
    """Raise InputError where something would be written that no extension stands for; before the
    work is done."""
    for path in paths:
        checked_path(path)
        with refusing(InputError, f"Cannot write {str(path)!r}"), suppress(FileNotFoundError):
            path.stat()
        if path.suffix.lower() not in suffixes:
            raise InputError(
                f"Cannot write {str(path)!r}: the extensions that work are {', '.join(suffixes)}."
            )


def ablation_named(name: str) -> AblationType:
    """What becomes of patched outputs, by a name as users write it."""
    known = {str(one).replace(" ", "_"): one for one in AblationType}
    asked = name.lower().replace(" ", "_").replace("-", "_")
    if asked not in known:
        raise InputError(f"--ablation must be one of {', '.join(known)}; got {name!r}.")
    return known[asked]
