"""Scores show themselves in a line, and are a dict to everything else, other tools' files included."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
from copy import copy, deepcopy
from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from circuit_trace import EdgeScores
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.graph import Shape

NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> ct.PatchableModel:
    return ct.wrap(ct.load_model("bundled"))


def everything_that_returns_scores(model: ct.PatchableModel, folder: Path) -> dict[str, object]:
    from circuit_trace.integrations.auto_circuit import patchable_model
    from circuit_trace.integrations.networkx import from_networkx, to_networkx

    pairs = (CLEAN, CORRUPT, *ANSWERS)
    scores = ct.score_edges(model, pairs)
    formats = {"a.pkl": None, "b.graphml": None, "c.json": "eap_ig"}
    for name, chosen in formats.items():
        ct.save_scores(scores, folder / name, model=model, format=chosen)
    theirs = patchable_model(ct.load_model("bundled"), factorized=True, separate_qkv=True)
    return {
        "score_edges": scores,
        "exact": ct.exact_scores(model, pairs, edges=["A1.0->Resid End"]),
        "acdc": ct.acdc(model, (CLEAN, CORRUPT), threshold=0.5).circuit,
        "circuit": ct.circuit(scores, n_edges=20),
        "masks": model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"]).masks,
        "saved by torch": ct.load_scores(folder / "a.pkl"),
        "graphml": ct.load_scores(folder / "b.graphml"),
        "json": ct.load_scores(folder / "c.json"),
        "networkx": from_networkx(to_networkx(scores, model)),
        "auto-circuit's new": theirs.new_prune_scores(1.0),
        "auto-circuit's circuit": theirs.circuit_prune_scores(["A1.0->Resid End"], bool=True),
        "auto-circuit's masks": theirs.current_patch_masks_as_prune_scores(),
    }


def test_every_way_to_get_scores_shows_a_line(model: ct.PatchableModel, tmp_path: Path) -> None:
    for name, scores in everything_that_returns_scores(model, tmp_path).items():
        assert isinstance(scores, dict), name
        assert all(isinstance(one, torch.Tensor) for one in scores.values()), name
        shown = repr(scores)
        shape = r"<(EdgeScores: [\d,]+ edges, [\d,]+ not zero, largest \|score\| \S+|Circuit: .+)>"
        assert re.fullmatch(shape, shown), name


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ({}, "<EdgeScores: 0 edges, 0 not zero, largest |score| 0>"),
        ({NAME: torch.zeros(3)}, "<EdgeScores: 3 edges, 0 not zero, largest |score| 0>"),
        (
            {NAME: torch.tensor([[1, -7, 0]]), "other": torch.ones(2, 600) * 5.25},
            "<EdgeScores: 1,203 edges, 1,202 not zero, largest |score| 7>",
        ),
        (
            {NAME: torch.tensor([True, False])},
            "<EdgeScores: 2 edges, 1 not zero, largest |score| 1>",
        ),
        (
            {NAME: torch.tensor([float("nan")], requires_grad=True)},
            "<EdgeScores: 1 edges, 1 not zero, largest |score| nan>",
        ),
        ({NAME: "no tensor"}, "{'blocks.1.hook_resid_post': 'no tensor'}"),
    ],
)
def test_the_line(held: dict, line: str) -> None:
    assert repr(EdgeScores(held)) == line


def test_copies_are_scores_too() -> None:
    scores = EdgeScores({NAME: torch.ones(3)})
    for one in (scores.copy(), copy(scores)):
        assert type(one) is EdgeScores
        assert one[NAME] is scores[NAME]
    deep = deepcopy(scores)
    assert type(deep) is EdgeScores
    assert torch.equal(deep[NAME], scores[NAME])
    deep[NAME].zero_()
    assert scores[NAME].sum() == 3


def test_files_hold_nothing_of_ours(tmp_path: Path) -> None:
    """auto-circuit, or anything else, reads them where this library is not installed."""
    scores = EdgeScores({NAME: torch.arange(3.0)})
    for read in (pickle.loads(pickle.dumps(scores)), _through_torch(scores)):
        assert isinstance(read, dict)
        assert list(read) == [NAME]
        assert torch.equal(read[NAME], scores[NAME])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        asked_for = [
            str(argument)
            for _, argument, _ in pickletools.genops(pickle.dumps(scores, protocol))
            if isinstance(argument, str)
        ]
        assert not any("circuit_trace" in one for one in asked_for)


def _through_torch(scores: EdgeScores) -> dict[str, torch.Tensor]:
    saved = io.BytesIO()
    torch.save(scores, saved)
    return torch.load(io.BytesIO(saved.getvalue()), weights_only=True)


SHAPE = Shape(n_layers=2, n_heads=3, n_kv_heads=3)


def random_scores(seq_len: int | None, seed: int = 0) -> ct.EdgeScores:
    """A score for each edge of a small model, some of them 0."""
    graph = SHAPE.graph(seq_len)
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for module in graph.modules:
        shape = module.shape if seq_len is None else (seq_len, *module.shape)
        found = torch.randn(shape, generator=generator)
        scores[module.name] = found.masked_fill(found.abs() < 0.3, 0)
    return EdgeScores(scores, graph=graph)


def by_hand(scores: ct.EdgeScores) -> dict[str, float]:
    """Every edge's score by its name, read from the tensors."""
    found = {}
    for edge in scores.graph.edges:
        tensor = dict(scores)[edge.dest.module_name]
        tensor = tensor if edge.seq_idx is None else tensor[edge.seq_idx]
        tensor = tensor if edge.dest.head is None else tensor[edge.dest.slot]
        found[str(edge)] = float(tensor[edge.src.idx])
    return found


