"""Clean, current, patched and received: what a pass compares, against plain passes and the oracle."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.record import edge_numbers, lens_of
from tests.models import TYPICAL, oracle, shared, tokens, wrapped
from tests.oracle import Ask

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
EDGES = {"Resid Start->A0.1.V": 1.0, "A0.1->A1.2.Q": 0.5, "A1.2->Resid End": 1.0}
"""The last one's source has felt the other two."""
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("name", TYPICAL)
def test_each_is_what_plain_hooks_see(name: str) -> None:
    second = oracle(name)
    clean, corrupt = second.run(CLEAN).wrote, second.run(CORRUPT).wrote
    asks = [Ask(*edge.split("->"), None, mask) for edge, mask in EDGES.items()]  # pyright: ignore[reportCallIssue]
    current = second.run(CLEAN, corrupt, asks).wrote
    trace = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert (current["A1.2"] - clean["A1.2"]).norm() > 0.1, "it has felt the others"
    for edge, mask in EDGES.items():
        source, flow = edge.split("->")[0], trace.edge(edge)
        received = (1 - mask) * current[source] + mask * corrupt[source]
        torch.testing.assert_close(flow.clean, clean[source], **CLOSE)
        torch.testing.assert_close(flow.current, current[source], **CLOSE)
        torch.testing.assert_close(flow.received, received, **CLOSE)
        torch.testing.assert_close(flow.effect, received - clean[source], **CLOSE)
    into = trace.dest("A1.2.Q")
    torch.testing.assert_close(into.effect, into.received - into.clean)


PAIRS = [
    (one, other)
    for one in ("clean", "current", "patched", "received")
    for other in ("clean", "current", "patched", "received")
    if one != other
]


@pytest.mark.parametrize("at", ["last", "largest", 0])
@pytest.mark.parametrize("pair", PAIRS, ids="→".join)
def test_every_pair(pair: tuple[str, str], at: Any) -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    direction = torch.linspace(-1, 1, 10)
    numbers = edge_numbers(
        trace, list(trace.edges), 1, n_values=3, direction=direction, compare=pair, at=at
    )
    assert numbers.pair == pair
    for row, edge in enumerate(trace.edges):
        flow = trace.edge(edge.name)
        before, after = (getattr(flow, which)[1] for which in pair)
        where = int(numbers.at[row])
        change = (after - before).norm(dim=-1)
        if at == "largest":
            assert float(change[where]) == pytest.approx(float(change[1:].max()), rel=1e-4)
        else:
            assert where == (SEQ - 1 if at == "last" else at)
        one, other = before[where], after[where]
        expected = {
            "delta_norm": change[where],
            "cosine": torch.cosine_similarity(one, other, dim=0),
            "before_norm": one.norm(),
            "after_norm": other.norm(),
            "before_projection": one @ direction,
            "after_projection": other @ direction,
            "projected": (other - one) @ direction,
        }
        for name, value in expected.items():
            found = float(getattr(numbers, name)[row])
            assert found == pytest.approx(float(value), rel=1e-3, abs=1e-5), (edge.name, name)
        torch.testing.assert_close(numbers.before_values[row], one[:3], **CLOSE)
        torch.testing.assert_close(numbers.after_values[row], other[:3], **CLOSE)


def test_what_is_compared_when_nobody_says() -> None:
    model = wrapped("hooked LN")
    ask: dict[str, Any] = {"corrupt": CORRUPT, "edges": EDGES}
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model(CLEAN)
    unknown = model.last_trace
    cases = {
        ("clean", "received"): model.trace(CLEAN, **ask),
        ("current", "patched"): model.trace(CLEAN, **ask, clean=False),
        ("clean", "patched"): model.trace(CLEAN, corrupt=CORRUPT),
        None: model.trace(CLEAN),
    }
    for pair, trace in cases.items():
        table = trace.table("A0.1->A1.2.Q")
        assert table.attrs["compare"] == pair
        assert table.columns.name == ("current" if pair is None else "→".join(pair))
        assert ("clean_norm" in table) == (trace.clean is not None)
    assert unknown.table().attrs["compare"] == ("current", "patched")
    assert unknown.clean is None
    assert unknown.edge("A0.1->A1.2.Q").effect is None


