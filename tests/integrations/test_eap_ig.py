"""EAP-IG's files, written here by hand after its description, and read back by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph, Shape
from tests.integrations.circuits import (
    AT_2,
    ATTENTION,
    GROUPED,
    PARALLEL,
    PLAIN,
    SHAPE,
    UNSPLIT,
    assert_same,
    circuit_for,
    edge_scores,
    no_warning,
    read,
    refused,
    saved,
    scores_for,
    warned,
    write,
)

LAYERS, HEADS = SHAPE.n_layers, SHAPE.n_heads
Cells = dict[str, tuple[int, int]]


def their_edges(parallel: bool = False, heads: int = HEADS) -> Cells:
    """Each edge's name and its cell, built layer by layer from EAP-IG's description alone."""
    cells: Cells = {}
    stream = ["input"]

    def row(name: str) -> int:
        if name == "input":
            return 0
        layer = int(name[1:].split(".")[0])
        first = 1 + layer * (heads + 1)
        return first + (heads if name[0] == "m" else int(name.split(".h")[1]))

    for layer in range(LAYERS):
        first = layer * (3 * heads + 1)
        for at, letter in enumerate("qkv"):
            for head in range(heads):
                for src in stream:
                    name = f"{src}->a{layer}.h{head}<{letter}>"
                    cells[name] = (row(src), first + at * heads + head)
        written = [f"a{layer}.h{head}" for head in range(heads)]
        for src in stream if parallel else stream + written:
            cells[f"{src}->m{layer}"] = (row(src), first + 3 * heads)
        stream += [*written, f"m{layer}"]
    for src in stream:
        cells[f"{src}->logits"] = (row(src), LAYERS * (3 * heads + 1))
    return cells


def our_name(name: str) -> tuple[str, str]:
    """The ends of an edge of theirs under our names."""
    src, dest = name.split("->")
    return _ours(src), _ours(dest)


def _ours(node: str) -> str:
    if node in ("input", "logits"):
        return {"input": "Resid Start", "logits": "Resid End"}[node]
    if node[0] == "m":
        return f"MLP {node[1:]}"
    head, _, letter = node.rstrip(">").partition("<")
    return head.replace("a", "A").replace(".h", ".") + (f".{letter.upper()}" if letter else "")


def cfg(parallel: bool = False, heads: int = HEADS) -> dict[str, Any]:
    return {"n_layers": LAYERS, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": 8}


def values(cells: Cells, seed: int = 0) -> dict[str, tuple[float, bool]]:
    """A score and whether it belongs, for each edge."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(cells), generator=generator).tolist()
    return {name: (score, score > 0) for name, score in zip(cells, scores, strict=True)}


def their_json(said: dict[str, tuple[float, bool]], **options: Any) -> dict[str, Any]:
    ends = {end.partition("<")[0] for name in said for end in name.split("->")}
    return {
        "cfg": cfg(**options),
        "nodes": {node: {"in_graph": True, "score": 0.5} for node in sorted(ends)},
        "edges": {name: {"score": s, "in_graph": kept} for name, (s, kept) in said.items()},
    }


def their_tensors(said: dict[str, tuple[float, bool]], cells: Cells, **options: Any) -> dict:
    heads = options.get("heads", HEADS)
    size = 1 + LAYERS * (heads + 1), LAYERS * (3 * heads + 1) + 1
    scores, belongs = torch.zeros(size), torch.zeros(size, dtype=torch.bool)
    for name, (score, kept) in said.items():
        scores[cells[name]], belongs[cells[name]] = score, kept
    return {
        "cfg": cfg(**options),
        "src_nodes": _in_order(cells, 0),
        "dst_nodes": _in_order(cells, 1),
        "edges_scores": scores,
        "edges_in_graph": belongs,
        "nodes_in_graph": torch.ones(size[0], dtype=torch.bool),
    }


def _in_order(cells: Cells, side: int) -> list[str]:
    """The names of rows (0) or columns (1)."""
    found = {cell[side]: name.split("->")[side] for name, cell in cells.items()}
    return [found[at] for at in range(len(found))]


def file_of(path: Path, said: dict[str, tuple[float, bool]], kind: str, **options: Any) -> Path:
    if kind == "pt":
        return saved(their_tensors(said, their_edges(**options), **options), path / "c.pt")
    (path / "c.json").write_text(json.dumps(their_json(said, **options)))
    return path / "c.json"


kinds = pytest.mark.parametrize("kind", ["json", "pt"])
parallels = pytest.mark.parametrize("parallel", [False, True])