@pytest.mark.parametrize("seq_len", [None, 3])
def test_an_edges_score_by_its_name(seq_len: int | None) -> None:
    scores = random_scores(seq_len)
    for name, value in by_hand(scores).items():
        assert scores[name] == value
    for edge in scores.graph.edges[:5]:
        assert scores[edge] == by_hand(scores)[str(edge)]
    assert scores["blocks.0.hook_q_input"] is dict(scores)["blocks.0.hook_q_input"]
    if seq_len:
        every = scores["A0.1->A1.2.Q"]
        assert every.tolist() == [scores[at, "A0.1->A1.2.Q"] for at in range(seq_len)]
    with pytest.raises(ct.EdgeError, match=r"Unknown destination 'A9\.9\.Q'"):
        scores["A0.1->A9.9.Q"]
    with pytest.raises(KeyError):
        scores["blocks.9.hook_q_input"]


@pytest.mark.parametrize("seq_len", [None, 3])
def test_tables_of_scores(seq_len: int | None) -> None:
    scores, known = random_scores(seq_len), by_hand(random_scores(seq_len))
    table = scores.table()
    positions = [""] * len(table) if seq_len is None else [f" @{at}" for at in table["seq_idx"]]
    named = [edge + at for edge, at in zip(table["edge"], positions, strict=True)]
    expected = {name: value for name, value in known.items() if value != 0}
    assert dict(zip(named, table["score"], strict=True)) == pytest.approx(expected)
    assert len(scores.table("*->*")) == len(known)
    strongest = sorted(known.values(), key=abs, reverse=True)[:7]
    assert scores.top(7)["score"].tolist() == pytest.approx(strongest)
    kept = scores.above(1.0)
    assert by_hand(kept) == {n: v if abs(v) >= 1 else 0.0 for n, v in known.items()}
    for wrong in (-1, "much", float("nan")):
        with pytest.raises(ct.InputError, match="threshold must be a number, 0 or more"):
            scores.above(wrong)


