"""Which heads a user means."""

from __future__ import annotations

from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.plan import head_names, make_plan
from tests.anatomy.toy import ToyModel, anatomy
from tests.models import N_HEADS, TYPICAL, wrapped

MODEL = wrapped(TYPICAL[-1])
LAYER_1 = [f"A1.{head}" for head in range(N_HEADS)]
LAYER_0 = [f"A0.{head}" for head in range(N_HEADS)]

MEANT: dict[str, tuple[Any, list[str]]] = {
    "a name": ("A1.2", ["A1.2"]),
    "a node": (MODEL.graph.src_by_name["A1.2"], ["A1.2"]),
    "all": ("*", LAYER_0 + LAYER_1),
    "a layer": ("A1.*", LAYER_1),
    "a choice": ("A[01].3", ["A0.3", "A1.3"]),
    "several, twice and in another order": (["A1.2", "A0.1", "A1.[12]"], ["A0.1", "A1.1", "A1.2"]),
    "as EAP-IG writes it": ("a1.h*", ["A1.0", "A1.1", "A1.2", "A1.3"]),
    "a generator": ((name for name in ("A0.1", "A1.2")), ["A0.1", "A1.2"]),
    "none": ([], []),
}


@pytest.mark.parametrize("what", MEANT)
def test_heads_come_once_and_in_the_graphs_order(what: str) -> None:
    asked, expected = MEANT[what]
    assert list(head_names(MODEL.graph, asked)) == expected


NEAR = "Did you mean 'A1.3' or 'A1.2' or 'A1.1'? The heads run from 'A0.0' to 'A1.3'."
WRONG: dict[str, tuple[Any, str]] = {
    "no such head": ("A1.9", f"No head is called 'A1.9'. {NEAR}"),
    "one of several": (["A0.1", "A1.9"], f"No head is called 'A1.9'. {NEAR}"),
    "matches none": ("A7.*", "No head is called 'A7.*'. Did you mean 'A1.3' or 'A1.2' or 'A1.1'?"),
    "another node": ("MLP 0", "No head is called 'MLP 0'. The heads run from 'A0.0' to 'A1.3'."),
    "an input": ("A1.2.Q", "No head is called 'A1.2.Q'. Did you mean 'A1.2'"),
    "small letters": ("a1.2", "No head is called 'a1.2'. Did you mean 'A1.2'"),
    "a number": (5, "Cannot read 5 as heads: expected names such as 'A0.1' or patterns such as"),
    "numbers": ([5], "Cannot read 5 as heads: expected names such as 'A0.1' or patterns such as"),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_head_is_refused(what: str) -> None:
    asked, message = WRONG[what]
    with pytest.raises(ct.EdgeError) as caught:
        make_plan(MODEL.graph, None, None, None, heads=asked)
    assert str(caught.value).startswith(message)
    with pytest.raises(ct.EdgeError):
        MODEL.patch(heads=asked)


def test_a_graph_without_heads() -> None:
    toy = ToyModel(0)
    model = ct.wrap(toy, anatomy=anatomy(toy), verify=False)
    with pytest.raises(
        ct.EdgeError, match=r"No head is called '\*': this model's graph has no heads"
    ):
        model.patch(heads="*")


def test_what_is_left_of_a_plan_keeps_its_heads() -> None:
    outer = make_plan(MODEL.graph, None, None, None, heads="A1.2")
    inner = make_plan(MODEL.graph, None, None, None, heads="A0.1")
    assert outer.without(inner).heads == ("A1.2",)