@kinds
@parallels
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_file_of_theirs(kind: str, parallel: bool, in_graph: bool, tmp_path: Path) -> None:
    cells = their_edges(parallel)
    said = values(cells)
    graph = PARALLEL if parallel else PLAIN
    assert len(cells) == graph.n_edges
    file = file_of(tmp_path, said, kind, parallel=parallel)
    expected = {
        (*our_name(name), None): float(kept) if in_graph else score
        for name, (score, kept) in said.items()
    }
    for model in (None, graph):
        assert edge_scores(graph, read(file, model, in_graph=in_graph)) == expected


@kinds
@parallels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip(kind: str, parallel: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    graph = PARALLEL if parallel else PLAIN
    scores, circuit = scores_for(graph, dtype=dtype), circuit_for(graph)
    file = tmp_path / f"c.{kind}"
    write(scores, file, format="eap_ig", in_graph=circuit)
    assert_same(read(file), scores)
    assert_same(read(file, graph, in_graph=True), circuit)


def test_what_is_written_as_json(tmp_path: Path) -> None:
    scores = scores_for(PLAIN)
    written = json.loads(write(scores, tmp_path / "c.json", format="eap_ig").read_text())
    cells = their_edges()
    assert written["edges"].keys() == cells.keys()
    assert list(written["nodes"]) == [*_in_order(cells, 0), "logits"]
    assert written["cfg"] == {**cfg(), "d_model": 0}, "no model was there to ask for its width"
    ours = edge_scores(PLAIN, scores)
    for name, said in written["edges"].items():
        score = ours[(*our_name(name), None)]
        assert said == {"score": score, "in_graph": score != 0}


def test_what_is_written_as_tensors(tmp_path: Path) -> None:
    scores, circuit = scores_for(PLAIN), circuit_for(PLAIN)
    file = write(scores, tmp_path / "c.pt", format="eap_ig", in_graph=circuit)
    written = torch.load(file, weights_only=True)
    ours, belongs = edge_scores(PLAIN, scores), edge_scores(PLAIN, circuit)
    cells = their_edges()
    said = {n: (ours[(*our_name(n), None)], belongs[(*our_name(n), None)] == 1) for n in cells}
    expected = their_tensors(said, cells)
    assert written["src_nodes"] == expected["src_nodes"]
    assert written["dst_nodes"] == expected["dst_nodes"]
    assert torch.equal(written["edges_scores"], expected["edges_scores"])
    assert torch.equal(written["edges_in_graph"], expected["edges_in_graph"])


def test_nodes_that_belong_are_reached_and_left(tmp_path: Path) -> None:
    chain = ["input->a0.h1<k>", "a0.h1->m1", "m1->logits", "m0->logits", "input->a1.h2<q>"]
    circuit = {name: torch.zeros_like(score) for name, score in scores_for(PLAIN).items()}
    for name in chain:
        edge = PLAIN.edge("->".join(our_name(name)))
        row = circuit[edge.dest.module_name]
        row[(edge.src.idx,) if row.ndim == 1 else (edge.dest.slot, edge.src.idx)] = 1
    file = write(circuit, tmp_path / "c.json", format="eap_ig")
    nodes = json.loads(file.read_text())["nodes"]
    kept = [name for name, said in nodes.items() if said["in_graph"]]
    assert kept == ["input", "a0.h1", "m1", "logits"], "m0 is not reached, a1.h2 not left"


def test_the_width_is_the_model_s(tmp_path: Path) -> None:
    model = ct.wrap(ct.load_model("bundled"))
    file = write(scores_for(model.graph), tmp_path / "c.json", model, format="eap_ig")
    assert json.loads(file.read_text())["cfg"]["d_model"] == model.cfg.d_model


def test_the_embedding_is_not_quite_ours(tmp_path: Path) -> None:
    scores = scores_for(PLAIN)
    message = r"^EAP-IG's 'input' is the embedding without positions; 'Resid Start' includes them"
    with warned(message):
        ct.save_scores(scores, tmp_path / "c.json", format="eap_ig")
    with warned(message):
        ct.load_scores(tmp_path / "c.json")
    for score in scores.values():
        score[..., 0] = 0
    with no_warning():
        ct.save_scores(scores, tmp_path / "c.json", format="eap_ig")
        assert_same(ct.load_scores(tmp_path / "c.json"), scores)


def grouped_file(path: Path, kind: str, same: bool = False) -> tuple[Path, dict[str, float]]:
    said = values(their_edges(heads=4))
    if same:  # the second head of each pair says what the first does
        for name in said:
            head, letter = name[-4], name[-2]
            if letter in "kv" and name.endswith(">"):
                first = f"{name[:-4]}{int(head) // 2 * 2}{name[-3:]}"
                said[name] = said[first]
    return file_of(path, said, kind, heads=4), {name: score for name, (score, _) in said.items()}


@kinds
def test_query_heads_that_share_keys_and_values_are_added_up(kind: str, tmp_path: Path) -> None:
    file, said = grouped_file(tmp_path, kind)
    found = edge_scores(GROUPED, read(file, GROUPED, groups="sum"))
    assert found["Resid Start", "A1.3.Q", None] == said["input->a1.h3<q>"]
    for head in (0, 1):
        both = [torch.tensor(said[f"m0->a1.h{2 * head + one}<k>"]) for one in (0, 1)]
        expected = both[0].double() + both[1].double()
        assert found["MLP 0", f"A1.{head}.K", None] == pytest.approx(expected.item(), rel=1e-6)


@kinds
def test_query_heads_that_share_keys_and_values_say_the_same(kind: str, tmp_path: Path) -> None:
    file, said = grouped_file(tmp_path, kind, same=True)
    found = edge_scores(GROUPED, read(file, GROUPED, groups="same"))
    assert found["MLP 0", "A1.1.V", None] == said["m0->a1.h2<v>"] == said["m0->a1.h3<v>"]
    other, _ = grouped_file(tmp_path, kind)
    assert "groups='same' needs equal scores" in refused(other, GROUPED, groups="same")
    circuit = edge_scores(GROUPED, read(other, GROUPED, groups="sum", in_graph=True))
    assert set(circuit.values()) == {0.0, 1.0}


@kinds
@pytest.mark.parametrize("groups", ["sum", "same"])
def test_round_trip_of_groups(kind: str, groups: Any, tmp_path: Path) -> None:
    scores = scores_for(GROUPED)
    file = write(scores, tmp_path / f"c.{kind}", format="eap_ig", groups=groups)
    assert_same(read(file, GROUPED, groups=groups), scores)
    heads = edge_scores(Shape(2, 4, 4).graph(), read(file))
    mine = edge_scores(GROUPED, scores)["A0.1", "A1.0.K", None]
    assert heads["A0.1", "A1.1.K", None] == (mine / 2 if groups == "sum" else mine)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("groups", [None, "mean", 3])
def test_groups_must_be_said(groups: Any, tmp_path: Path) -> None:
    file, _ = grouped_file(tmp_path, "json")
    message = (
        r"EAP-IG tells key and value inputs apart for each query head; a model of 2 layers of 4"
    )
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(file, GROUPED, groups=groups)
    with pytest.raises(ct.FormatError, match=message):
        ct.save_scores(scores_for(GROUPED), tmp_path / "d.json", format="eap_ig", groups=groups)
    assert not (tmp_path / "d.json").exists()


NOT_HELD: dict[str, tuple[Graph, str]] = {
    "positions": (AT_2, r"EAP-IG's format has no token positions, .* 2\. Sum them over positions"),
    "no MLPs": (ATTENTION, r"EAP-IG's graph has an MLP in every layer .* 3 heads and no MLP"),
    "no Q, K, V": (UNSPLIT, r"EAP-IG's graph .* Q, K and V not told apart"),
}


@pytest.mark.parametrize("kind", NOT_HELD)
def test_what_the_format_does_not_hold(kind: str, tmp_path: Path) -> None:
    graph, message = NOT_HELD[kind]
    with pytest.raises(ct.FormatError, match=message):
        ct.save_scores(scores_for(graph), tmp_path / "c.json", format="eap_ig")


def test_summing_over_positions_is_what_the_message_says(tmp_path: Path) -> None:
    scores = scores_for(AT_2)
    summed = {name: s.sum(0) for name, s in scores.items()}
    assert_same(read(write(summed, tmp_path / "c.json", format="eap_ig"), PLAIN), summed)


@kinds
def test_another_model(kind: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, values(their_edges()), kind)
    assert refused(file, PARALLEL) == (
        "This EAP-IG file is for a model of 2 layers of 3 heads and an MLP; the model given is one of 2 "
        "layers of 3 heads and a parallel MLP."
    )
    assert "has no token positions, and the model given was wrapped with" in refused(file, AT_2)


def test_scores_where_no_edge_can_be(tmp_path: Path) -> None:
    data = their_tensors(values(their_edges()), their_edges())
    data["edges_in_graph"][0] = False
    data["edges_in_graph"][4] = True  # as EAP-IG itself does with the rows of chosen nodes
    file = saved(data, tmp_path / "c.pt")
    with warned(
        r"has in 'edges_in_graph' 10 pairs between which no edge can be, such as 'm0' to 'a0"
    ):
        ct.load_scores(file, in_graph=True)
    data["edges_scores"][8, 3] = 1e-9
    assert refused(saved(data, file)).startswith(
        "This EAP-IG file has in 'edges_scores' 1 pairs between which no edge can be, such as 'm1' to "
        "'a0.h0<k>': it is damaged, or its 'cfg' is not that of its model"
    )


def changed_json(**changes: Any) -> dict[str, Any]:
    return {**their_json(values(their_edges())), **changes}


EDGE = "input->m0"
BAD_JSON: dict[str, tuple[Any, str]] = {
    "no numbers": (changed_json(cfg={}), r"must say the model's shape in 'cfg'"),
    "cfg a list": (changed_json(cfg=[2]), r"must say the model's shape in 'cfg' .* got \[2\]"),
    "a billion heads": (changed_json(cfg={**cfg(), "n_heads": 10**9}), r"n_heads must be a whole"),
    "layers as text": (changed_json(cfg={**cfg(), "n_layers": "2"}), r"n_layers must .* got '2'"),
    "edges a list": (changed_json(edges=[]), r"must list its edges in a dict .* got list"),
    "an edge without score": (changed_json(edges={EDGE: {}}), r"'input->m0' must have a 'score'"),
    "an edge that is a number": (changed_json(edges={EDGE: 1}), r"'score'; got 1"),
    "score as text": (changed_json(edges={EDGE: {"score": "1"}}), r"'1': expected a finite number"),
    "score true": (changed_json(edges={EDGE: {"score": True}}), r"True: expected a finite number"),
    "score NaN": (
        changed_json(edges={EDGE: {"score": float("nan")}}),
        r"->MLP 0' is nan: expected",
    ),
    "no arrow": (changed_json(edges={"m0": {"score": 1}}), r"'' is not a destination"),
    "unknown node": (
        changed_json(edges={"m9->logits": {"score": 1}}),
        r"'m9' is not a source of this",
    ),
    "backwards": (changed_json(edges={"m1->m0": {"score": 1}}), r"no edge from 'm1' to 'm0'"),
    "without a letter": (changed_json(edges={"m0->a1.h0": {"score": 1}}), r"Did you mean 'a1\.h0<"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json(kind: str, tmp_path: Path) -> None:
    data, message = BAD_JSON[kind]
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(tmp_path / "c.json")


@pytest.mark.parametrize("value", [2, "yes", None, 0.5])
def test_in_graph_is_true_or_false(value: Any, tmp_path: Path) -> None:
    data = changed_json(edges={EDGE: {"score": 1.0, "in_graph": value}})
    (tmp_path / "c.json").write_text(json.dumps(data))
    assert refused(tmp_path / "c.json", in_graph=True).startswith(
        "'in_graph' of the edge 'input->m0' is"
    )


def changed_tensors(**changes: Any) -> dict[str, Any]:
    return {**their_tensors(values(their_edges()), their_edges()), **changes}


BAD_TENSORS: dict[str, tuple[Any, str]] = {
    "transposed": (
        changed_tensors(edges_scores=torch.zeros(21, 9)),
        r"'edges_scores' as a tensor \[sources, destinations\] of \(9, 21\); got \(21, 9\)",
    ),
    "a number": (changed_tensors(edges_scores=1.0), r"of \(9, 21\); got float"),
    "nothing": (changed_tensors(edges_scores=None), r"got NoneType"),
    "other order": (
        changed_tensors(src_nodes=["m0", "input"]),
        r"must list 'src_nodes' as 'input', …, 'm1', 9 in all, .* got \['m0', 'input'\]",
    ),
    "nodes a number": (changed_tensors(dst_nodes=7), r"must list 'dst_nodes' .* got 7"),
    "huge cfg": (changed_tensors(cfg={**cfg(), "n_layers": 2**62}), r"n_layers must be"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors(kind: str, tmp_path: Path) -> None:
    data, message = BAD_TENSORS[kind]
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(saved(data, tmp_path / "c.pt"))


def test_tensors_that_are_not_finite_or_not_true(tmp_path: Path) -> None:
    data = changed_tensors()
    data["edges_scores"][0, 0] = torch.nan
    file = saved(data, tmp_path / "c.pt")
    assert refused(file) == ("The score of 'Resid Start->A0.0.Q' is nan: expected a finite number.")
    data["edges_in_graph"] = torch.full((9, 21), 0.5)
    assert "must be true or false" in refused(saved(data, file), in_graph=True)
