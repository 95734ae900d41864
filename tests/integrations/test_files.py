"""Any file of scores: told apart by content, written by extension, refused in our words."""

from __future__ import annotations

import json
import random
import signal
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.integrations import files
from circuit_trace.integrations.files import BY_SUFFIX, MIB_FILE
from tests.integrations.circuits import (
    AT_2,
    PLAIN,
    assert_same,
    circuit_for,
    mutated,
    read,
    refused,
    repacked,
    saved,
    scores_for,
    write,
)
from tests.models import TYPICAL, tokens, wrapped

KINDS: dict[str, tuple[str, str | None, bool]] = {
    "prune_scores": ("c.pt", "prune_scores", False),
    "pickle": ("c.pkl", None, False),
    "eap_ig json": ("c.json", "eap_ig", False),
    "eap_ig pt": ("c.pt", "eap_ig", False),
    "acdc": ("c.pth", None, True),
    "edge_pruning": ("c.json", "edge_pruning", True),
    "graphml": ("c.graphml", None, False),
    "dot": ("c.dot", None, False),
    "mermaid": ("c.mmd", None, False),
}
"""A name, the format to ask for, and whether it holds circuits alone."""

kinds = pytest.mark.parametrize("kind", KINDS)


def example(kind: str, folder: Path, graph: Graph = PLAIN) -> tuple[Path, ct.PruneScores]:
    name, asked, is_circuit = KINDS[kind]
    scores = circuit_for(graph) if is_circuit else scores_for(graph)
    return write(scores, folder / name, format=asked), scores


@kinds
def test_what_a_file_is_its_content_says(kind: str, tmp_path: Path) -> None:
    file, scores = example(kind, tmp_path)
    for name in ("a", "b.txt", "c.json", "d.pt", "e.graphml", "f.dot"):
        assert_same(read(file.rename(tmp_path / f"x{name}"), PLAIN), scores)
        file = tmp_path / f"x{name}"


@kinds
def test_a_model_may_be_wrapped_or_traced(kind: str, tmp_path: Path) -> None:
    model = wrapped(TYPICAL[0])
    file, scores = example(kind, tmp_path, model.graph)
    trace = model.trace(tokens(0))
    for given_model in (model, trace, model.graph):
        assert_same(read(file, given_model), scores)
    name, asked, _ = KINDS[kind]
    write(scores, tmp_path / f"again-{name}", trace, format=asked)
    assert (tmp_path / f"again-{name}").exists()


def test_what_is_read_can_be_patched_and_drawn(tmp_path: Path) -> None:
    model = wrapped(TYPICAL[0])
    circuit = circuit_for(model.graph, share=0.1)
    masks = read(write(circuit, tmp_path / "edges.json", model, format="edge_pruning"), model)
    trace = model.trace(tokens(0), corrupt=tokens(1), masks=masks)
    assert len(trace.edges) == sum(int(mask.sum()) for mask in circuit.values())
    figure = ct.draw_seq_graph(model, masks, display_ipython=False)
    assert len(figure.data[0].link.value) > 0  # pyright: ignore[reportAttributeAccessIssue]


EXTENSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "c.json": (
        {},
        "Several tools write .json: choose by format='eap_ig' or format='edge_pruning'.",
    ),
    "c.pt": ({}, "Several tools write .pt: choose by format='prune_scores' or format='eap_ig'."),
    "c.txt": (
        {},
        "Cannot tell the format of 'c.txt' by its extension: those that are known are .pt, .pkl, .pth, "
        ".json, .graphml, .dot, .gv, .mmd, .mermaid; format='mib' writes a folder.",
    ),
    "c": (
        {"format": "csv"},
        "format must be one of prune_scores, eap_ig, acdc, edge_pruning, graphml, ",
    ),
    "d.pt": ({"format": "acdc"}, "A file of format 'acdc' ends in .pth; got 'd.pt'."),
    "d.json": ({"format": "dot"}, "A file of format 'dot' ends in .dot or .gv; got 'd.json'."),
    "e.dot": (
        {"in_graph": {}},
        "in_graph= is for EAP-IG's files, which hold scores and a circuit;",
    ),
    "f.json": (
        {"format": "circuit-tracer"},
        "circuit-tracer's attribution graphs are neither read nor",
    ),
    "g.json": (
        {"format": "circuit_tracer"},
        "circuit-tracer's attribution graphs are neither read nor",
    ),
}


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.usefixtures("as_a_user")
def test_formats_that_are_not_clear(name: str, tmp_path: Path) -> None:
    options, message = EXTENSIONS[name]
    with pytest.raises(ct.FormatError) as caught:
        ct.save_scores(scores_for(PLAIN), tmp_path / name, **options)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_attribution_graphs_are_not_ours(tmp_path: Path) -> None:
    graph = {"metadata": {}, "qParams": {}, "nodes": [], "links": []}
    (tmp_path / "g.json").write_text(json.dumps(graph))
    message = refused(tmp_path / "g.json")
    assert "features of transcoders and their edges cross token positions" in message


def test_a_figure_is_no_scores(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"data": [], "layout": {}}')
    assert refused(tmp_path / "f.json").startswith(
        "This is none of the formats that are known: it holds a dict with the keys 'data', 'layout'. "
        "Expected auto-circuit's PruneScores, EAP-IG's JSON or .pt, ACDC's .pth,"
    )


def test_a_submission_s_folder(tmp_path: Path) -> None:
    scores = scores_for(PLAIN)
    folder = tmp_path / "ioi_gpt2"
    write(scores, folder, format="mib")
    assert [file.name for file in folder.iterdir()] == [MIB_FILE]
    assert_same(read(folder), scores)
    assert_same(read(folder, in_graph=True), {n: (s != 0).float() for n, s in scores.items()})
    write(scores, tmp_path / "mcqa_gpt2", format="mib")
    assert_same(read(tmp_path, select="ioi_gpt2"), scores)


