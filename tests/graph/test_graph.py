"""Nodes and edges by name and number: how many, in which order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import circuit_trace as ct
from tests.models import CASES, hooked, hooked_config, shape_of, shared

GPT2 = {"n_layers": 12, "n_heads": 12}
COUNTS = {
    "GPT-2 shape": (GPT2, {}, 157, 445, 32_491),
    "GPT-2 shape, unsplit": (GPT2, {"separate_qkv": False}, 157, 157, 11_611),
    "GPT-2 shape, 64 positions": (GPT2, {"seq_len": 64}, 157, 445, 2_079_424),
    "GPT-2-medium shape": ({"n_layers": 24, "n_heads": 16}, {}, 409, 1177, 231_877),
    "GPT-2-XL shape": ({"n_layers": 48, "n_heads": 25}, {}, 1249, 3649, 2_235_025),
    "Pythia-410m shape": (
        {"n_layers": 24, "n_heads": 16, "parallel_attn_mlp": True},
        {},
        409,
        1177,
        231_493,
    ),
    "2 layers of 2 heads": ({"n_layers": 2, "n_heads": 2}, {}, 7, 15, 46),
    "attention-only, 2 layers of 8 heads": (
        {"n_layers": 2, "n_heads": 8, "attn_only": True},
        {},
        17,
        49,
        257,
    ),
    # Layers see 1, 6 sources; 4 queries and 2 + 2 keys and values a layer; MLPs see 5, 10; end 11.
    "key-value groups, 2 layers of 4 heads on 2": (
        {"n_layers": 2, "n_heads": 4, "n_key_value_heads": 2},
        {},
        11,
        19,
        8 * 1 + 5 + 8 * 6 + 10 + 11,
    ),
}


def narrow(**shape: Any) -> Any:
    """A model of that many layers and heads, as narrow as can be."""
    return hooked(d_model=2, d_head=1, d_mlp=1, d_vocab=3, **shape)


@pytest.mark.parametrize("what", COUNTS)
def test_counts(what: str) -> None:
    shape, options, n_srcs, n_dests, n_edges = COUNTS[what]
    model = ct.wrap(narrow(**shape), verify=False, **options)
    assert (len(model.srcs), len(model.dests), model.n_edges) == (n_srcs, n_dests, n_edges)
    assert len(model.edges) == n_edges
    assert len(model.nodes) == n_srcs + n_dests


def graph_of(name: str, **options: Any) -> ct.PatchableModel:
    return ct.wrap(shared(name), verify=False, **options)


@pytest.mark.parametrize("seq_len", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_nodes_edges_and_score_shapes_are_in_auto_circuits_order(
    name: str, seq_len: int | None
) -> None:
    model, shape = graph_of(name, seq_len=seq_len), shape_of(name, seq_len=seq_len)
    assert [src.name for src in model.srcs] == shape.sources
    assert [dest.name for dest in model.dests] == shape.dests
    got = [(edge.seq_idx, edge.src.name, edge.dest.name) for edge in model.edges]
    assert got == shape.edges()
    scores = shape.prune_scores([])
    lead = () if seq_len is None else (seq_len,)
    assert {m.name: (*lead, *m.shape) for m in model.graph.modules} == {
        key: tuple(score.shape) for key, score in scores.items()
    }


def test_unsplit_heads_have_one_destination_each() -> None:
    model = graph_of("hooked LN", separate_qkv=False)
    shape = shape_of("hooked LN", separate_qkv=False)
    assert [edge.name for edge in model.edges] == [f"{s}->{d}" for _, s, d in shape.edges()]
    assert [m.name for m in model.graph.modules][:2] == [
        "blocks.0.hook_attn_in",
        "blocks.0.hook_mlp_in",
    ]


def test_the_scores_of_gpt_2_have_the_shapes_that_auto_circuit_writes() -> None:
    model = ct.wrap(narrow(**GPT2), verify=False)
    shapes = {module.name: module.shape for module in model.graph.modules}
    assert shapes["blocks.0.hook_q_input"] == (12, 1)
    assert shapes["blocks.0.hook_k_input"] == shapes["blocks.0.hook_v_input"] == (12, 1)
    assert shapes["blocks.0.hook_mlp_in"] == (13,)
    assert shapes["blocks.11.hook_resid_post"] == (157,)
    assert model.edge("MLP 2->A5.2.Q").dest.module_name == "blocks.5.hook_q_input"


@pytest.mark.parametrize("seq_len", [None, 3])
def test_numbers_and_edges_are_each_others_inverse(seq_len: int | None) -> None:
    graph = graph_of("hooked grouped", seq_len=seq_len).graph
    assert [graph.number(graph.edge_at(number)) for number in range(graph.n_edges)] == list(
        range(graph.n_edges)
    )


def test_nodes_say_where_they_are() -> None:
    model = graph_of("hooked LN", seq_len=3)
    edge = model.edge("A0.2->A1.3.K", 1)
    assert (edge.src.layer, edge.src.head, edge.src.kind, edge.src.unit) == (
        0,
        2,
        "attention",
        "A0.2",
    )
    assert (edge.dest.layer, edge.dest.head, edge.dest.kind, edge.dest.unit) == (
        1,
        3,
        "attention",
        "A1.3",
    )
    assert (str(edge.src), str(edge.dest), str(edge)) == ("A0.2", "A1.3.K", "A0.2->A1.3.K @1")
    start, end = model.srcs[0], model.dests[-1]
    assert (start.layer, start.head, start.kind, start.depth) == (None, None, "embed", 0)
    assert (end.layer, end.head, end.kind) == (None, None, "output")
    depths = [node.depth for node in model.dests]
    assert depths == sorted(depths)


@pytest.mark.parametrize(
    ("name", "seq_idx"),
    [("A0.2->A1.3.K", None), (" A0.2 -> A1.3.K ", None), ("Resid Start->Resid End", None)],
)
def test_an_edge_is_found_by_name(name: str, seq_idx: int | None) -> None:
    edge = graph_of("hooked LN").edge(name, seq_idx)
    assert edge.name == "->".join(part.strip() for part in name.split("->"))
    assert edge == ct.Edge(edge.src, edge.dest, None)


UNKNOWN_NODES = {
    # misspelt: the nearest names
    "A0.9->A1.3.Q": ("source", "A0.9", " Did you mean 'A0.3' or 'A0.2' or 'A0.1'?"),
    "MLP0->Resid End": ("source", "MLP0", " Did you mean 'MLP 0' or 'MLP 1'?"),
    "a0.1->A1.3.Q": ("source", "a0.1", " Did you mean 'A0.1' or 'A1.1' or 'A0.3'?"),
    "A0.1->Resid Ends": ("destination", "Resid Ends", " Did you mean 'Resid End'?"),
    "A0.1->A1.3": (
        "destination",
        "A1.3",
        " 'A1.3' can only be a source. Did you mean 'A1.3.V' or 'A1.3.Q' or 'A1.3.K'?",
    ),
    # nothing near
    "xyz->Resid End": ("source", "xyz", ""),
    # the wrong way round
    "Resid End->A0.1": (
        "source",
        "Resid End",
        " 'Resid End' can only be a destination. Did you mean 'Resid Start'?",
    ),
    "A0.1->Resid Start": (
        "destination",
        "Resid Start",
        " 'Resid Start' can only be a source. Did you mean 'Resid End'?",
    ),
    "A1.2.Q->A0.1": (
        "source",
        "A1.2.Q",
        " 'A1.2.Q' can only be a destination. Did you mean 'A1.2' or 'A1.3' or 'A1.1'?",
    ),
}

RANGES = {
    "source": "The sources run from 'Resid Start' to 'MLP 1'.",
    "destination": "The destinations run from 'A0.0.Q' to 'Resid End'.",
}

LAST_SOURCES = {
    "A1.0->A0.1.Q": "Resid Start",
    "A1.0->A1.1.V": "MLP 0",
    "MLP 0->MLP 0": "A0.3",
    "MLP 1->A1.0.Q": "MLP 0",
}
"""Edges backward or within a layer, and the last source that their destination does read."""

MALFORMED = [
    "A0.1",
    "",
    "->",
    "A0.1->",
    "->Resid End",
    "A0.1->A1.0.Q->Resid End",
    "A0.1 → Resid End",
]

BAD_NAMES = {
    **{
        name: f"Unknown {role} {node!r} in the edge {name!r}.{hint} {RANGES[role]}"
        for name, (role, node, hint) in UNKNOWN_NODES.items()
    },
    **{
        name: "There is no edge {0!r}: {1} does not write before {2} reads. The last source that {2} "
        "reads is {3}.".format(name, *name.split("->"), last)
        for name, last in LAST_SOURCES.items()
    },
    **{
        name: f"Cannot read the edge {name!r}: expected 'source->destination', for example "
        "'Resid Start->Resid End'."
        for name in MALFORMED
    },
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_edge(name: str) -> None:
    model = graph_of("hooked LN")
    for ask in (model.edge, model.graph.numbers):
        with pytest.raises(ct.EdgeError) as caught:
            ask(name)
        assert str(caught.value) == BAD_NAMES[name]


def test_a_parallel_mlp_does_not_read_its_layers_heads() -> None:
    model = graph_of("hooked parallel")
    with pytest.raises(ct.EdgeError) as caught:
        model.edge("A1.0->MLP 1")
    assert str(caught.value) == (
        "There is no edge 'A1.0->MLP 1': A1.0 does not write before MLP 1 reads. The last source "
        "that MLP 1 reads is MLP 0."
    )


@pytest.mark.parametrize("seq_idx", [-1, 3, 100])
def test_a_position_outside_the_sequence(seq_idx: int) -> None:
    model = graph_of("hooked LN", seq_len=3)
    for ask in (
        lambda: model.edge("A0.1->Resid End", seq_idx),
        lambda: model.graph.numbers((seq_idx, "A0.1->Resid End")),
        lambda: model.graph.numbers(ct.Edge(model.srcs[2], model.dests[-1], seq_idx)),
    ):
        with pytest.raises(ct.EdgeError) as caught:
            ask()
        assert str(caught.value) == (
            f"Position {seq_idx} of the edge 'A0.1->Resid End' is outside the sequence: the model was "
            "wrapped with seq_len=3, so positions run from 0 to 2."
        )


def test_a_position_where_positions_are_not_told_apart() -> None:
    with pytest.raises(ct.EdgeError) as caught:
        graph_of("hooked LN").edge("A0.1->Resid End", 2)
    assert str(caught.value) == (
        "The edge 'A0.1->Resid End' was asked for at position 2, but the model was wrapped without "
        "positions. Wrap it with seq_len=<number of tokens> to tell them apart."
    )


@pytest.mark.parametrize(
    "spec",
    [5, None, 1.5, ("A0.1->Resid End", 2), (1, 2, 3), (True, "A0.1->Resid End"), b"A0.1", ()],
)
@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_name_an_edge(spec: object) -> None:
    with pytest.raises(ct.EdgeError) as caught:
        graph_of("hooked LN", seq_len=3).graph.numbers(spec)
    assert str(caught.value) == (
        f"Cannot read {spec!r} as an edge: expected a name such as 'Resid Start->Resid End', a pair "
        "(seq_idx, name), or an Edge."
    )


@pytest.mark.parametrize("name", [None, 5, ("A0.1", 5), ("A0.1->A1.0.Q", "Resid End")])
@pytest.mark.usefixtures("as_a_user")
def test_an_edge_is_not_looked_up_by_what_is_no_name(name: object) -> None:
    with pytest.raises(ct.EdgeError) as caught:
        graph_of("hooked LN").edge(name)
    assert repr(name) in str(caught.value)


def test_the_configuration_is_the_models() -> None:
    model = graph_of("hooked LN")
    assert model.cfg is shared("hooked LN").cfg
    assert model.cfg.d_vocab == hooked_config().d_vocab
