"""DOT: what is written is read back line by line, and by pydot, which reads anybody's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.integrations import dot
from circuit_trace.integrations.dot import read_dot
from tests.anatomy.toy import ToyModel, anatomy
from tests.integrations.circuits import (
    AT_2,
    ATTENTION,
    GROUPED,
    PARALLEL,
    PLAIN,
    UNSPLIT,
    assert_same,
    edge_scores,
    read,
    refused,
    scores_for,
    write,
)

GRAPHS = {
    "plain": PLAIN,
    "positions": AT_2,
    "grouped": GROUPED,
    "parallel": PARALLEL,
    "attention only": ATTENTION,
    "unsplit": UNSPLIT,
}
graphs = pytest.mark.parametrize("kind", GRAPHS)


@graphs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_round_trip(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = GRAPHS[kind]
    scores = {name: s.clamp(-9, 9).to(dtype) for name, s in scores_for(graph).items()}
    file = write(scores, tmp_path / "c.dot")
    monkeypatch.setitem(sys.modules, "pydot", None)  # not needed for what is written here
    for model in (None, graph):
        assert_same(read(file, model), scores)
    assert_same(read(file, in_graph=True), {n: (s != 0).float() for n, s in scores.items()})


@graphs
def test_pydot_reads_the_same(kind: str) -> None:
    pydot = pytest.importorskip("pydot")
    graph = GRAPHS[kind]
    scores = scores_for(graph, share=0.15)
    text = dot.write_dot(scores, graph).decode()
    facts, edges = dot._by_pydot(text)
    ours = dot._ours(text)
    assert ours is not None
    assert facts == {"rankdir": "LR", **ours[0]}
    assert set(edges) == set(ours[1])
    (parsed,) = pydot.graph_from_dot_data(text)
    assert {node.get_name().strip('"') for node in parsed.get_nodes()} == {
        node.name for node in graph.nodes
    }
    assert_same(read_dot(text.replace("rankdir=LR", "rankdir=TB; color=red"), None), scores)


HAND = """
/* by hand */ strict digraph {
  node [shape=box]; edge [color=red]
  subgraph cluster_0 { label="layer 0"; "MLP 0"; "A0.1" -> "MLP 0" [score=0.25] }
  "A0.1" -> "A1.2.Q" [score="-1e-3", penwidth=2];
  "A1.2.Q" -> "A1.2" [inner=true];
  "Resid Start" -> "Resid End" [score=3]
}
"""


def test_a_digraph_of_another_hand() -> None:
    pytest.importorskip("pydot")
    found = edge_scores(PLAIN, read_dot(HAND, PLAIN))
    assert {(*ends[:2], score) for ends, score in found.items() if score} == {
        ("A0.1", "MLP 0", 0.25),
        ("A0.1", "A1.2.Q", -0.001),
        ("Resid Start", "Resid End", 3.0),
    }
    with pytest.raises(ct.FormatError, match="does not say what model it is for"):
        read_dot(HAND, None)


def test_without_pydot_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(
        ct.FormatError, match=r"others are read by pydot: pip install 'circuit-trace\[dot\]'"
    ):
        read_dot(HAND, PLAIN)


def test_names_are_quoted() -> None:
    model = ct.wrap(ToyModel(), anatomy=anatomy(ToyModel()), verify=False)
    scores = scores_for(model.graph, share=1.0)
    assert_same(read_dot(dot.write_dot(scores, model.graph).decode(), model.graph), scores)
    assert dot._plain(r"a \"b\" \\ c") == r'a "b" \ c'


OURS = dot.write_dot(scores_for(PLAIN, share=0.1), PLAIN).decode()
LINE = next(line for line in OURS.splitlines() if "score=" in line)
BAD: dict[str, tuple[str, str]] = {
    "no digraph": ("graph { a -- b }", r"begins like DOT and is no digraph"),
    "cut off": ("digraph { a -> ", r"begins like DOT and is no digraph|cannot be parsed"),
    "deep": ("digraph " + "{" * 20 + "}" * 20, r"up to 300,000 characters, fewer where braces"),
    "long": ("digraph {" + " " * 300_000 + "}", r"as pydot is slow\. Save it as GraphML"),
    "no score": ('digraph { "MLP 0" -> "MLP 1" }', r"has no score\. in_graph=True"),
    "score as text": ('digraph { "MLP 0" -> "MLP 1" [score=x] }', r"'x': expected a finite number"),
    "not finite": (
        OURS.replace(LINE, LINE.replace('score="', 'score="1e999", x="')),
        r"is inf: expected",
    ),
    "NaN": ('digraph { "MLP 0" -> "MLP 1" [score=nan] }', r"->MLP 1' is nan: expected"),
    "an unknown node": ('digraph { x -> "MLP 1" [score=1] }', r"'x' is not a source of this model"),
    "a position": (
        'digraph { "MLP 0" -> "MLP 1" [score=1, seq_idx=0] }',
        r"position 0: expected none",
    ),
    "a long position": (
        f'digraph {{ "MLP 0" -> "MLP 1" [score=1, seq_idx={"9" * 5000}] }}',
        r"has the position '999",
    ),
    "twice": (OURS.replace(LINE, f"{LINE}\n{LINE}"), r"is listed twice"),
    "a billion heads": (OURS.replace("n_heads=3", "n_heads=1000000000"), r"n_heads must be"),
    "heads as text": (OURS.replace("n_heads=3", "n_heads=many"), r"n_heads must be .* got 'many'"),
    "another model": (
        OURS.replace("heads=3", "heads=1"),
        r"for a model of 2 layers of 1 head and an MLP;",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydot")
    text, message = BAD[kind]
    (tmp_path / "c.dot").write_text(text)
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(tmp_path / "c.dot", PLAIN)
    assert capsys.readouterr().out == ""


def test_another_model(tmp_path: Path) -> None:
    file = write(scores_for(PLAIN), tmp_path / "c.gv")
    other: Graph = GROUPED
    assert "This DOT file is for a model of 2 layers of 3 heads and an MLP;" in refused(file, other)
    assert "wrapped with seq_len=2" in refused(file, AT_2)
