"""A graph from numbers alone is the one that wrapping finds; shapes are read off, and told in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Shape
from circuit_trace.graph.transformer import MOST_EDGES
from circuit_trace.integrations.shape import check_fits, letter
from tests.anatomy.toy import ToyModel, anatomy
from tests.graph.test_graph import COUNTS
from tests.integrations.circuits import PLAIN, SHAPE, scores_for
from tests.models import CASES, N_HEADS, shape_of, wrapped


def of_case(name: str, separate_qkv: bool = True) -> Shape:
    numbers = shape_of(name, separate_qkv=separate_qkv)
    return Shape(
        numbers.n_layers,
        numbers.n_heads,
        numbers.n_kv_heads,
        numbers.attn_only,
        numbers.parallel,
        separate_qkv,
    )


@pytest.mark.parametrize("seq_len", [None, 3])
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_very_graph_of_the_model(name: str, separate_qkv: bool, seq_len: int | None) -> None:
    if not separate_qkv and CASES[name].n_kv_heads != N_HEADS:
        pytest.skip("key-value groups cannot be left unsplit")
    model = wrapped(name, seq_len, separate_qkv)
    shape = of_case(name, separate_qkv)
    graph = shape.graph(seq_len)
    assert graph.srcs == model.srcs
    assert graph.modules == model.graph.modules
    assert graph.nodes == model.nodes
    assert graph.n_edges == model.n_edges
    assert graph.seq_len == model.seq_len
    assert Shape.of_graph(model.graph) == shape
    assert Shape.of_scores(scores_for(model.graph)) == (shape, seq_len)


@pytest.mark.parametrize("what", [what for what in COUNTS if "positions" not in what])
def test_counts_without_making_the_graph(what: str) -> None:
    numbers, options, n_srcs, n_dests, n_edges = COUNTS[what]
    shape = Shape(
        numbers["n_layers"],
        numbers["n_heads"],
        numbers.get("n_key_value_heads", numbers["n_heads"]),
        numbers.get("attn_only", False),
        numbers.get("parallel_attn_mlp", False),
        options.get("separate_qkv", True),
    )
    assert shape.n_edges == n_edges
    graph = shape.graph()
    assert (len(graph.srcs), len(graph.dests), graph.n_edges) == (n_srcs, n_dests, n_edges)


WORDS = {
    Shape(1, 1, 1): "1 layer of 1 head and an MLP",
    Shape(12, 12, 12): "12 layers of 12 heads and an MLP",
    Shape(2, 4, 2): "2 layers of 4 heads on 2 key-value heads and an MLP",
    Shape(2, 4, 4, parallel=True): "2 layers of 4 heads and a parallel MLP",
    Shape(2, 8, 8, attn_only=True): "2 layers of 8 heads and no MLP",
    Shape(2, 4, 4, separate_qkv=False): (
        "2 layers of 4 heads and an MLP, Q, K and V not told apart"
    ),
}


@pytest.mark.parametrize("shape", WORDS, ids=str)
def test_words(shape: Shape) -> None:
    assert str(shape) == WORDS[shape]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no layer": ({"n_layers": 0}, "n_layers must be a whole number from 1 to 1,000; got 0."),
    "a billion heads": (
        {"n_heads": 10**9},
        "n_heads must be a whole number from 1 to 1,000; got 1000000000.",
    ),
    "more heads than a number has bits": (
        {"n_heads": 2**9999},
        "n_heads must be a whole number from 1 to 1,000; got a number of 10000 bits.",
    ),
    "half a layer": (
        {"n_layers": 1.5},
        "n_layers must be a whole number from 1 to 1,000; got 1.5.",
    ),
    "true": ({"n_layers": True}, "n_layers must be a whole number from 1 to 1,000; got True."),
    "text": ({"n_heads": "4"}, "n_heads must be a whole number from 1 to 1,000; got '4'."),
    "a number for a truth": ({"parallel": 1}, "parallel must be true or false; got 1."),
    "uneven groups": (
        {"n_kv_heads": 3},
        "4 query heads cannot share 3 key-value heads evenly.",
    ),
    "parallel to nothing": (
        {"parallel": True, "attn_only": True},
        "A model without MLPs cannot have them parallel to its heads.",
    ),
    "unsplit groups": (
        {"n_kv_heads": 2, "separate_qkv": False},
        "Heads that are not split into Q, K and V need a key-value head each; got 2 for 4.",
    ),
    "too many edges": (
        {"n_layers": 300, "n_heads": 200, "n_kv_heads": 200},
        "A model of 300 layers of 200 heads and an MLP has 5,418,225,451 edges; at most 50,000,000 are "
        "read.",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_shapes_that_are_none(what: str) -> None:
    changed, message = BAD[what]
    with pytest.raises(ct.FormatError) as caught:
        Shape.of_numbers({"n_layers": 2, "n_heads": 4, "n_kv_heads": 4, **changed})
    assert str(caught.value) == message


@pytest.mark.parametrize("seq_len", [0, -1, 10**9])
def test_positions_that_are_too_many_or_none(seq_len: int) -> None:
    with pytest.raises(
        ct.FormatError, match=r"cannot be read at .* token positions: expected 1 to"
    ):
        SHAPE.graph(seq_len)
    assert SHAPE.graph(1).n_edges == SHAPE.n_edges <= MOST_EDGES


def test_a_graph_that_is_no_transformer_s() -> None:
    model = ct.wrap(ToyModel(), anatomy=anatomy(ToyModel()), verify=False)
    with pytest.raises(ct.FormatError, match=r"not that of a transformer of equal layers"):
        Shape.of_graph(model.graph)


LEFT_OUT = {
    "blocks.1.hook_resid_post": r"no scores at the end of the stream",
    "blocks.{}.hook_q_input": r"leave out the heads' inputs",
    "blocks.{}.hook_mlp_in": r"leave out the MLPs' inputs",
}


@pytest.mark.parametrize("key", LEFT_OUT)
def test_scores_that_do_not_say_their_shape(key: str) -> None:
    left = {key.format(layer) for layer in (0, 1)}
    kept = {name: score for name, score in scores_for(PLAIN).items() if name not in left}
    with pytest.raises(ct.FormatError, match=rf"{LEFT_OUT[key]}.*Pass it, as model="):
        Shape.of_scores(kept)


def test_scores_under_other_names_or_of_odd_dimensions() -> None:
    with pytest.raises(ct.FormatError, match=r"'layers\.0' is not a module of TransformerLens'"):
        Shape.of_scores({"layers.0": torch.ones(2)})
    scores = scores_for(PLAIN)
    scores["blocks.1.hook_resid_post"] = scores["blocks.1.hook_resid_post"][None]
    with pytest.raises(ct.FormatError, match=r"token positions in some modules only"):
        Shape.of_scores(scores)


def test_scores_of_some_layers_say_it_too() -> None:
    kept = {name: s for name, s in scores_for(PLAIN).items() if "blocks.0" not in name}
    assert Shape.of_scores(kept) == (SHAPE, None)


def test_a_file_for_another_model_is_refused_with_both_in_words() -> None:
    with pytest.raises(ct.FormatError) as caught:
        check_fits(Shape(12, 12, 12), PLAIN, "This file")
    assert str(caught.value) == (
        "This file is for a model of 12 layers of 12 heads and an MLP; the model given is one of 2 "
        "layers of 3 heads and an MLP."
    )
    with pytest.raises(ct.FormatError, match=r"has no token positions, .* seq_len=2\. Give"):
        check_fits(SHAPE, SHAPE.graph(2), "This file")
    grouped = Shape(2, 4, 2).graph()
    check_fits(Shape(2, 4, 4), grouped, "This file", grouped=True)
    with pytest.raises(ct.FormatError, match=r"4 heads on 2 key-value heads"):
        check_fits(Shape(2, 4, 4), grouped, "This file")


def test_letters() -> None:
    assert [letter(dest) for dest in Shape(1, 1, 1).graph().dests] == ["Q", "K", "V", "", ""]
    assert letter(Shape(1, 1, 1, separate_qkv=False).graph().dests[0]) == ""
