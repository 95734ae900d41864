"""Every way to write an edge means the edge it says, and every other is refused."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import circuit_trace as ct
from tests.families.models import tokens
from tests.models import shared, wrapped

PLAIN = ct.wrap(shared("hooked LN"), verify=False).graph
THREE = ct.wrap(shared("hooked LN"), seq_len=3, verify=False).graph

ONE_EDGE: dict[str, list[Any]] = {
    "A0.2->A1.1.Q": [
        "A0.2 -> A1.1.Q",
        "  A0.2->A1.1.Q ",
        ("A0.2", "A1.1.Q"),
        "a0.h2->a1.h1<q>",
        "a0.h2->a1.h1.q",
        ("a0.h2", "a1.h1.q"),
        "A0.2->a1.h1<q>",
    ],
    "Resid Start->MLP 1": ["input->m1", ("input", "MLP 1"), "Resid Start->m1"],
    "MLP 1->Resid End": ["m1->logits", "MLP 1->logits"],
    "A1.3->Resid End": ["a1.h3->logits"],
}


@pytest.mark.parametrize(
    ("name", "spec"), [(name, spec) for name, specs in ONE_EDGE.items() for spec in specs]
)
def test_an_edge_in_other_words(name: str, spec: Any) -> None:
    assert str(PLAIN.edge(spec)) == name
    assert list(PLAIN.numbers(spec)) == list(PLAIN.numbers(name))


@pytest.mark.parametrize("spec", ["A0.2->A1.1.Q @2", "A0.2->A1.1.Q@2", "a0.h2->a1.h1<q> @ 2"])
def test_a_position_behind_an_at(spec: str) -> None:
    edge = THREE.edge("A0.2->A1.1.Q", 2)
    assert THREE.edge(spec) == THREE.edge((2, spec)) == THREE.edge(spec, 2) == edge
    assert list(THREE.numbers(spec)) == [THREE.number(edge)]


def test_an_edge_is_read_back_from_what_it_is_printed_as() -> None:
    for edge in THREE.edges:
        assert THREE.edge(str(edge)) == edge


GLOBS = {
    "A0.*->MLP *": ("A0.*", "MLP *"),
    "A?.1 -> A1.[0-2].[QK]": ("A?.1", "A1.[0-2].[QK]"),
    "*->*": ("*", "*"),
    "*->Resid End": ("*", "Resid End"),
    "MLP 0->*": ("MLP 0", "*"),
    "a0.h*->a1.h*<q>": ("A0.*", "A1.*.Q"),
    "a*.h1->m*": ("A*.1", "MLP *"),
}


@pytest.mark.parametrize("glob", GLOBS)
@pytest.mark.parametrize("seq_idx", [None, 1])
def test_a_glob_means_every_edge_that_matches(glob: str, seq_idx: int | None) -> None:
    src, dest = GLOBS[glob]
    spec = glob if seq_idx is None else f"{glob} @{seq_idx}"
    expected = {
        str(edge)
        for edge in THREE.edges
        if fnmatchcase(edge.src.name, src)
        and fnmatchcase(edge.dest.name, dest)
        and seq_idx in (None, edge.seq_idx)
    }
    found = [str(THREE.edge_at(number)) for number in THREE.numbers(spec)]
    assert found
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize(
    ("node", "names"),
    [
        ("A1.2", {"A1.2.Q", "A1.2.K", "A1.2.V"}),
        ("A1.2.*", {"A1.2.Q", "A1.2.K", "A1.2.V"}),
        ("a1.h2<k>", {"A1.2.K"}),
        ("MLP 1", {"MLP 1"}),
        ("logits", {"Resid End"}),
    ],
)
def test_edges_into(node: str, names: set[str]) -> None:
    found = [PLAIN.edge_at(number) for number in PLAIN.numbers_into(node)]
    assert {edge.dest.name for edge in found} == names
    assert len(found) == sum(edge.dest.name in names for edge in PLAIN.edges)


def test_edges_from_a_glob() -> None:
    found = {str(PLAIN.edge_at(number)) for number in PLAIN.numbers_from("A0.*")}
    assert found == {str(edge) for edge in PLAIN.edges if edge.src.name.startswith("A0.")}


def test_the_mask_of_an_edge_is_that_of_what_names_it_most_closely() -> None:
    model = wrapped("hooked LN", 6)
    edges: dict[Any, float] = {
        "A0.1->MLP * @2": 0.2,
        "A0.*->MLP *": 0.1,
        "A0.1->MLP 0": 0.3,
        "A0.1->MLP 0 @4": 0.4,
    }
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=edges)
    masks = {
        ("A0.1->MLP 1", 2): 0.2,
        ("A0.1->MLP 1", 3): 0.1,
        ("A0.2->MLP 0", 2): 0.1,
        ("A0.1->MLP 0", 2): 0.3,
        ("A0.1->MLP 0", 4): 0.4,
        ("A1.1->MLP 1", 2): 0.0,
    }
    for (name, seq_idx), mask in masks.items():
        assert trace.edge(name, seq_idx).mask == pytest.approx(mask), (name, seq_idx)


def test_one_pair_alone_is_one_edge() -> None:
    trace = wrapped("hooked LN", 6).trace(
        tokens(1), corrupt=tokens(2), edges=(2, "A0.1->MLP 1"), nodes=(1, "MLP 0")
    )
    assert {edge.seq_idx for edge in trace.edges if edge.src.name == "A0.1"} == {2}
    assert {edge.seq_idx for edge in trace.edges if edge.src.name == "MLP 0"} == {1}


BAD: dict[Any, str] = {
    "B*->MLP 1": "No source matches 'B*' in the edge 'B*->MLP 1'. The sources run from 'Resid Start' to "
    "'MLP 1'.",
    "A0.*->C*": "No destination matches 'C*' in the edge 'A0.*->C*'. The destinations run from 'A0.0.Q' "
    "to 'Resid End'.",
    "A1.*->MLP 0": "No edge matches 'A1.*->MLP 0': every source that does writes after every destination "
    "that does has read.",
    "A0.1->MLP 1 @x": "Cannot read the position of the edge 'A0.1->MLP 1 @x': expected a whole number "
    "behind the @, as in '… @3'.",
    "A0.1@1->MLP 1@1": "Cannot read the position of the edge 'A0.1@1->MLP 1@1': expected a whole number "
    "behind the @, as in '… @3'.",
    (1, "A0.1->MLP 1 @2"): "The edge (1, 'A0.1->MLP 1 @2') names two positions, 1 and 2.",
    "A0.1->MLP 1 @7": "Position 7 of the edge 'A0.1->MLP 1' is outside the sequence: the model was "
    "wrapped with seq_len=3, so positions run from 0 to 2.",
    "a0.h9->m1": "Unknown source 'a0.h9' in the edge 'a0.h9->m1'. Did you mean 'A0.3' or 'A0.2' or "
    "'A0.1'? The sources run from 'Resid Start' to 'MLP 1'.",
    "A0.*->MLP 1 @7": "Position 7 of the edge 'A0.*->MLP 1' is outside the sequence: the model was "
    "wrapped with seq_len=3, so positions run from 0 to 2.",
}


@pytest.mark.parametrize("spec", BAD)
def test_what_is_no_edge_is_refused_in_one_style(spec: Any) -> None:
    with pytest.raises(ct.EdgeError) as caught:
        THREE.numbers(spec)
    assert str(caught.value) == BAD[spec]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: PLAIN.edge("A0.*->MLP 1"),
            "'A0.*->MLP 1' may mean several edges, and one is needed",
        ),
        (lambda: THREE.edge("A0.1->MLP 1 @1", 2), "names two positions, 1 and 2"),
        (lambda: PLAIN.numbers_into("A0.1->MLP 1"), "Unknown destination"),
        (lambda: PLAIN.numbers_into(3), "Cannot read 3 as a node: expected a destination's name"),
        (lambda: PLAIN.numbers_from("B*"), "No source matches 'B*'. The sources run"),
        (lambda: PLAIN.numbers("A0.1->MLP 1 @1"), "was asked for at position 1, but the model was"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_other_errors(ask: Any, message: str) -> None:
    with pytest.raises(ct.EdgeError) as caught:
        ask()
    assert message in str(caught.value)


PIECES = [*"Aa01.h*?[]@!- \n", "->", "MLP ", "m", "<q>", ".Q", "input", "logits", "9" * 30]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_is_an_edge_or_an_edge_error(text: str) -> None:
    try:
        numbers = THREE.numbers(text)
    except ct.EdgeError as error:
        assert str(error)  # noqa: PT017
    else:
        assert 0 <= min(numbers) <= max(numbers) < THREE.n_edges
