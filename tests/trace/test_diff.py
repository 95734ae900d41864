"""The difference of two passes against their tensors, edge by edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

import circuit_trace as ct
from tests.models import TYPICAL, hooked, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT, OTHER = (tokens(seed, seq=SEQ) for seed in (1, 2, 3))
EDGES = {"A0.1->A1.2.Q": 1.0, "A0.3->MLP 1": 0.5, "MLP 0->Resid End": 0.0}
MORE = {"A0.1->A1.2.Q": 0.25, "A0.2->MLP 1": 1.0, "A1.*->Resid End": -0.5}

PAIRS: dict[str, Callable[[ct.PatchableModel], tuple[ct.Trace, ct.Trace]]] = {
    "other edges": lambda m: (
        m.trace(CLEAN, corrupt=CORRUPT, edges=EDGES),
        m.trace(CLEAN, corrupt=CORRUPT, edges=MORE),
    ),
    "another ablation": lambda m: (
        m.trace(CLEAN, corrupt=CORRUPT, edges=EDGES),
        m.trace(CLEAN, edges=EDGES, ablation=ct.AblationType.ZERO),
    ),
    "other prompts": lambda m: (
        m.trace(CLEAN, corrupt=CORRUPT, edges=EDGES),
        m.trace(OTHER, corrupt=CLEAN, edges=EDGES),
    ),
    "nothing patched in one": lambda m: (
        m.trace(CLEAN),
        m.trace(CLEAN, corrupt=CORRUPT, edges=MORE),
    ),
}


def norm(tensor: torch.Tensor, row: pd.Series) -> float:
    return float(tensor[row["at"]].norm())


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", TYPICAL)
def test_every_number(name: str, pair: str, seq_len: int | None) -> None:
    first, second = PAIRS[pair](wrapped(name, seq_len))
    table = first.diff(second).table("*->*", batch_idx=1)
    assert len(table) == first.graph.n_edges
    for _, row in table.sample(40, random_state=0).iterrows():
        at = None if row["seq_idx"] is pd.NA else row["seq_idx"]
        one, other = (trace.edge(row["edge"], at) for trace in (first, second))
        change = (other.received - one.received)[1].norm(dim=-1)
        if at is None:
            # Where it changes most: the first position only if nothing changes elsewhere.
            largest = change[1:].max() if change[1:].any() else change.max()
            assert change[row["at"]] == pytest.approx(float(largest), rel=1e-4)
        else:
            assert row["at"] == at
        expected = {
            "mask": one.mask,
            "other_mask": other.mask,
            "current_norm": norm(one.current[1], row),
            "other_current_norm": norm(other.current[1], row),
            "received_norm": norm(one.received[1], row),
            "other_received_norm": norm(other.received[1], row),
            "current_change": norm((other.current - one.current)[1], row),
            "received_change": norm((other.received - one.received)[1], row),
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, rel=1e-4, abs=1e-5), (row["edge"], column)


def test_a_pass_does_not_differ_from_itself() -> None:
    model = wrapped("hooked LN", SEQ)
    again = [model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES) for _ in range(2)]
    table = again[0].diff(again[1]).table("*->*")
    assert (table["current_change"] == 0).all()
    assert (table["received_change"] == 0).all()
    assert len(again[0].diff(again[1]).table()) == len(again[0].edges)


def test_means_over_the_batch() -> None:
    diff = wrapped("hooked LN").trace(CLEAN).diff(wrapped("hooked LN").trace(OTHER))
    mean = diff.table(batch_idx="mean", at="last")
    each = [diff.table(batch_idx=b, at="last") for b in range(2)]
    for column in ("current_change", "received_norm", "other_current_norm"):
        expected = (each[0][column] + each[1][column]) / 2
        assert mean[column].tolist() == pytest.approx(expected.tolist(), rel=1e-5), column


def test_the_edges_of_both_are_listed_and_the_most_changed_first() -> None:
    model = wrapped("hooked LN")
    first = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"])
    second = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.3->MLP 1"])
    diff = first.diff(second)
    assert diff.table()["edge"].tolist() == ["A0.1->A1.2.Q", "A0.3->MLP 1"]
    top = diff.top(5)["received_change"].tolist()
    every = diff.table("*->*")["received_change"].tolist()
    assert top == sorted(every, reverse=True)[:5]
    assert repr(diff).startswith("<TraceDiff: 2 edges of <Trace: batch 2, seq 6")


def test_tokens_of_both() -> None:
    model = ct.wrap(ct.load_model("bundled"), seq_len=5)
    diff = model.trace("When Mary and John").diff(model.trace("When John and Mary"))
    row = diff.table("Resid Start->MLP 0 @2").iloc[0]
    assert (row["token"].strip(), row["other_token"].strip()) == ("Mary", "John")


def test_it_draws() -> None:
    model = wrapped("hooked LN")
    first = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"])
    second = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.3->MLP 1"])
    figure = first.diff(second).draw()
    assert figure == ct.draw_difference(first, second)
    said = {label.split("<br>")[0] for label in figure.data[0].link.label}  # pyright: ignore[reportAttributeAccessIssue]
    assert said == {"A0.1->A1.2.Q", "A0.3->MLP 1"}


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "not a trace": (lambda: wrapped("hooked LN").trace(CLEAN).diff({}), "another trace; got dict"),
    "another model": (
        lambda: (
            wrapped("hooked LN").trace(CLEAN).diff(wrapped("hooked attention-only").trace(CLEAN))
        ),
        "of different models: 38 nodes and 34",
    ),
    "other positions": (
        lambda: wrapped("hooked LN").trace(CLEAN).diff(wrapped("hooked LN", SEQ).trace(CLEAN)),
        "wrapped with seq_len=None and 6",
    ),
    "another shape": (
        lambda: wrapped("hooked LN").trace(CLEAN).diff(wrapped("hooked LN").trace(CLEAN[:1])),
        "of one shape, [batch, seq, d_model]; got 2 × 6 × 10 and 1 × 6 × 10.",
    ),
    "another width": (
        lambda: wrapped("hooked LN").trace(CLEAN).diff(ct.wrap(hooked(d_model=12)).trace(CLEAN)),
        "of one shape, [batch, seq, d_model]; got 2 × 6 × 10 and 2 × 6 × 12.",
    ),
    "no such column": (
        lambda: (
            wrapped("hooked LN").trace(CLEAN).diff(wrapped("hooked LN").trace(CLEAN)).top(by="x")
        ),
        "by must be a column of numbers, one of mask, current_norm",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_compared(case: str) -> None:
    ask, message = BAD[case]
    with pytest.raises(ct.InputError) as caught:
        ask()
    assert message in str(caught.value)
