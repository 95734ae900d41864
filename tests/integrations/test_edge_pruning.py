"""Edge-Pruning's `edges.json`, written here by hand after its description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.graph import Graph
from tests.integrations.circuits import (
    AT_2,
    ATTENTION,
    GROUPED,
    PARALLEL,
    PLAIN,
    UNSPLIT,
    assert_same,
    circuit_for,
    edge_scores,
    no_warning,
    read,
    refused,
    scores_for,
    warned,
    write,
)
from tests.models import CASES, wrapped

PAIRS = {
    ("a0.h1", "a1.h2.q"): ("A0.1", "A1.2.Q"),
    ("a0.h0", "m0"): ("A0.0", "MLP 0"),
    ("m0", "a1.h0.k"): ("MLP 0", "A1.0.K"),
    ("m1", "resid_post"): ("MLP 1", "Resid End"),
    ("m0", "a1.h0.v"): ("MLP 0", "A1.0.V"),
}


def file_of(path: Path, pairs: Any) -> Path:
    (path / "edges.json").write_text(json.dumps(pairs))
    return path / "edges.json"


def ones(graph: Graph, circuit: ct.PruneScores) -> set[tuple[str, str]]:
    return {ends[:2] for ends, score in edge_scores(graph, circuit).items() if score == 1}


def test_a_file_of_theirs(tmp_path: Path) -> None:
    file = file_of(tmp_path, [list(pair) for pair in PAIRS])
    with no_warning():
        found = ct.load_scores(file, PLAIN)
    assert ones(PLAIN, found) == set(PAIRS.values())
    assert_same(ct.load_scores(file, PLAIN, in_graph=True), found)
    assert ones(PLAIN, read(file_of(tmp_path, []), PLAIN)) == set()


@pytest.mark.parametrize("start", [["embeds"], ["tok_embeds", "pos_embeds"]])
def test_the_whole_embedding(start: list[str], tmp_path: Path) -> None:
    with no_warning():
        found = ct.load_scores(file_of(tmp_path, [[name, "m1"] for name in start]), PLAIN)
    assert ones(PLAIN, found) == {("Resid Start", "MLP 1")}


@pytest.mark.parametrize("start", ["tok_embeds", "pos_embeds"])
def test_half_of_the_embedding(start: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, [[start, "m1"], ["m0", "m1"]])
    with warned(
        r"^Edge-Pruning tells tok_embeds and pos_embeds apart; 1 edges have one of them alone"
    ):
        found = ct.load_scores(file, PLAIN)
    assert ones(PLAIN, found) == {("Resid Start", "MLP 1"), ("MLP 0", "MLP 1")}


GRAPHS = {"plain": PLAIN, "parallel": PARALLEL, "grouped": GROUPED, "attention only": ATTENTION}


@pytest.mark.parametrize("kind", GRAPHS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    graph, circuit = GRAPHS[kind], circuit_for(GRAPHS[kind])
    file = write(circuit, tmp_path / "edges.json", format="edge_pruning")
    with no_warning():
        assert_same(ct.load_scores(file, graph), circuit)
    names = {"Resid Start": "tok_embeds", "Resid End": "resid_post"}

    def theirs(name: str) -> str:
        short = name.replace("MLP ", "m").replace("A", "a", 1).lower()
        return names.get(name) or short.replace(".", ".h", 1)

    written = [tuple(pair) for pair in json.loads(file.read_text())]
    expected = {(theirs(src), theirs(dest)) for src, dest in ones(graph, circuit)}
    assert {pair for pair in written if pair[0] != "pos_embeds"} == expected
    assert len(set(written)) == len(written)


@pytest.mark.skipif("hooked rotary, gated MLP" not in CASES, reason="no such model here")
def test_an_embedding_without_positions_is_one_node(tmp_path: Path) -> None:
    model = wrapped("hooked rotary, gated MLP")
    circuit = circuit_for(model.graph)
    file = write(circuit, tmp_path / "edges.json", model, format="edge_pruning")
    starts = {src for src, _ in json.loads(file.read_text()) if "embeds" in src}
    assert starts == {"embeds"}
    assert_same(read(file, model), circuit)


def test_it_does_not_say_its_model(tmp_path: Path) -> None:
    assert refused(file_of(tmp_path, [["m0", "m1"]])) == (
        "This Edge-Pruning file lists the edges of a circuit and does not say what model it is for. "
        "Pass the model, as model=."
    )


BAD: dict[str, tuple[Any, str]] = {
    "a node too many": ([["m0", "m2"]], r"^.*'m2' is not a destination of this model"),
    "a head as a destination": ([["m0", "a1.h0"]], r"Did you mean 'a1\.h0\.q'|Did you mean 'a1"),
    "backwards": ([["m1", "m0"]], r"no edge from 'm1' to 'm0'"),
    "three": ([["m0", "m1", "m1"]], r"must list pairs such as .* got \['m0', 'm1', 'm1'\]"),
    "numbers": ([[1, 2]], r"1 is not a source"),
    "text later": (
        [["m0", "m1"]] * 1 + [["m0", "resid_post"]] + [["a0.h0", "m0"], "m0"],
        r"got 'm0'",
    ),
    "twice": ([["m0", "m1"], ["m0", "m1"]], r"lists the edge \['m0', 'm1'\] twice"),
    "text": (["m0", "m1"], r"none of the formats that are known: it holds \['m0', 'm1'\]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    data, message = BAD[kind]
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(file_of(tmp_path, data), PLAIN)


@pytest.mark.parametrize("graph", [AT_2, UNSPLIT], ids=["positions", "unsplit"])
def test_what_the_format_does_not_hold(graph: Graph, tmp_path: Path) -> None:
    message = r"token positions|tells the query, key and value of a head apart"
    with pytest.raises(ct.FormatError, match=message):
        ct.save_scores(circuit_for(graph), tmp_path / "edges.json", format="edge_pruning")
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(file_of(tmp_path, []), graph)


def test_scores_are_no_circuit(tmp_path: Path) -> None:
    with pytest.raises(ct.FormatError, match=r"^Edge-Pruning's format says of an edge"):
        ct.save_scores(scores_for(PLAIN), tmp_path / "edges.json", format="edge_pruning")
