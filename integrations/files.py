"""Read and write scores in the formats of other tools: what a file is, its content says.

`ct.load_scores` takes any of them; `ct.save_scores` goes by the extension, and asks for `format=` where
two tools share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from circuit_trace.errors import FormatError
from circuit_trace.file_kinds import is_safetensors, kind_of
from circuit_trace.files import checked_path, refusing, writing
from circuit_trace.graph import Graph, graph_for, graph_of
from circuit_trace.plan import PruneScores
from circuit_trace.score.scores import EdgeScores
from circuit_trace.text import told

from .acdc import is_acdc, read_acdc, write_acdc
from .dot import read_dot, write_dot
from .eap_ig import is_eap_ig, read_eap_ig, write_eap_ig
from .edge_pruning import (
    is_edge_pruning,
    read_edge_pruning,
    write_edge_pruning,
)
from .groups import Groups
from .mermaid import read_mermaid, write_mermaid
from .networkx import read_graphml, write_graphml
from .prune_scores import (
    holds_scores,
    read_prune_scores,
    write_prune_scores,
)
from .untrusted import (
    ZIP_START,
    decode,
    is_pickle,
    load_torch,
    parse_json,
    read_bytes,
    refuse_pickle,
)

Format = Literal[
    "prune_scores", "eap_ig", "acdc", "edge_pruning", "graphml", "dot", "mermaid", "mib"
]
"""What can be written, by the name of the tool or language."""

BY_SUFFIX: dict[str, tuple[Format, ...]] = {
    ".pt": ("prune_scores", "eap_ig"),
    ".pkl": ("prune_scores",),
    ".pth": ("acdc",),
    ".json": ("eap_ig", "edge_pruning"),
    ".graphml": ("graphml",),
    ".dot": ("dot",),
    ".gv": ("dot",),
    ".mmd": ("mermaid",),
    ".mermaid": ("mermaid",),
}

MIB_FILE = "importances.json"
"""What a MIB submission's folder holds; the benchmark reads whatever name it has."""

MOST_FILES, DEEPEST = 10_000, 3
"""Of a folder that is looked through."""

NO_ATTRIBUTION_GRAPHS = (
    "circuit-tracer's attribution graphs are neither read nor written: their nodes are features of "
    "transcoders and their edges cross token positions, ours are heads and MLPs at one position, so "
    "neither says what the other does."
)


def load_scores(
    path: str | Path,
    model: Any = None,
    *,
    in_graph: bool = False,
    select: str | tuple[str, ...] | None = None,
    groups: Groups | None = None,
) -> PruneScores:
    """Read scores, or a circuit, from a file of this or another tool.

    auto-circuit's PruneScores, EAP-IG's and MIB's JSON and `.pt`, ACDC's `.pth`, Edge-Pruning's
    `edges.json`, GraphML, DOT and Mermaid are told apart by what is in the file. Nothing in it is run.

    >>> import circuit_trace as ct, tempfile
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> masks = model.trace("Mary", corrupt="John", edges={"A0.1->A1.2.Q": 0.5}).masks
    >>> file = f"{tempfile.mkdtemp()}/circuit.graphml"
    >>> ct.save_scores(masks, file)
    >>> ct.load_scores(file)["blocks.1.hook_q_input"][2]
    tensor([0.0000, 0.0000, 0.5000, 0.0000, 0.0000, 0.0000])

    Args:
        path: The file; or a folder with one in it, such as a MIB submission.
        model: A `PatchableModel`, a `Trace` or a `Graph` that the scores shall fit; needed where the
            file does not say its model's shape.
        in_graph: Read which edges the file says belong to the circuit, 1 or 0, instead of scores.
        select: Which scores, of a file or folder with several: a key or keys of auto-circuit's nested
            dicts (task, algorithm), a file's name or part of its path in a folder.
        groups: How the key and value inputs of query heads in an EAP-IG file become those of the
            key-value head that they share: "sum" of effects, or the "same" of each.

    Returns:
        `PruneScores`: per destination module `[seq?] [head?] [n_sources]`; the precision is the file's
        own, or float32 where text holds no more.

    Raises:
        FormatError: There is no such file, it is none of these or damaged, holds what could run code,
            or is for a model of another shape.
        MaskError: PruneScores that do not fit the model.
        InputError: `path` or `model` is of the wrong kind.
    """
    where = checked_path(path, example="scores.pt")
    graph = graph_of(model)
    with refusing(FormatError, f"Cannot read {str(where)!r}"):
        is_folder = where.is_dir()
    if is_folder:
        where, select = _in_folder(where, select), None
    data = read_bytes(where)
    try:
        scores = _read(data, model, graph, in_graph, select, groups)
        return EdgeScores(scores, graph=graph)
    except FormatError as error:
        raise FormatError(f"{str(where)!r}: {error}") from error


