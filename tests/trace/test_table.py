"""The table of edges against numbers computed one by one."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch

import circuit_trace as ct
from tests.models import TYPICAL, copy_of, oracle, shared, tokens, wrapped
from tests.oracle import Ask

pytestmark = pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # as EDGES on purpose

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
COLUMNS = [
    "edge",
    "src",
    "dest",
    "layer",
    "head",
    "dest_layer",
    "dest_head",
    "seq_idx",
    "at",
    "token",
    "mask",
    "clean_norm",
    "current_norm",
    "patched_norm",
    "received_norm",
    "delta_norm",
    "cosine",
]
EDGES = {"A0.1->A1.2.Q": 1.0, "A0.1->Resid End": -0.5, "A0.3->MLP 1": 0.5, "MLP 0->Resid End": 0.0}


def expected_row(name: str, edge: str, batch_idx: int, at: int | None, edges: dict) -> dict:
    """Norms, and Δ and cosine of clean and received, from the oracle's activations of the same
    passes, at a position or (None) that of the largest change but the first."""
    second = oracle(name)
    source = edge.split("->")[0]
    corrupt = second.run(CORRUPT).wrote
    asks = [Ask(*edge.split("->"), None, mask) for edge, mask in edges.items()]  # pyright: ignore[reportCallIssue]
    current = second.run(CLEAN, corrupt, asks).wrote[source][batch_idx]
    clean = second.run(CLEAN).wrote[source][batch_idx]
    patched = corrupt[source][batch_idx]
    mask = edges[edge]
    received = (1 - mask) * current + mask * patched
    if at is None:
        at = 1 + int((received - clean)[1:].norm(dim=-1).argmax())
    found = {"clean": clean, "current": current, "patched": patched, "received": received}
    here = {which: vector[at] for which, vector in found.items()}
    between = torch.nn.functional.cosine_similarity(here["clean"], here["received"], dim=0)
    return {
        "at": at,
        **{f"{which}_norm": float(vector.norm()) for which, vector in here.items()},
        "delta_norm": float((here["received"] - here["clean"]).norm()),
        "cosine": float(between),
    }


@pytest.mark.parametrize("batch_idx", [0, 1])
@pytest.mark.parametrize("name", TYPICAL)
def test_norms_where_an_edge_changes_most(name: str, batch_idx: int) -> None:
    edges = {edge: mask for edge, mask in EDGES.items() if mask}  # at mask 0 all may tie at nothing
    trace = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=edges)
    table = trace.table(batch_idx=batch_idx)
    assert list(table.columns) == COLUMNS
    assert list(table["edge"]) == sorted(edges, key=list(e.name for e in trace.graph.edges).index)
    for _, row in table.iterrows():
        assert row["edge"] == f"{row['src']}->{row['dest']}"
        assert row["mask"] == edges[row["edge"]]
        assert row["seq_idx"] is pd.NA
        assert row["token"] is None
        for column, value in expected_row(name, row["edge"], batch_idx, None, edges).items():
            assert row[column] == pytest.approx(value, rel=1e-4, abs=1e-5), (row["edge"], column)


@pytest.mark.parametrize("name", TYPICAL)
def test_norms_at_positions(name: str) -> None:
    asked = {(4, "A0.1->A1.2.Q"): 1.0, (0, "A0.3->MLP 1"): 0.5, (5, "A0.3->MLP 1"): 0.25}
    trace = wrapped(name, SEQ).trace(CLEAN, corrupt=CORRUPT, edges=asked)
    table = trace.table(batch_idx=1)
    got = list(zip(table["seq_idx"], table["edge"], table["mask"], strict=True))
    assert got == [(0, "A0.3->MLP 1", 0.5), (4, "A0.1->A1.2.Q", 1.0), (5, "A0.3->MLP 1", 0.25)]
    assert table["at"].tolist() == table["seq_idx"].tolist()
    for _, row in table.iterrows():
        # The sources stand before every patched destination: nothing patched changes them.
        edges = {row["edge"]: row["mask"]}  # pyright: ignore[reportUnhashable]
        for column, value in expected_row(name, row["edge"], 1, row["seq_idx"], edges).items():
            assert row[column] == pytest.approx(value, rel=1e-4), (row["edge"], column)


def test_column_types() -> None:
    table = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES).table()
    assert table["seq_idx"].dtype == pd.Int64Dtype()
    for column in COLUMNS[10:]:
        assert table[column].dtype.kind == "f", column
    assert isinstance(table.index, pd.RangeIndex)


def test_without_patched_edges_every_edge_has_a_row() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    table = trace.table()
    assert list(table["edge"]) == [edge.name for edge in trace.graph.edges]
    assert (table["mask"] == 0).all()
    assert (table["current_norm"] > 0).all()
    assert table[["patched_norm", "delta_norm", "cosine"]].isna().all(axis=None)


def test_recorded_with_what_would_be_patched_in() -> None:
    table = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT).table()
    assert len(table) == 110
    assert (table["mask"] == 0).all()
    assert table[["patched_norm", "delta_norm", "cosine"]].notna().all(axis=None)
    assert table["cosine"].between(-1, 1).all()


def test_every_edge_of_every_position() -> None:
    model = wrapped("hooked LN", SEQ)
    table = model.trace(CLEAN, corrupt=CORRUPT).table()
    assert len(table) == model.n_edges
    assert list(table["seq_idx"]) == [edge.seq_idx for edge in model.edges]
    whole = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT).table().set_index("edge")
    largest = table[table["at"] > 0].groupby("edge")["delta_norm"].max()
    for edge in ("A0.1->A1.2.Q", "Resid Start->MLP 1"):
        assert whole.loc[edge, "delta_norm"] == pytest.approx(largest[edge], rel=1e-5)


def ablated_row(ablation: ct.AblationType) -> tuple[pd.Series, ct.Trace]:
    trace = wrapped("hooked LN").trace(CLEAN, edges=["A0.1->Resid End"], ablation=ablation)
    return trace.table(batch_idx=1, at="last").iloc[0], trace


def test_a_mean_that_every_prompt_shares() -> None:
    row, trace = ablated_row(ct.AblationType.BATCH_TOKENWISE_MEAN)
    current = trace.current["A0.1"]
    patched = current.mean(0)
    assert row["patched_norm"] == pytest.approx(float(patched[-1].norm()), rel=1e-5)
    assert row["delta_norm"] == pytest.approx(float((patched - current[1])[-1].norm()), rel=1e-5)


def test_zero_points_nowhere() -> None:
    row, trace = ablated_row(ct.AblationType.ZERO)
    assert row["patched_norm"] == 0
    assert row["delta_norm"] == pytest.approx(float(trace.current["A0.1"][1, -1].norm()), rel=1e-5)
    assert math.isnan(row["cosine"])


def test_the_same_values_point_the_same_way() -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CLEAN, edges=["A0.1->Resid End"])
    row = trace.table().iloc[0]
    assert row["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert row["delta_norm"] == pytest.approx(0.0, abs=1e-6)


def test_tokens_stand_beside_their_positions() -> None:
    model = wrapped("hooked LN", SEQ)
    trace = model.trace(
        CLEAN, corrupt=CORRUPT, edges=[(4, "A0.1->A1.2.Q"), (2, "MLP 0->Resid End")]
    )
    spelt = dataclasses.replace(trace, to_strings=lambda row: [f"t{int(token)}" for token in row])
    table = spelt.table(batch_idx=1)
    assert list(table["token"]) == [f"t{int(CLEAN[1, 2])}", f"t{int(CLEAN[1, 4])}"]


def test_wider_types_are_tabled_in_single_precision() -> None:
    model = ct.wrap(copy_of(shared("hooked LN")).to(torch.bfloat16))
    table = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES).table(at="last")
    expected = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES).table(at="last")
    for column in COLUMNS[11:]:
        assert table[column].tolist() == pytest.approx(expected[column].tolist(), rel=0.1, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masks_of_another_type(dtype: torch.dtype) -> None:
    model = wrapped("hooked LN")
    masks = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES).masks
    masks = {name: mask.to(dtype) for name, mask in masks.items()}
    table = model.trace(CLEAN, corrupt=CORRUPT, masks=masks).table()
    expected = model.trace(
        CLEAN, corrupt=CORRUPT, masks={name: mask.float() for name, mask in masks.items()}
    ).table()
    assert table["mask"].dtype == expected["mask"].dtype
    for column in COLUMNS[10:]:
        assert table[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-2)


@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_received_norms(seq_len: int | None) -> None:
    trace = wrapped("hooked LN", seq_len).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    for _, row in trace.table(batch_idx=1).iterrows():
        received = trace.edge(row["edge"], None if seq_len is None else row["at"]).received[1]
        expected = received[row["at"]].norm()
        assert row["received_norm"] == pytest.approx(float(expected), rel=1e-4), row["edge"]


def test_means_over_the_batch() -> None:
    trace = wrapped("hooked LN", SEQ).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    mean = trace.table(batch_idx="mean")
    each = [trace.table(batch_idx=b) for b in range(trace.batch)]
    for column in COLUMNS[11:]:
        expected = sum(table[column].to_numpy() for table in each) / len(each)
        assert mean[column].to_numpy() == pytest.approx(expected, rel=1e-5), column
    assert mean["token"].isna().all()


def test_layers_and_heads() -> None:
    table = wrapped("hooked LN").trace(CLEAN).table("*->*").set_index("edge")
    places = table[["layer", "head", "dest_layer", "dest_head"]]
    assert places.loc["A0.3->A1.2.K"].tolist() == [0, 3, 1, 2]
    assert places.loc["Resid Start->MLP 1"].isna().tolist() == [True, True, False, True]
    assert places.loc["MLP 1->Resid End"].isna().tolist() == [False, True, True, True]


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize(
    ("ask", "fits"),
    [
        (
            lambda t: t.table("A0.*->MLP *"),
            lambda e: e.src.name[:3] == "A0." and e.dest.kind == "mlp",
        ),
        (lambda t: t.edges_into("A1.2"), lambda e: e.dest.unit == "A1.2"),
        (lambda t: t.edges_into("A1.2.*"), lambda e: e.dest.unit == "A1.2"),
        (lambda t: t.edges_into("A1.*.Q"), lambda e: e.dest.name[:2] + e.dest.name[-1] == "A1Q"),
        (lambda t: t.edges_from("A0.1"), lambda e: e.src.name == "A0.1"),
        (lambda t: t.edges_from("*"), lambda e: True),
    ],
)
def test_filters(ask, fits, seq_len: int | None) -> None:
    trace = wrapped("hooked LN", seq_len).trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->MLP 1"])
    table = ask(trace)
    listed = {
        (row.edge, None if row.seq_idx is pd.NA else row.seq_idx) for row in table.itertuples()
    }
    assert listed == {(edge.name, edge.seq_idx) for edge in trace.graph.edges if fits(edge)}
    whole = trace.table("*->*")
    same = whole.merge(table, on=["edge", "seq_idx"], suffixes=("", "_filtered"))
    assert len(same) == len(table)
    assert (same["delta_norm"] == same["delta_norm_filtered"]).all()


def test_the_strongest() -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT)
    everything = trace.table()
    top = trace.top(7, by="delta_norm")
    assert top["delta_norm"].tolist() == sorted(everything["delta_norm"], reverse=True)[:7]
    assert list(top.index) == list(range(7))
    low = trace.top(3, by="cosine", edges="A0.*->MLP 0")
    assert len(low) == 3
    assert set(low["dest"]) == {"MLP 0"}


def test_scores_and_effects() -> None:
    model = wrapped("hooked LN", SEQ)
    trace = model.trace(CLEAN)
    scores = {name: torch.randn(mask.shape) for name, mask in trace.masks.items()}
    some = {"blocks.0.hook_mlp_in": scores["blocks.0.hook_mlp_in"].double()}
    table = trace.table(scores=scores, effects=some)
    for _, row in table.sample(60, random_state=1).iterrows():
        edge = trace.graph.edge(row["edge"], row["seq_idx"])
        own = scores[edge.dest.module_name][row["seq_idx"]]
        own = own if edge.dest.head is None else own[edge.dest.slot]
        assert row["score"] == float(own[edge.src.idx])
        assert row["effect"] == (row["score"] if edge.dest.name == "MLP 0" else 0)
    largest = max(float(score.abs().max()) for score in scores.values())
    assert abs(trace.top(1, by="score", scores=scores).loc[0, "score"]) == pytest.approx(largest)


def test_a_row_at_each_position_of_a_model_without_positions() -> None:
    plain = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    table = plain.table(by_position=True)
    assert len(table) == len(EDGES) * SEQ
    expected = wrapped("hooked LN", SEQ).trace(CLEAN, corrupt=CORRUPT, edges=EDGES).table()
    keys = ["edge", "seq_idx"]
    one, other = (t.sort_values(keys).reset_index(drop=True) for t in (table, expected))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)


@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_edges_of_another_graph_are_taken_by_name(seq_len: int | None) -> None:
    trace = wrapped("hooked LN", seq_len).trace(CLEAN)
    other = wrapped("hooked grouped").trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.0.K"])
    for table in (trace.table(other.edges), trace.diff(trace).table(other.edges)):
        assert set(table["edge"]) == {"A0.1->A1.0.K"}
        assert len(table) == (seq_len or 1)
    at_one = wrapped("hooked LN", SEQ).trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->MLP 1 @3"])
    if seq_len is None:
        with pytest.raises(ct.EdgeError, match="was asked for at position 3"):
            trace.table(at_one.edges)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda t: t.table("A0.*->B*"), ct.EdgeError, "No destination matches 'B*'"),
        (lambda t: t.table(3), ct.EdgeError, "Cannot read 3 as edges"),
        (lambda t: t.table(torch.ones(())), ct.EdgeError, "Cannot read tensor(1.) as edges"),
        (lambda t: t.edges_into("A0.1->MLP 1"), ct.EdgeError, "Unknown destination"),
        (lambda t: t.edges_from("Resid End"), ct.EdgeError, "can only be a destination"),
        (lambda t: t.top(0), ct.InputError, "top needs a whole number of edges, 1 or more; got 0."),
        (
            lambda t: t.top(3, by="token"),
            ct.InputError,
            "by must be a column of numbers, one of mask",
        ),
        (lambda t: t.top(3, by="score"), ct.InputError, "got 'score'"),
        (
            lambda t: t.table(scores={"x": torch.ones(1)}),
            ct.MaskError,
            "The scores name the module",
        ),
        (lambda t: t.table(batch_idx=9), ct.InputError, "outside the traced batch"),
    ],
)
def test_wrong_questions(ask, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        ask(wrapped("hooked LN").trace(CLEAN))
    assert message in str(caught.value)
