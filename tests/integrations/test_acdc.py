"""ACDC's files, listed here by hand after its description."""

from __future__ import annotations

from collections import OrderedDict
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

LAYERS, HEADS = 2, 3
Key = tuple[str, tuple[Any, ...], str, tuple[Any, ...]]
START = [("blocks.0.hook_resid_pre", (None,))]
TWO = [("hook_embed", (None,)), ("hook_pos_embed", (None,))]


def listing(
    start: list[Any] = START, mlp_in: str = "hook_mlp_in", attn_only: bool = False
) -> tuple[dict[Key, tuple[str, str]], list[Key]]:
    """ACDC's edges with our names of their ends, and those inside of heads and MLPs."""
    edges: dict[Key, tuple[str, str]] = {}
    inner: list[Key] = []
    stream: list[tuple[Any, str]] = [(place, "Resid Start") for place in start]

    def reads(child: tuple[str, tuple[Any, ...]], name: str) -> None:
        for parent, ours in stream:
            edges[(*child, *parent)] = (ours, name)

    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        for head in range(HEADS):
            at = (None, None, head)
            for letter in "qkv":
                reads((f"{block}hook_{letter}_input", at), f"A{layer}.{head}.{letter.upper()}")
                inner.append((f"{block}attn.hook_{letter}", at, f"{block}hook_{letter}_input", at))
                inner.append((f"{block}attn.hook_result", at, f"{block}attn.hook_{letter}", at))
        for head in range(HEADS):
            place = (f"{block}attn.hook_result", (None, None, head))
            stream.append((place, f"A{layer}.{head}"))
        if not attn_only:
            reads((f"{block}{mlp_in}", (None,)), f"MLP {layer}")
            inner.append((f"{block}hook_mlp_out", (None,), f"{block}{mlp_in}", (None,)))
            stream.append(((f"{block}hook_mlp_out", (None,)), f"MLP {layer}"))
    reads((f"blocks.{LAYERS - 1}.hook_resid_post", (None,)), "Resid End")
    return edges, inner


def their_file(path: Path, edges: dict[Key, bool], inner: list[Key]) -> Path:
    """Child before parent and the end first, as ACDC lists them."""
    found = OrderedDict(reversed([*edges.items(), *((key, True) for key in inner)]))
    return saved(found, path / "acdc.pth")