def _read(
    data: bytes,
    model: Any,
    graph: Graph | None,
    in_graph: bool,
    select: str | tuple[str, ...] | None,
    groups: Groups | None,
) -> PruneScores:
    if data.startswith(ZIP_START):
        found = load_torch(data)
    elif is_pickle(data):
        raise refuse_pickle()
    elif is_safetensors(data):
        raise FormatError(str(kind_of(data)))
    else:
        text = decode(data).strip()
        if text[:1] not in ("{", "["):
            return _read_text(text, graph, in_graph)
        found = parse_json(text)
    if is_eap_ig(found):
        return read_eap_ig(found, model, graph, in_graph=in_graph, groups=groups)
    if is_acdc(found):
        return read_acdc(found, graph)
    if is_edge_pruning(found):
        return read_edge_pruning(found, graph)
    if not isinstance(found, dict) or not holds_scores(found):
        raise _unknown(found)
    if in_graph:
        raise FormatError(
            "PruneScores do not say which edges belong to a circuit; read the scores and choose: "
            "{name: (s.abs() >= 0.01).float() for name, s in scores.items()}."
        )
    return read_prune_scores(found, graph, select=select)


def _read_text(text: str, graph: Graph | None, in_graph: bool) -> PruneScores:
    first = text[:2_000].lstrip("\ufeff").lower()
    if first.startswith("<"):
        return read_graphml(text, graph, in_graph=in_graph)
    if re.match("flowchart|graph (lr|rl|td|tb|bt)|%%|---", first):
        return read_mermaid(text, graph, in_graph=in_graph)
    if first.startswith(("digraph", "strict", "graph", "//", "/*", "#")):
        return read_dot(text, graph, in_graph=in_graph)
    raise _unknown(text)


def _unknown(found: Any) -> FormatError:
    if isinstance(found, dict) and ("qParams" in found or {"links", "metadata"} <= found.keys()):
        return FormatError(NO_ATTRIBUTION_GRAPHS)
    return FormatError(
        f"This is none of the formats that are known: it holds {told(found)}. Expected auto-circuit's "
        "PruneScores, EAP-IG's JSON or .pt, ACDC's .pth, Edge-Pruning's edges.json, GraphML, DOT or "
        "Mermaid."
    )