def test_a_circuit_of_scores_is_that_of_the_function() -> None:
    scores = random_scores(3)
    for options in ({"n_edges": 20}, {"n_edges": 12, "method": "greedy"}, {"fraction": 0.2}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mine, functions = scores.circuit(**options), ct.circuit({**scores}, **options)
        assert all(torch.equal(mine[name], functions[name]) for name in scores)
        assert type(mine) is ct.Circuit


def test_what_differs_between_scores() -> None:
    one, two = random_scores(None, 0), random_scores(None, 1)
    table = one.diff({**two}).table("*->*")
    first, second = by_hand(one), by_hand(two)
    assert table["change"].tolist() == pytest.approx([second[e] - first[e] for e in table["edge"]])
    largest = max(first, key=lambda name: abs(second[name] - first[name]))
    assert one.diff(two).top(1)["edge"].tolist() == [largest]
    words = " ".join(note.text for note in one.diff(two).draw().layout.annotations)
    assert "before→after" in words
    with pytest.raises(ct.MaskError):
        one.diff(random_scores(3))


@pytest.mark.parametrize("seq_len", [None, 3])
def test_scores_are_kept_in_a_file(seq_len: int | None, tmp_path: Path) -> None:
    scores = random_scores(seq_len)
    for name in ("a.pt", "b.graphml") if seq_len is None else ("a.pt",):
        scores.save(tmp_path / name)
        read = EdgeScores.load(tmp_path / name)
        assert type(read) is EdgeScores
        assert by_hand(read) == pytest.approx(by_hand(scores))
        assert read.graph.is_like(scores.graph)


def test_scores_that_do_not_say_their_graph() -> None:
    scores = EdgeScores({"mine": torch.ones(2)})
    with pytest.raises(ct.FormatError, match="do not say what model they are for"):
        scores.top(3)
    assert torch.equal(scores["mine"], torch.ones(2))


def test_the_picture_needs_no_model() -> None:
    scores = random_scores(None)
    expected = ct.draw_seq_graph(scores.graph, {**scores}, display_ipython=False)
    assert scores.draw().data == expected.data


def test_edges_are_asked_for_alike_everywhere() -> None:
    scores = random_scores(None)
    edge = "A0.1->A1.2.Q"
    assert scores.get(edge) == scores[edge]
    assert scores.get("A0.1->A9.9.Q", 7.0) == scores.get("nowhere", 7.0) == 7.0
    assert edge in scores
    assert "A0.1->A9.9.Q" not in scores
    assert "blocks.0.hook_q_input" in scores
    with pytest.raises(ct.InputError, match="cannot be set by its name"):
        scores[edge] = torch.tensor(1.0)
    with pytest.raises(ct.InputError, match="model must be a wrapped model"):
        EdgeScores({}, graph="gpt2")  # pyright: ignore


def test_copies_of_a_circuit_hold_what_it_holds() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        circuit = random_scores(None).circuit(n_edges=10)
    circuit["blocks.1.hook_resid_post"][:] = 1
    held = by_hand(circuit)
    for one in (
        copy(circuit),
        circuit.copy(),
        deepcopy(circuit),
        pickle.loads(pickle.dumps(circuit)),
    ):
        assert type(one) is ct.Circuit
        assert by_hand(one) == held
        assert one.n_edges == circuit.n_edges == sum(held.values())


def test_a_circuit_is_called_by_all_of_its_edges() -> None:
    circuit = random_scores(None).circuit(n_edges=20, method="greedy")
    words = " ".join(note.text for note in circuit.draw(max_edges=5).layout.annotations)
    assert "A circuit of 20 edges." in words
    mixed = {n: s.new_full(s.shape, 0.5) for n, s in circuit.items()}
    mixed["blocks.1.hook_resid_post"][:3] = 1
    figure = ct.draw_seq_graph(
        random_scores(None).graph, mixed, score_threshold=0.9, display_ipython=False
    )
    words = " ".join(note.text for note in figure.layout.annotations)
    assert "A circuit of" not in words
    assert "in the circuit" not in words