def test_a_context_may_be_told_what_is_clean() -> None:
    model = wrapped("hooked LN", SEQ)
    clean, patched = model.source_outputs(CLEAN), model.source_outputs(CORRUPT)
    with torch.no_grad(), model.patch(patched, edges=EDGES, clean=clean):
        model(CLEAN)
    told, own = model.last_trace, model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert told.table().equals(own.table())
    with (
        model.patch(patched, edges=EDGES, clean=model.source_outputs(CLEAN[:1])),
        pytest.raises(ct.InputError, match=r"The clean outputs .* are for a batch of 1 × 6"),
    ):
        model(CLEAN)


def test_the_sign_that_one_would_publish() -> None:
    """A head that has felt the patches before it differs little from what is patched in: against
    the clean pass its effect is whole, and the metric's gradient agrees with its sign."""
    from circuit_trace.demo.prompts import ANSWERS
    from circuit_trace.demo.prompts import CLEAN as TEXT
    from circuit_trace.demo.prompts import CORRUPT as OTHER

    model = ct.wrap(ct.load_model("bundled"))
    edges = ["MLP 0->A1.0.Q", "MLP 0->A1.0.K", "MLP 0->A1.0.V", "A1.0->Resid End"]
    trace = model.trace(TEXT, corrupt=OTHER, edges=edges)
    row = trace.table("A1.0->Resid End", direction=ANSWERS).iloc[0]
    ids = [int(model.to_tokens(answer, prepend_bos=False)[0, 0]) for answer in ANSWERS]
    along = lens_of(trace, 0).direction(*ids)[-1]
    plain = model.trace(TEXT).edge("A1.0->Resid End").current[0, -1] @ along
    other = model.trace(OTHER).table("A1.0->Resid End", direction=ANSWERS).iloc[0]
    assert row["clean_projection"] == pytest.approx(float(plain), rel=1e-4)
    score = ct.exact_scores(model, (TEXT, OTHER, *ANSWERS), edges="A1.0->Resid End")
    number = float(score["blocks.1.hook_resid_post"][model.edge("A1.0->Resid End").src.idx])
    assert number < 0
    assert row["received_projection"] < row["clean_projection"]
    assert other["current_projection"] < 0


def test_padding_and_a_first_token_that_outweighs_all_do_not_count() -> None:
    trace = wrapped("hooked LN").trace(CLEAN, edges=["A0.1->MLP 1"], ablation=ct.AblationType.ZERO)
    effect = trace.edge("A0.1->MLP 1").effect[0].norm(dim=-1)
    order = effect.argsort(descending=True).tolist()
    real = torch.ones(2, SEQ, dtype=torch.bool)
    assert trace.table()["at"].tolist() == [next(at for at in order if at != 0)]
    real[:, order[0]] = real[:, order[1]] = False
    padded = dataclasses.replace(trace, real=real)
    first = int(real[0].int().argmax())
    expected = next(at for at in order if at not in (order[0], order[1], first))
    assert padded.table()["at"].tolist() == [expected]
    ends = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    shorter = dataclasses.replace(trace, real=ends)
    assert [shorter.table(at="last", batch_idx=b)["at"][0] for b in (0, 1)] == [2, 4]
    mean = shorter.table(at="last", batch_idx="mean").iloc[0]
    norms = [float(trace.edge("A0.1->MLP 1").effect[b, at].norm()) for b, at in ((0, 2), (1, 4))]
    assert mean["delta_norm"] == pytest.approx(sum(norms) / 2, rel=1e-5)
    assert mean.isna()["at"]


def test_the_first_token_counts_where_nothing_else_changes() -> None:
    other = CLEAN.clone()
    other[:, 0] = (other[:, 0] + 1) % 23
    model = wrapped("hooked LN", SEQ)
    trace = model.trace(CLEAN, corrupt=other, edges=[(0, "Resid Start->MLP 0")])
    whole = wrapped("hooked LN").trace(CLEAN, corrupt=other, edges=["Resid Start->MLP 0"])
    assert trace.table()["at"].tolist() == whole.table()["at"].tolist() == [0]


# How it came out


def difference(logits: torch.Tensor, right: int, wrong: int) -> torch.Tensor:
    return (logits[:, -1, right] - logits[:, -1, wrong]).double()