def _in_folder(folder: Path, select: str | tuple[str, ...] | None) -> Path:
    """The one file of scores in a folder, or the one asked for."""
    with refusing(FormatError, f"Cannot read {str(folder)!r}"):
        files = {str(file.relative_to(folder)): file for file in _files(folder, DEEPEST)}
    asked = (select,) if isinstance(select, str) else tuple(select or ())
    fitting = [name for name in files if name in asked] or [
        name for name in files if all(part in name for part in asked)
    ]
    if len(fitting) == 1:
        return files[fitting[0]]
    listed = ", ".join(sorted(files)[:12]) + (", …" if len(files) > 12 else "")
    raise FormatError(
        f"The folder {str(folder)!r} holds {len(files)} files that may be scores, and "
        f"{f'{told(select)} fits {len(fitting)} of them' if asked else 'none is chosen'}. "
        f"Choose one by select=: {listed or 'there is none'}."
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Files of known extensions, in order."""
    for count, path in enumerate(sorted(folder.iterdir())):
        if count >= MOST_FILES:
            raise FormatError(f"The folder {str(folder)!r} holds more than {MOST_FILES:,} files.")
        if path.suffix.lower() in BY_SUFFIX and path.is_file():
            yield path
        elif depth > 1 and path.is_dir() and not path.is_symlink():
            yield from _files(path, depth - 1)


def save_scores(
    scores: PruneScores,
    path: str | Path,
    model: Any = None,
    *,
    format: Format | None = None,
    in_graph: PruneScores | None = None,
    groups: Groups | None = None,
) -> None:
    """Write scores, or a circuit, as a file that this or another tool reads.

    The file is there whole or not at all. `.pkl` is auto-circuit's, `.pth` ACDC's, `.graphml`,
    `.dot`, `.gv`, `.mmd` and `.mermaid` are what they are called; `.pt` and `.json` need `format=`.

    >>> import circuit_trace as ct, tempfile
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> masks = model.trace("Mary", corrupt="John", edges=["MLP 0->A1.2.Q"]).masks
    >>> file = f"{tempfile.mkdtemp()}/edges.json"
    >>> ct.save_scores(masks, file, format="edge_pruning")
    >>> print(open(file).read().replace("\\n", ""))
    [ [  "m0",  "a1.h2.q" ]]

    Args:
        scores: `PruneScores`. ACDC and Edge-Pruning hold circuits alone: 1 and 0.
        path: The file; the folder for `format="mib"`, named as the benchmark asks, `{task}_{model}`.
        model: A `PatchableModel`, a `Trace` or a `Graph`; needed where the scores leave modules out.
        format: "prune_scores", "eap_ig", "acdc", "edge_pruning", "graphml", "dot", "mermaid", or "mib"
            for a folder with EAP-IG's JSON.
        in_graph: Which edges belong to the circuit (scores other than 0), for EAP-IG, which holds both;
            without it, those whose score is not 0.
        groups: As in `load_scores`, for EAP-IG.

    Raises:
        FormatError: The format cannot hold these scores, or the file cannot be written.
        MaskError: The scores do not fit the model.
        InputError: `path` or `model` is of the wrong kind.
    """
    where = checked_path(path, example="scores.pt")
    chosen = _format(where, format)
    graph = graph_of(model) if chosen == "prune_scores" else graph_for(scores, model)
    if chosen == "mib":
        where = where / MIB_FILE
    data = _written(scores, model, graph, chosen, where.suffix.lower(), in_graph, groups)
    with writing(where, FormatError) as unfinished:
        unfinished.write_bytes(data)


def _format(path: Path, asked: Any) -> Format:
    suffix = path.suffix.lower()
    if asked is not None:
        if str(asked).replace("-", "_") == "circuit_tracer":
            raise FormatError(NO_ATTRIBUTION_GRAPHS)
        if asked not in get_args(Format):
            raise FormatError(
                f"format must be one of {', '.join(get_args(Format))}; got {told(asked)}."
            )
        fitting = [end for end, formats in BY_SUFFIX.items() if asked in formats]
        if asked != "mib" and suffix not in fitting:
            raise FormatError(
                f"A file of format {asked!r} ends in {' or '.join(fitting)}; got {told(path.name)}."
            )
        return asked
    formats = BY_SUFFIX.get(suffix, ())
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise FormatError(
            f"Several tools write {suffix}: choose by format={' or format='.join(map(repr, formats))}."
        )
    raise FormatError(
        f"Cannot tell the format of {told(path.name)} by its extension: those that are known are "
        f"{', '.join(BY_SUFFIX)}; format='mib' writes a folder."
    )


def _written(
    scores: PruneScores,
    model: Any,
    graph: Graph | None,
    chosen: Format,
    suffix: str,
    in_graph: PruneScores | None,
    groups: Groups | None,
) -> bytes:
    if chosen not in ("eap_ig", "mib") and in_graph is not None:
        raise FormatError(
            f"in_graph= is for EAP-IG's files, which hold scores and a circuit; {chosen!r} holds one of "
            "them: save what is meant as the scores."
        )
    if graph is None:
        return write_prune_scores(scores, None)
    if chosen in ("eap_ig", "mib"):
        return write_eap_ig(
            scores, model, graph, tensors=suffix == ".pt", in_graph=in_graph, groups=groups
        )
    if chosen == "edge_pruning":
        return write_edge_pruning(scores, model, graph)
    write = {
        "prune_scores": write_prune_scores,
        "acdc": write_acdc,
        "graphml": write_graphml,
        "dot": write_dot,
        "mermaid": write_mermaid,
    }[chosen]
    return write(scores, graph)