def test_nine_binary_circuits(tmp_path: Path) -> None:
    circuits = {size: circuit_for(PLAIN, share=size, seed=3) for size in (0.01, 0.1, 0.5)}
    for size, circuit in circuits.items():
        write(circuit, tmp_path / f"circuit_{size}.json", format="eap_ig")
    (tmp_path / "README.md").write_text("not scores")
    found = read(tmp_path, select="circuit_0.1.json", in_graph=True)
    assert_same(found, circuits[0.1])
    assert refused(tmp_path) == (
        f"The folder {str(tmp_path)!r} holds 3 files that may be scores, and none is chosen. Choose one "
        "by select=: circuit_0.01.json, circuit_0.1.json, circuit_0.5.json."
    )
    assert "'circuit' fits 3 of them" in refused(tmp_path, select="circuit")
    assert "there is none" in refused(_made(tmp_path / "empty"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_folder_with_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.txt").touch()
    assert "holds more than 3 files" in refused(tmp_path)


def test_folders_are_made_and_failures_leave_nothing(tmp_path: Path) -> None:
    scores = scores_for(PLAIN)
    write(scores, tmp_path / "a/b/c.dot")
    assert [file.name for file in (tmp_path / "a/b").iterdir()] == ["c.dot"]
    for path in (_made(tmp_path / "x.dot"), tmp_path / "a/b/c.dot/d.dot"):
        with pytest.raises(
            ct.FormatError, match=r"^Cannot write '.*': (Is a dir|Not a dir|File ex)"
        ):
            ct.save_scores(scores, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "x.dot"]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("path", [None, 5, b"x.dot"])
def test_what_is_no_path(path: Any) -> None:
    for call in (lambda: ct.save_scores({}, path), lambda: ct.load_scores(path)):
        with pytest.raises(ct.InputError, match=r"^path must be a path"):
            call()


@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_model(tmp_path: Path) -> None:
    file, scores = example("graphml", tmp_path)
    with pytest.raises(ct.InputError, match=r"^model must be a wrapped model"):
        ct.load_scores(file, "gpt2")
    with pytest.raises(ct.InputError, match=r"^model must be a wrapped model"):
        ct.save_scores(scores, file, torch.nn.Identity())


def test_scores_that_leave_modules_out_need_the_model(tmp_path: Path) -> None:
    scores = {"blocks.1.hook_mlp_in": torch.arange(8.0)}
    with pytest.raises(ct.FormatError, match=r"do not say what model they are for .* as model="):
        ct.save_scores(scores, tmp_path / "c.dot")
    found = read(write(scores, tmp_path / "c.dot", PLAIN))
    assert torch.equal(found["blocks.1.hook_mlp_in"], torch.arange(8.0))
    assert found["blocks.0.hook_mlp_in"].count_nonzero() == 0


def test_a_million_edges(tmp_path: Path) -> None:
    """Many edges for a small model are refused one by one, in little time and memory."""
    edges = {f"m0->m{number}": {"score": 1.0} for number in range(200_000)}
    cfg = {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": False}
    (tmp_path / "c.json").write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": edges}))
    assert "no edge from 'm0' to 'm0'" in refused(tmp_path / "c.json")
    pairs = [["m0", "m1"]] * 500_000
    (tmp_path / "e.json").write_text(json.dumps(pairs))
    assert "twice" in refused(tmp_path / "e.json", PLAIN)


# What follows feeds every reader with damage; nothing but our own errors may come out of it.

PATIENCE = 20
"""Seconds after which a reader counts as hanging."""


def survives(path: Path, data: bytes, *args: Any, **options: Any) -> str:
    """How a file was answered: the name of the error, or "read"."""

    def too_long(*_: object) -> None:
        raise TimeoutError("a reader hangs")

    path.write_bytes(data)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE)
    refusal, found = None, {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ct.load_scores(path, *args, **options)
    except ct.CircuitTraceError as error:
        refusal = error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert len(str(refusal)) < 1_500
    assert all(torch.isfinite(score).all() for score in found.values())
    return "read" if refusal is None else type(refusal).__name__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def few(kind: str) -> ct.PruneScores:
    """A circuit small enough that a damaged file is parsed at once."""
    scores = scores_for(AT_2 if kind in ("graphml", "dot", "mermaid") else PLAIN, share=0.03)
    is_circuit = KINDS[kind][2]
    return {name: (s != 0).float() if is_circuit else s for name, s in scores.items()}


@kinds
@pytest.mark.usefixtures("as_a_user")
def test_damaged_files(kind: str, folder: Path) -> None:
    name, asked, _ = KINDS[kind]
    data = write(few(kind), folder / name, format=asked).read_bytes()
    rng = random.Random(kind)
    answers = {
        survives(folder / f"damaged-{name}", mutated(data, rng), model, in_graph=rng.random() < 0.2)
        for _ in range(60)
        for model in (None, PLAIN)
    }
    assert "FormatError" in answers


@kinds
@pytest.mark.usefixtures("as_a_user")
def test_truncated_files(kind: str, folder: Path) -> None:
    name, asked, _ = KINDS[kind]
    data = write(few(kind), folder / name, format=asked).read_bytes()
    cuts = sorted({0, 1, 4, 10, *random.Random(0).sample(range(len(data)), 25)})
    answers = [survives(folder / f"cut-{name}", data[:cut], PLAIN) for cut in cuts]
    assert answers[0] == "FormatError"
    if name.endswith((".pt", ".pth", ".pkl", ".json")):
        assert set(answers) == {"FormatError"}


@pytest.mark.parametrize("kind", ["prune_scores", "eap_ig pt", "acdc"])
@pytest.mark.usefixtures("as_a_user")
def test_damage_behind_right_checksums(kind: str, folder: Path) -> None:
    name, asked, _ = KINDS[kind]
    data = write(few(kind), folder / name, format=asked).read_bytes()
    rng = random.Random(kind)

    def change(record: str, content: bytes) -> bytes:
        is_hit = record.endswith("data.pkl") or rng.random() < 0.1
        return mutated(content, rng) if is_hit else content

    answers = [
        survives(folder / f"odd-{name}", repacked(data, change), rng.choice((None, PLAIN)))
        for _ in range(150)
    ]
    assert "FormatError" in answers


names_of_edges = st.sampled_from(["input->m0", "m0->logits", "a0.h0->a1.h1<q>", "m1->m0", "x", ""])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([10**9, -1, 2**70, "2", "m0", "m1", "a1.h0.q"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def often(usual: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(usual), st.just(usual), anything)


cfgs = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"n_layers": often(2), "n_heads": often(3), "parallel_attn_mlp": often(False)}
    ),
)
said = st.fixed_dictionaries({"score": often(0.5), "in_graph": often(True)})
edge_dicts = st.dictionaries(names_of_edges, st.one_of(anything, said), max_size=4)
eap_files = st.fixed_dictionaries({"cfg": cfgs, "edges": st.one_of(anything, edge_dicts)})
pair_files = st.lists(
    st.one_of(anything, st.lists(often("m0"), min_size=2, max_size=2)), max_size=5
)

hammer = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@hammer
@given(data=st.one_of(anything, eap_files, pair_files), in_graph=st.booleans())
@pytest.mark.usefixtures("as_a_user")
def test_any_json(data: Any, in_graph: bool, folder: Path) -> None:
    for model in (None, PLAIN):
        survives(folder / "any.json", json.dumps(data).encode(), model, in_graph=in_graph)


matrices = st.one_of(
    anything,
    st.builds(
        torch.full,
        st.sampled_from([(9, 21), (21, 9), (), (0,), (9, 21, 1)]),
        st.sampled_from([0.0, 1.0, float("nan"), True, 3]),
    ),
)
tensor_files = st.one_of(
    st.fixed_dictionaries({"cfg": cfgs, "edges_scores": matrices, "edges_in_graph": matrices}),
    st.dictionaries(st.one_of(scalars, st.sampled_from(["blocks.0.hook_mlp_in"])), matrices),
    st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), matrices)),
    st.dictionaries(
        st.tuples(
            often("blocks.0.hook_mlp_in"), often(None), often("hook_embed"), often(None)
        ).filter(lambda key: not any(isinstance(part, list | dict) for part in key)),
        often(True),
    ),
    anything,
)


@hammer
@given(data=tensor_files, in_graph=st.booleans())
@pytest.mark.usefixtures("as_a_user")
def test_anything_that_torch_saves(data: Any, in_graph: bool, folder: Path) -> None:
    file = saved(data, folder / "any.pt")
    for model in (None, PLAIN):
        survives(folder / "read.pt", file.read_bytes(), model, in_graph=in_graph)


BEGINNINGS = (
    "",
    "flowchart LR\n",
    "digraph {",
    "<graphml>",
    "{",
    "[",
    "PK\x03\x04",
    "\x80\x02",
    "%%",
)


@hammer
@given(start=st.sampled_from(BEGINNINGS), rest=st.one_of(st.text(), st.binary()))
@pytest.mark.usefixtures("as_a_user")
def test_any_bytes(start: str, rest: str | bytes, folder: Path) -> None:
    behind = rest if isinstance(rest, bytes) else rest.encode("utf-8", "surrogatepass")
    survives(folder / "any", start.encode("latin-1") + behind, PLAIN)


def test_every_format_has_an_extension() -> None:
    by_extension = {name for names in BY_SUFFIX.values() for name in names}
    assert {*by_extension, "mib"} == set(get_args(files.Format))