@pytest.mark.parametrize("name", TYPICAL)
def test_a_metric_of_every_pass(name: str) -> None:
    second = oracle(name)
    corrupt = second.run(CORRUPT)
    asks = [Ask(*edge.split("->"), None, mask) for edge, mask in EDGES.items()]  # pyright: ignore[reportCallIssue]
    model = wrapped(name)
    rest = [
        Ask(edge.src.name, edge.dest.name, None, 1.0 - EDGES.get(edge.name, 0.0))
        for edge in model.edges
    ]
    expected = {
        "clean": second.run(CLEAN).logits,
        "corrupt": corrupt.logits,
        "circuit": second.run(CLEAN, corrupt.wrote, asks).logits,
        "complement": second.run(CLEAN, corrupt.wrote, rest).logits,
    }
    for patch in ("circuit", "complement"):
        trace = model.trace(
            CLEAN, corrupt=CORRUPT, edges=EDGES, answers=(3, 7), complement=True, patch=patch
        )
        assert trace.outcome is not None
        assert (trace.outcome.patch, trace.outcome.answers) == (patch, (3, 7))
        torch.testing.assert_close(trace.logits, expected[patch], rtol=1e-4, atol=1e-4)
        for which, logits in expected.items():
            found = getattr(trace.outcome, which)
            torch.testing.assert_close(found, difference(logits, 3, 7), rtol=1e-3, atol=1e-4)
    clean, last, mid, rest_value = (
        float(difference(expected[which], 3, 7).mean())
        for which in ("clean", "corrupt", "circuit", "complement")
    )
    explained, faithful = (clean - mid) / (clean - last), (rest_value - last) / (clean - last)
    assert trace.outcome.explained == pytest.approx(explained, abs=1e-3)
    assert trace.outcome.faithfulness == pytest.approx(faithful, abs=1e-3)


def test_the_complement_is_the_circuit_kept() -> None:
    model = wrapped("hooked LN", SEQ)
    circuit = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES).masks
    by_hand = {name: 1 - mask for name, mask in circuit.items()}
    expected = model.trace(CLEAN, corrupt=CORRUPT, masks=by_hand)
    trace = model.trace(CLEAN, corrupt=CORRUPT, masks=circuit, patch="complement")
    assert torch.equal(trace.logits, expected.logits)
    assert all(torch.equal(trace.masks[name], mask) for name, mask in by_hand.items())
    assert {edge.name for edge in trace.edges} == set(EDGES), "those asked for are listed and drawn"
    assert len(trace.table()) == len(EDGES) * SEQ
    assert repr(trace).startswith("<Trace: batch 2, seq 6, 11 sources, all but 18 edges patched")
    figure = trace.draw()
    said = {label.split("<br>")[0] for one in figure.data for label in one.link.label}  # pyright: ignore[reportAttributeAccessIssue]
    assert said == set(EDGES)
    words = " ".join(note.text for note in figure.layout.annotations).replace("<br>", " ")
    assert "Width: 1 − mask" in words
    assert "These 18 edges are kept, all others patched." in words


@pytest.mark.parametrize("metric", ["answer_logprob", "kl", "loss"])
def test_other_metrics(metric: str) -> None:
    model = wrapped("hooked LN")
    answers = (3, 7) if metric == "answer_logprob" else None
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES, metric=metric, answers=answers)
    plain, other = (shared("hooked LN")(one).double() for one in (CLEAN, CORRUPT))
    logs = {"clean": plain.log_softmax(-1), "corrupt": other.log_softmax(-1)}
    logs["circuit"] = trace.logits.double().log_softmax(-1)
    assert trace.outcome.metric == metric
    for which, log in logs.items():
        if metric == "answer_logprob":
            expected = log[:, -1, 3]
        elif metric == "kl":
            expected = (logs["clean"].exp() * (logs["clean"] - log))[:, -1].sum(-1)
        else:
            expected = -log[:, :-1].gather(2, CLEAN[:, 1:, None])[..., 0].mean(1)
        found = getattr(trace.outcome, which)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-5)


def test_where_nothing_or_something_else_is_patched_in() -> None:
    model = wrapped("hooked LN")
    plain = model.trace(CLEAN, corrupt=CORRUPT, answers=(3, 7)).outcome
    assert (plain.circuit, plain.complement, plain.patch, plain.explained) == (None,) * 4
    assert model.trace(CLEAN, answers=(3, 7)).outcome.corrupt is None
    zero = ct.AblationType.ZERO
    told = model.trace(CLEAN, edges=EDGES, ablation=zero, answers=(3, 7)).outcome
    every = model.trace(CLEAN, edges=["*->*"], ablation=zero)
    torch.testing.assert_close(told.corrupt, difference(every.logits, 3, 7), **CLOSE)


