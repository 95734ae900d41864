"""NetworkX graphs and GraphML: NetworkX reads what is written, and paths run through heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.integrations.networkx import from_networkx, read_graphml, to_networkx
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
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@graphs
def test_one_edge_per_score(kind: str) -> None:
    graph = GRAPHS[kind]
    scores = scores_for(graph)
    made = to_networkx(scores)
    assert type(made) is (nx.DiGraph if graph.seq_len is None else nx.MultiDiGraph)
    listed = {
        (src, dest, said.get("seq_idx")): said["score"]
        for src, dest, said in made.edges(data=True)
        if "inner" not in said
    }
    assert listed == {ends: s for ends, s in edge_scores(graph, scores).items() if s != 0}
    assert set(made.nodes) == {node.name for node in graph.nodes}
    assert nx.is_directed_acyclic_graph(made)


def test_nodes_say_where_they_are() -> None:
    made = to_networkx(scores_for(PLAIN))
    assert made.nodes["Resid Start"] == {"kind": "embed"}
    assert (
        made.nodes["A1.2"] == made.nodes["A1.2.Q"] == {"kind": "attention", "layer": 1, "head": 2}
    )
    assert made.nodes["MLP 0"] == {"kind": "mlp", "layer": 0}
    assert made.nodes["Resid End"] == {"kind": "output"}


def test_positions_are_keys() -> None:
    made = to_networkx(scores_for(AT_2, share=1.0))
    assert made.edges["A0.0", "MLP 1", 1]["seq_idx"] == 1
    assert made.number_of_edges("A0.0", "MLP 1") == 2


def test_inputs_lead_into_their_heads() -> None:
    made = to_networkx(scores_for(PLAIN))
    inner = {
        ends for *ends, said in made.edges(data=True) if said.get("inner") for ends in [tuple(ends)]
    }
    heads = [f"A{layer}.{head}" for layer in range(2) for head in range(3)]
    assert inner == {(f"{head}.{letter}", head) for head in heads for letter in "QKV"}
    assert all("score" not in made.edges[ends] for ends in inner)


def test_a_key_value_head_leads_into_every_head_that_shares_it() -> None:
    made = to_networkx(scores_for(GROUPED))
    assert set(made.successors("A0.1.K")) == {"A0.2", "A0.3"}
    assert set(made.successors("A0.0.V")) == {"A0.0", "A0.1"}
    assert set(made.successors("A0.3.Q")) == {"A0.3"}


@graphs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    graph = GRAPHS[kind]
    scores = {name: s.clamp(-9, 9).to(dtype) for name, s in scores_for(graph).items()}
    file = write(scores, tmp_path / "c.graphml")
    for model in (None, graph):
        assert_same(from_networkx(to_networkx(scores, model), model), scores)
        assert_same(read(file, model), scores)
    circuit = read(file, in_graph=True)
    assert_same(circuit, {name: (s != 0).float() for name, s in scores.items()})


@graphs
def test_networkx_reads_it_itself(kind: str, tmp_path: Path) -> None:
    graph = GRAPHS[kind]
    scores = scores_for(graph)
    found = nx.read_graphml(write(scores, tmp_path / "c.graphml"))
    made = to_networkx(scores)
    assert dict(found.nodes(data=True)) == dict(made.nodes(data=True))
    assert _edges(found) == _edges(made)
    assert found.graph.items() >= made.graph.items()


def _edges(graph: Any) -> set[tuple[Any, ...]]:
    keys = ("score", "seq_idx", "inner")
    return {(src, dest, *(said.get(k) for k in keys)) for src, dest, said in graph.edges(data=True)}


def test_what_networkx_writes_is_read(tmp_path: Path) -> None:
    scores = scores_for(AT_2)
    nx.write_graphml(to_networkx(scores), tmp_path / "c.graphml")
    assert_same(read(tmp_path / "c.graphml"), scores)


def test_a_graph_made_by_hand_needs_a_model() -> None:
    made = nx.DiGraph()
    made.add_edge("A0.1", "A1.2.Q", score=0.1)
    made.add_edge("MLP 0", "Resid End", score=2)
    with pytest.raises(ct.FormatError, match=r"does not say what model it is for .* as model="):
        from_networkx(made)
    found = from_networkx(made, PLAIN)
    assert found["blocks.1.hook_q_input"].dtype == torch.float64, "0.1 is no single number"
    assert found["blocks.1.hook_q_input"][2, 2].item() == 0.1
    assert found["blocks.1.hook_resid_post"][4].item() == 2


def test_a_model_that_is_no_transformer() -> None:
    model = ct.wrap(ToyModel(), anatomy=anatomy(ToyModel()), verify=False)
    scores = scores_for(model.graph, share=1.0)
    with pytest.raises(ct.FormatError, match="do not say what model they are for"):
        to_networkx(scores)
    made = to_networkx(scores, model)
    assert nx.has_path(made, "Resid Start", "B1.1")
    assert_same(from_networkx(made, model), scores)
    with pytest.raises(ct.FormatError, match="does not say what model it is for"):
        from_networkx(made)


OTHERS: dict[str, tuple[Graph, Graph, str]] = {
    "another shape": (
        PLAIN,
        GROUPED,
        "This graph is for a model of 2 layers of 3 heads and an MLP; the model given is one of 2 layers "
        "of 4 heads on 2 key-value heads and an MLP.",
    ),
    "positions": (
        PLAIN,
        AT_2,
        "This graph has no token positions; the model given was wrapped with seq_len=2. Give the model "
        "wrapped with seq_len=None.",
    ),
    "no positions": (
        AT_2,
        PLAIN,
        "This graph has 2 token positions; the model given was wrapped with seq_len=None. Give the model "
        "wrapped with seq_len=2.",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_model(kind: str) -> None:
    written, given, message = OTHERS[kind]
    with pytest.raises(ct.FormatError) as caught:
        from_networkx(to_networkx(scores_for(written)), given)
    assert str(caught.value) == message


def with_edge(src: Any, dest: Any, graph: Graph = PLAIN, **said: Any) -> Any:
    made = to_networkx(scores_for(graph, share=0.0))
    made.add_edge(src, dest, **said)
    return made


BAD: dict[str, tuple[Any, str]] = {
    "no graph": (5, r"Expected a directed NetworkX graph .* got int"),
    "undirected": (nx.Graph(), r"Expected a directed NetworkX graph .* got Graph"),
    "no score": (with_edge("MLP 0", "MLP 1"), r"has no score\. in_graph=True reads 1"),
    "score as text": (with_edge("MLP 0", "MLP 1", score="1"), r"'1': expected a finite number"),
    "not finite": (with_edge("MLP 0", "MLP 1", score=float("inf")), r"is inf: expected"),
    "no such node": (with_edge("MLP 9", "MLP 1", score=1), r"'MLP 9' is not a source"),
    "a node of another kind": (with_edge((1, 2), "MLP 1", score=1), r"\(1, 2\) is not a source"),
    "backwards": (with_edge("MLP 1", "A0.0.Q", score=1), r"no edge from 'MLP 1' to 'A0\.0\.Q'"),
    "a position": (
        with_edge("MLP 0", "MLP 1", score=1, seq_idx=1),
        r"has the position 1: expected none",
    ),
    "no position": (
        with_edge("MLP 0", "MLP 1", AT_2, score=1),
        r"has the position None: expected one",
    ),
    "outside": (with_edge("MLP 0", "MLP 1", AT_2, score=1, seq_idx=2), r"expected one from 0 to 1"),
    "half an inner edge": (
        with_edge("A0.0.Q", "A0.0", inner=1, score=1),
        r"'A0\.0\.Q' is not a source",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.usefixtures("as_a_user")
def test_bad_graphs(kind: str) -> None:
    made, message = BAD[kind]
    with pytest.raises(ct.FormatError, match=message):
        from_networkx(made)


def test_facts_of_a_graph_may_be_anything() -> None:
    made = to_networkx(scores_for(PLAIN))
    for fact, value, message in (
        ("n_layers", 10**9, "n_layers must be a whole number"),
        ("n_heads", None, "n_heads must be a whole number"),
        ("parallel", "yes", "parallel must be true or false; got 'yes'"),
        ("seq_len", 10**12, "cannot be read at 1,000,000,000,000 token positions"),
        ("seq_len", "all", "cannot be read at 0 token positions"),
        ("dtype", "complex64", "dtype 'complex64': expected one of float64, float32"),
        ("dtype", 7, "dtype 7: expected one of"),
    ):
        other = made.copy()
        other.graph[fact] = value
        with pytest.raises(ct.FormatError, match=message):
            from_networkx(other)


LAUGHS = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<graph edgedefault="directed">&b;</graph></graphml>"""
BAD_XML = {
    "entities": (LAUGHS, r"declares entities"),
    "cut off": ("<graphml><graph", r"begins like GraphML and is not \(ParseError"),
    "no graph": ("<graphml></graphml>", r"begins like GraphML and is not"),
    "another language": (
        "<svg xmlns='http://www.w3.org/2000/svg'/>",
        r"begins like GraphML and is not",
    ),
    "deep": ("<a>" * 100_000, r"begins like GraphML and is not"),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_xml_that_is_none(kind: str, tmp_path: Path) -> None:
    text, message = BAD_XML[kind]
    with pytest.raises(ct.FormatError, match=message):
        read_graphml(text, PLAIN)
    (tmp_path / "c.graphml").write_text(text)
    assert refused(tmp_path / "c.graphml")


def test_other_encodings_hide_nothing(tmp_path: Path) -> None:
    for encoding in ("utf-16", "cp037"):
        (tmp_path / "c.graphml").write_bytes(LAUGHS.encode(encoding))
        assert "no text in UTF-8" in refused(tmp_path / "c.graphml")
    declared = '<?xml version="1.0" encoding="cp037"?>\n<graphml></graphml>'
    (tmp_path / "c.graphml").write_text(declared)
    assert "begins like GraphML and is not" in refused(tmp_path / "c.graphml", PLAIN)