VARIANTS: dict[str, tuple[dict[str, Any], Graph]] = {
    "one embedding": ({}, PLAIN),
    "an early version": ({"mlp_in": "hook_resid_mid"}, PLAIN),
    "attention only": ({"attn_only": True}, ATTENTION),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_of_theirs(variant: str, tmp_path: Path) -> None:
    options, graph = VARIANTS[variant]
    edges, inner = listing(**options)
    assert len(edges) == graph.n_edges
    belongs = edge_scores(graph, circuit_for(graph))
    said = {key: belongs[(*ends, None)] == 1 for key, ends in edges.items()}
    file = their_file(tmp_path, said, inner)
    for model in (None, graph):
        with no_warning():
            assert edge_scores(graph, ct.load_scores(file, model)) == belongs
            assert edge_scores(graph, ct.load_scores(file, model, in_graph=True)) == belongs


def test_tokens_and_positions_apart(tmp_path: Path) -> None:
    edges, inner = listing(TWO)
    belongs = edge_scores(PLAIN, circuit_for(PLAIN))
    said = {key: belongs[(*ends, None)] == 1 for key, ends in edges.items()}
    file = their_file(tmp_path, said, inner)
    with no_warning():
        assert edge_scores(PLAIN, ct.load_scores(file)) == belongs
    both = [key for key, kept in said.items() if kept and key[2] == "hook_pos_embed"]
    said[both[0]] = False
    with warned(
        r"^ACDC tells tokens and positions of the embedding apart; 1 edges have one of them"
    ):
        found = ct.load_scores(their_file(tmp_path, said, inner))
    assert edge_scores(PLAIN, found) == belongs, "an edge with one of the two is an edge"


@pytest.mark.parametrize("kind", ["sequential", "attention only"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    graph = PLAIN if kind == "sequential" else ATTENTION
    circuit = circuit_for(graph)
    file = write(circuit, tmp_path / "acdc.pth")
    assert_same(read(file), circuit)
    assert_same(read(file, graph), circuit)


def test_what_is_written_is_all_that_acdc_lists(tmp_path: Path) -> None:
    circuit = circuit_for(PLAIN)
    written = torch.load(write(circuit, tmp_path / "acdc.pth"), weights_only=True)
    edges, inner = listing()
    assert isinstance(written, OrderedDict)
    assert written.keys() == {*edges, *inner}
    belongs = edge_scores(PLAIN, circuit)
    assert all(written[key] is (belongs[(*ends, None)] == 1) for key, ends in edges.items())
    assert all(written[key] is True for key in inner)


def test_a_file_that_lists_some_edges_needs_the_model(tmp_path: Path) -> None:
    edges, inner = listing()
    kept = dict.fromkeys(list(edges)[5:40], True)
    file = their_file(tmp_path, kept, inner)
    assert refused(file) == (
        "This ACDC file lists only some of its graph's edges, so it does not say what model it is for. "
        "Pass the model, as model=."
    )
    found = edge_scores(PLAIN, read(file, PLAIN))
    assert {ends for ends, score in found.items() if score} == {(*edges[k], None) for k in kept}


OTHERS: dict[str, tuple[Graph, str]] = {
    "more heads": (
        Shape(2, 4, 4).graph(),
        "for a model of 2 layers of 3 heads and an MLP; the model given is one of 2 layers of 4 heads",
    ),
    "parallel": (PARALLEL, "ACDC's graph has an MLP after the heads .* a parallel MLP"),
    "grouped": (GROUPED, "this model has 2 layers of 4 heads on 2 key-value heads"),
    "unsplit": (UNSPLIT, "Q, K and V not told apart"),
    "positions": (AT_2, "token positions"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models(kind: str, tmp_path: Path) -> None:
    graph, message = OTHERS[kind]
    file = write(circuit_for(PLAIN), tmp_path / "acdc.pth")
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(file, graph)
    if kind != "more heads":
        with pytest.raises(ct.FormatError, match=message):
            ct.save_scores(circuit_for(graph), tmp_path / "other.pth")


def test_scores_are_no_circuit(tmp_path: Path) -> None:
    with pytest.raises(ct.FormatError, match=r"^ACDC's format says of an edge .* Choose first:"):
        ct.save_scores(scores_for(PLAIN), tmp_path / "acdc.pth")


MLP_IN, RESULT = "blocks.0.hook_mlp_in", "blocks.0.attn.hook_result"
GOOD_KEY = (MLP_IN, (None,), RESULT, (None, None, 0))
BAD: dict[str, tuple[dict[Any, Any], str]] = {
    "present is 1": ({GOOD_KEY: 1}, r"must say True or False of .*; got 1"),
    "three parts": (
        {GOOD_KEY: True, GOOD_KEY[:3]: True},
        r"must list edges as \(child, index, parent",
    ),
    "an index of text": ({(MLP_IN, "x", RESULT, (None,)): True}, r"must list edges as"),
    "a long index": (
        {(MLP_IN, (None,), RESULT, (None, None, 2**999)): True},
        r"must list edges as",
    ),
    "a negative index": (
        {(MLP_IN, (None,), RESULT, (None, None, -1)): True},
        r"must list edges as",
    ),
    "text among edges": ({GOOD_KEY: True, "a": True}, r"must list edges as .* got 'a'"),
    "an unknown hook": (
        {(MLP_IN, (None,), "hook_x", (None,)): True},
        r"'hook_x\[None\]' is not a source",
    ),
    "a head too many": (
        {(MLP_IN, (None,), RESULT, (None, None, 7)): True},
        r"'blocks\.0\.attn\.hook_result\[None, None, 7\]' is not a source",
    ),
    "the wrong insides": (
        {(RESULT, (None, None, 0), "blocks.1.attn.hook_q", (None, None, 0)): True},
        r"is not a source",
    ),
    "twice": (
        {GOOD_KEY: True, ("blocks.0.hook_resid_mid", *GOOD_KEY[1:]): False},
        r"lists an edge twice, once present and once not",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    data, message = BAD[kind]
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(saved(data, tmp_path / "acdc.pth"), PLAIN)