def test_it_stands_wherever_a_person_reads() -> None:
    from rich.console import Console

    from circuit_trace.demo.prompts import ANSWERS
    from circuit_trace.demo.prompts import CLEAN as TEXT
    from circuit_trace.demo.prompts import CORRUPT as OTHER

    model = ct.wrap(ct.load_model("bundled"))
    ask: dict[str, Any] = {"corrupt": OTHER, "edges": ["A1.0->Resid End"], "complement": True}
    trace = model.trace(TEXT, **ask, answers=ANSWERS)
    said = str(trace.outcome)
    assert said.startswith("logit(Mary) − logit(John): clean +12.38, corrupt −12.15, these edges")
    assert "% of the way from clean to corrupt), everything else patched" in said
    figure = trace.draw(table=True)
    text = " ".join(note.text for note in figure.layout.annotations).replace("<br>", " ")
    console = Console(width=400)
    with console.capture() as captured:
        console.print(trace)
    page = trace.explore().html
    assert said in repr(trace)
    assert trace.table().attrs["outcome"] == said
    assert said in text
    assert said in " ".join(captured.get().split())
    assert "clean +12.38" in page
    again = pickle.loads(pickle.dumps(trace.outcome))
    assert str(again) == said


def test_answers_are_a_direction() -> None:
    from circuit_trace.demo.prompts import ANSWERS
    from circuit_trace.demo.prompts import CLEAN as TEXT
    from circuit_trace.demo.prompts import CORRUPT as OTHER

    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(TEXT, corrupt=OTHER, edges=["A1.0->Resid End"], answers=ANSWERS)
    drawn, given = trace.draw(width="projection"), trace.draw(width="projection", direction=ANSWERS)
    assert drawn.data[0].link.value == given.data[0].link.value  # pyright: ignore[reportAttributeAccessIssue]


def test_it_is_saved(tmp_path: Any) -> None:
    model = wrapped("hooked LN")
    trace = model.trace(
        CLEAN, corrupt=CORRUPT, edges=EDGES, answers=(3, 7), complement=True, patch="complement"
    )
    trace.save(tmp_path / "x.trace")
    loaded = ct.Trace.load(tmp_path / "x.trace")
    assert str(loaded.outcome) == str(trace.outcome)
    assert loaded.table().equals(trace.table())
    assert loaded.keeps
    torch.testing.assert_close(loaded.clean.stack(), trace.clean.stack())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"answers": " Mary"}, "answers must be two, what should follow and what should not"),
    ({"answers": (3, 7, 8)}, "answers must be two"),
    ({"answers": (3, 99)}, "this model knows the tokens 0 to 22"),
    ({"metric": "accuracy"}, "metric must be one of logit_diff"),
    ({"patch": "all"}, "patch must be 'circuit'"),
    ({"edges": None, "patch": "complement"}, "Everything but which edges is to be patched?"),
    ({"complement": True}, "complement=True measures a metric with everything else patched"),
]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda one: str(one)[:40])
def test_wrong_wishes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ct.InputError) as caught:
        wrapped("hooked LN").trace(CLEAN, **{"corrupt": CORRUPT, "edges": EDGES, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            {"compare": ("clean", "clean")},
            "compare must be two of clean, current, patched, received",
        ),
        ({"compare": "clean"}, "compare must be two of"),
        ({"at": 6}, "at must be 'largest', 'last' or a position from 0 to 5; got 6."),
        ({"at": "first"}, "at must be 'largest', 'last' or a position"),
    ],
)
def test_wrong_comparisons(ask: dict[str, Any], message: str) -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    with pytest.raises(ct.InputError, match=message.replace("(", r"\(")):
        trace.table(**ask)
    with pytest.raises(ct.FigureError):
        trace.draw(**ask)


def test_what_a_pass_does_not_know() -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES, clean=False)
    with pytest.raises(ct.InputError, match=r"does not know 'clean': trace.* records it unless"):
        trace.table(compare=("clean", "received"))
    with pytest.raises(ct.InputError, match="at='last' is for models wrapped without seq_len"):
        wrapped("hooked LN", SEQ).trace(CLEAN).table(at="last")


def test_an_empty_circuit_lists_nothing() -> None:
    model = wrapped("hooked LN")
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges={"A0.1->MLP 1": 0.0})
    assert trace.table()["edge"].tolist() == ["A0.1->MLP 1"]
