"""`wrap`, `patch` in `patch`, `source_outputs` in `patch`, `last_trace`, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from tests.footprint import footprint, lent
from tests.models import CASES, TWO, oracle, shared, tokens, wrapped
from tests.models import hooked as build_hooked
from tests.oracle import Ask

SEQ = 6
CLEAN, CORRUPT, OTHER = tokens(1), tokens(2), tokens(3)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
BIG = 1e-2


@pytest.fixture(params=TWO)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def hooked(name: str) -> Iterator[Any]:
    with lent(shared(name)) as model:
        yield model


@pytest.fixture
def model(hooked: Any) -> ct.PatchableModel:
    return ct.wrap(hooked, verify=False)


# --- a wrapped model behaves like the model -----------------------------------------------------


def test_it_is_called_like_the_model(model: ct.PatchableModel, hooked: Any) -> None:
    with torch.no_grad():
        assert torch.equal(model(CLEAN), hooked(CLEAN))
        assert_close(model(CLEAN, return_type="loss"), hooked(CLEAN, return_type="loss"))


def test_what_it_does_not_have_comes_from_the_model(model: ct.PatchableModel, hooked: Any) -> None:
    assert model.wrapped_model is hooked
    assert model.cfg is hooked.cfg
    assert model.W_E is hooked.W_E
    assert model.run_with_cache == hooked.run_with_cache
    assert model.tokenizer is hooked.tokenizer is None
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018


def test_its_own_attributes(model: ct.PatchableModel) -> None:
    assert (model.seq_len, model.seq_dim, model.n_edges) == (None, 1, len(model.edges))
    assert model.nodes == model.srcs + model.dests
    assert str(model.edge("A0.1->A1.0.Q")) == "A0.1->A1.0.Q"
    at_6 = ct.wrap(model.wrapped_model, seq_len=SEQ)
    assert (at_6.seq_len, at_6.n_edges) == (SEQ, SEQ * model.n_edges)
    assert str(at_6.edge("A0.1->A1.0.Q", 5)) == "A0.1->A1.0.Q @5"


def test_it_shows_what_it_is() -> None:
    hooked = shared("hooked LN")
    assert repr(ct.wrap(hooked)) == (
        "<PatchableModel: HookedTransformer, 11 sources, 27 destinations, 110 edges>"
    )
    assert repr(ct.wrap(hooked, seq_len=6)) == (
        "<PatchableModel: HookedTransformer, 11 sources, 27 destinations, 660 edges at 6 positions>"
    )


@pytest.mark.parametrize(
    ("slice_output", "expected"),
    [(None, lambda x: x), ("last_seq", lambda x: x[:, -1]), ("not_first_seq", lambda x: x[:, 1:])],
)
def test_out_slice(slice_output: str | None, expected: Callable) -> None:
    model = ct.wrap(shared("hooked LN"), slice_output=slice_output)
    logits = model.trace(CLEAN).logits
    assert torch.equal(logits[model.out_slice], expected(logits))


def test_a_copy_of_a_wrapped_model_is_whole() -> None:
    """Deep copies are how people keep a model's former weights."""
    twin = copy.deepcopy(ct.wrap(CASES["hooked LN"].build()))
    with torch.no_grad():
        twin.wrapped_model.blocks[0].attn.W_O.mul_(3)  # pyright: ignore[reportAttributeAccessIssue]
    trace = twin.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"])
    assert trace.reconstruction_error() < 1e-5


# --- contexts in contexts -----------------------------------------------------------------------

E1, E2, E3 = "A0.1->A1.2.Q", "A0.2->A1.2.Q", "A0.3->MLP 1"


def asks(edges: dict[str, float]) -> list[Ask]:
    return [Ask(*edge.split("->"), None, mask) for edge, mask in edges.items()]  # pyright: ignore[reportCallIssue]


def test_an_inner_context_adds_to_the_outer_one(name: str, model: ct.PatchableModel) -> None:
    patched = model.source_outputs(CORRUPT)
    corrupt = oracle(name).run(CORRUPT).wrote
    one, both = {E1: 1.0, E3: 0.5}, {E1: 1.0, E3: 0.5, E2: -0.5}
    expected = [oracle(name).run(CLEAN, corrupt, asks(edges)).logits for edges in (one, both)]
    assert (expected[0] - expected[1]).abs().max() > BIG
    with torch.no_grad(), model.patch(patched, edges=one):
        first = model(CLEAN)
        with model.patch(patched, edges={E2: -0.5}):
            assert_close(model(CLEAN), expected[1], **CLOSE)
            inner = model.last_trace
        again = model(CLEAN)
    assert_close(first, expected[0], **CLOSE)
    assert torch.equal(again, first)
    assert {edge.name for edge in inner.edges} == set(both)
    assert {edge.name: inner.edge(edge.name).mask for edge in inner.edges} == both
    assert inner.reconstruction_error() < 1e-5
    assert {edge.name for edge in model.last_trace.edges} == set(one)


def test_each_context_patches_its_own_values(name: str, model: ct.PatchableModel) -> None:
    second = oracle(name)
    values = {**second.run(CORRUPT).wrote, "A0.2": second.run(OTHER).wrote["A0.2"]}
    expected = second.run(CLEAN, values, asks({E1: 1.0, E2: 1.0, E3: 1.0}))
    old, new = model.source_outputs(CORRUPT), model.source_outputs(OTHER)
    with torch.no_grad(), model.patch(old, edges=[E1, E3]), model.patch(new, edges=[E2]):
        logits = model(CLEAN)
    assert_close(logits, expected.logits, **CLOSE)
    trace = model.last_trace
    for edge, source in ((E1, "A0.1"), (E2, "A0.2"), (E3, "A0.3")):
        assert_close(trace.edge(edge).patched, values[source], **CLOSE)
        assert_close(trace.edge(edge).received, values[source], **CLOSE)
    read = trace.dest("A1.2.Q").received.sum(0) + second.bias_before("A1.2.Q")
    assert_close(read, expected.read["A1.2.Q"], **CLOSE)
    assert trace.reconstruction_error() < 1e-5
    table = trace.table().set_index("edge")
    for edge, source in ((E1, "A0.1"), (E2, "A0.2")):
        row = table.loc[edge]
        expected_norm = float(values[source][0, row["at"]].norm())
        assert row["patched_norm"] == pytest.approx(expected_norm, rel=1e-4)


OVERRIDES = {
    "one edge of three": ({E1: 1.0, E2: 1.0, E3: 1.0}, {E1: 0.25}),
    "every edge of a destination": ({E1: 1.0, E3: 1.0}, {E1: 0.25}),
    "every edge there is": ({E1: 1.0}, {E1: 0.25}),
    "off": ({E1: 1.0, E3: 1.0}, {E1: 0.0}),
    "every edge there is, off": ({E1: 1.0}, {E1: 0.0}),
}


@pytest.mark.parametrize("what", OVERRIDES)
@pytest.mark.parametrize("grad", [False, True])
def test_for_an_edge_of_both_the_inner_context_counts(
    name: str, model: ct.PatchableModel, what: str, grad: bool
) -> None:
    outer, inner = OVERRIDES[what]
    second = oracle(name)
    old, new = second.run(CORRUPT).wrote, second.run(OTHER).wrote
    expected = second.run(CLEAN, {**old, "A0.1": new["A0.1"]}, asks({**outer, **inner})).logits
    with torch.set_grad_enabled(grad), model.patch(model.source_outputs(CORRUPT), edges=outer):
        first = model(CLEAN)
        with model.patch(model.source_outputs(OTHER), edges=inner):
            logits = model(CLEAN)
            trace = model.last_trace
        assert torch.equal(model(CLEAN), first), "the outer context is as it was"
    assert_close(logits.detach(), expected, **CLOSE)
    assert {edge.name: trace.edge(edge.name).mask for edge in trace.edges} == {**outer, **inner}
    assert_close(trace.edge(E1).patched, new["A0.1"], **CLOSE)
    assert trace.reconstruction_error() < 1e-5


def test_scores_in_scores(name: str, model: ct.PatchableModel) -> None:
    outer = {"blocks.1.hook_q_input": torch.zeros(4, 6)}
    outer["blocks.1.hook_q_input"][2] = torch.tensor([0.5, 0, 1, 0, 0, 1])
    inner = {"blocks.1.hook_q_input": torch.zeros(4, 6), "blocks.1.hook_mlp_in": torch.zeros(10)}
    inner["blocks.1.hook_q_input"][2, 2] = 0.25
    inner["blocks.1.hook_mlp_in"][3] = 1
    together = {
        "Resid Start->A1.2.Q": 0.5,
        "A0.1->A1.2.Q": 0.25,
        "MLP 0->A1.2.Q": 1.0,
        "A0.2->MLP 1": 1.0,
    }
    expected = oracle(name).run(CLEAN, oracle(name).run(CORRUPT).wrote, asks(together)).logits
    patched = model.source_outputs(CORRUPT)
    with torch.no_grad(), model.patch(patched, masks=outer), model.patch(patched, masks=inner):
        logits = model(CLEAN)
    assert_close(logits, expected, **CLOSE)
    masks = model.last_trace.masks
    assert masks["blocks.1.hook_q_input"][2].tolist() == [0.5, 0, 0.25, 0, 0, 1]


def test_token_edges_in_token_edges() -> None:
    model, second = ct.wrap(shared("hooked LN"), seq_len=SEQ), oracle("hooked LN")
    old, new = model.source_outputs(CORRUPT), model.source_outputs(OTHER)
    wrote_old, wrote_new = second.run(CORRUPT).wrote, second.run(OTHER).wrote
    outer, inner = [(0, E1), (3, E1), (3, E3)], {(3, E1): 0.5, (5, E1): 1.0}
    with torch.no_grad(), model.patch(old, edges=outer), model.patch(new, edges=inner):
        logits = model(CLEAN)
    mixed = {name: value.clone() for name, value in wrote_old.items()}
    mixed["A0.1"][:, 3:] = wrote_new["A0.1"][:, 3:]
    expected = second.run(
        CLEAN,
        mixed,
        [
            Ask("A0.1", "A1.2.Q", 0, 1.0),
            Ask("A0.1", "A1.2.Q", 3, 0.5),
            Ask("A0.1", "A1.2.Q", 5, 1.0),
            Ask("A0.3", "MLP 1", 3, 1.0),
        ],
    )
    assert_close(logits, expected.logits, **CLOSE)
    trace = model.last_trace
    assert trace.reconstruction_error() < 1e-5
    for seq_idx in (0, 3, 5):
        flow = trace.edge(E1, seq_idx)
        assert_close(flow.patched[:, seq_idx], mixed["A0.1"][:, seq_idx], **CLOSE)
    # The edge at all positions at once, whose values come from two contexts:
    masks = torch.tensor([1.0, 0, 0, 0.5, 0, 1.0])[None, :, None]
    received = (1 - masks) * expected.wrote["A0.1"] + masks * mixed["A0.1"]
    assert_close(trace.edge(E1).received, received, **CLOSE)
    read = trace.dest("A1.2.Q").received.sum(0) + second.bias_before("A1.2.Q")
    assert_close(read, expected.read["A1.2.Q"], **CLOSE)


def test_an_inner_context_that_only_names_an_edge_leaves_the_record_whole() -> None:
    model = ct.wrap(shared("hooked LN"))
    patched = model.source_outputs(CORRUPT)
    named_only = model.patch(edges={"A0.2->Resid End": 0.0})
    with model.patch(patched, edges=["A0.1->Resid End"]), named_only:
        model(CLEAN)
    dest = model.last_trace.dest("Resid End")
    assert dest.patched.shape == dest.current.shape
    assert dest.delta.shape == dest.current.shape


def test_source_outputs_in_a_patch_are_not_patched(name: str, model: ct.PatchableModel) -> None:
    before = model.source_outputs(OTHER).stack()
    expected = model.trace(CLEAN, corrupt=CORRUPT, edges=[E1, E3]).logits
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=[E1, E3]):
        assert torch.equal(model(CLEAN), expected)
        assert torch.equal(model.source_outputs(OTHER).stack(), before)
        mean = model.source_outputs([OTHER], ct.AblationType.TOKENWISE_MEAN_CLEAN)
        assert_close(mean["A1.2"], model.source_outputs(OTHER)["A1.2"].mean(0, keepdim=True))
        assert torch.equal(model(CLEAN), expected), "the patch is on again"
        assert torch.equal(model.last_trace.tokens, CLEAN), "nor do they count as a pass"


def test_a_trace_in_a_patch_is_of_its_own_pass(name: str, model: ct.PatchableModel) -> None:
    corrupt = oracle(name).run(CORRUPT).wrote
    expected = oracle(name).run(OTHER, corrupt, asks({E1: 1.0, E3: 1.0})).logits
    with model.patch(model.source_outputs(CORRUPT), edges=[E1]):
        model(CLEAN)
        trace = model.trace(OTHER, corrupt=CORRUPT, edges=[E3])
        assert torch.equal(trace.tokens, OTHER)
        assert_close(trace.logits, expected, **CLOSE)
        assert model.last_trace is trace
    assert model.last_trace is trace, "no pass has run since"


def test_last_trace_is_of_the_last_pass_whichever_context_it_ran_in(
    model: ct.PatchableModel,
) -> None:
    patched = model.source_outputs(CORRUPT)
    seen = []

    def last() -> list[int]:
        return model.last_trace.tokens.tolist()

    with model.patch(patched, edges=[E1]):
        model(CLEAN)
        seen.append(last() == CLEAN.tolist())
        with model.patch(patched, edges=[E2]):
            seen.append(last() == CLEAN.tolist())
            model(OTHER)
            seen.append(last() == OTHER.tolist())
        seen.append(last() == OTHER.tolist())
        model(CORRUPT)
        seen.append(last() == CORRUPT.tolist())
    seen.append(last() == CORRUPT.tolist())
    assert seen == [True] * 6


def test_contexts_of_two_wrappers_of_one_model_are_refused() -> None:
    """They would not add up: each computes a head's query from the stream and its own edges."""
    with lent(shared("hooked LN")) as hooked:
        one, two = ct.wrap(hooked), ct.wrap(hooked)
        patched = one.source_outputs(CORRUPT)
        with torch.no_grad(), one.patch(patched, edges=[E1]):
            logits = hooked(CLEAN)
            during = footprint(hooked)
            with pytest.raises(ct.InputError) as caught, two.patch(patched, edges=[E2]):
                pytest.fail("the context was entered")
            assert footprint(hooked) == during
            assert torch.equal(hooked(CLEAN), logits), "the first works on"
        assert str(caught.value) == (
            "Another wrapper of this model has a patch open. Close it first, or open both patches on "
            "the same wrapper: contexts of one wrapper add up."
        )
        assert [edge.name for edge in two.trace(CLEAN, patched=patched, edges=[E2]).edges] == [E2]


# --- before, during and after passes ------------------------------------------------------------

NO_PASS = (
    "No pass has been recorded yet. Call model.trace(tokens, corrupt=..., edges=[...]), or run the "
    "model inside `with model.patch(...)`."
)


def test_there_is_no_trace_before_the_first_pass(model: ct.PatchableModel) -> None:
    def refused() -> None:
        with pytest.raises(ct.NoTraceError) as caught:
            model.last_trace  # noqa: B018
        assert str(caught.value) == NO_PASS

    refused()
    model(CLEAN)
    refused()
    patched = model.source_outputs(CORRUPT)
    refused()
    with model.patch(patched, edges=[E1]):
        refused()
    refused()
    model.trace(CLEAN)
    assert torch.equal(model.last_trace.tokens, CLEAN)


def test_outputs_that_do_not_fit_the_pass_leave_nothing_behind(
    model: ct.PatchableModel, hooked: Any
) -> None:
    """Also where nothing is patched, so that nothing notices before the record is made."""
    before = footprint(hooked)
    for edges in (None, [E1]):
        with (
            pytest.raises(
                ct.InputError, match=r"are for a batch of 2 × 4 tokens, but this pass runs 2 × 6"
            ),
            model.patch(model.source_outputs(tokens(2, seq=4)), edges=edges),
        ):
            model(CLEAN)
        assert footprint(hooked) == before
        trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[E1])
        assert [edge.name for edge in trace.edges] == [E1]
        assert footprint(hooked) == before


def test_many_passes_in_one_context(name: str, model: ct.PatchableModel) -> None:
    patched = model.source_outputs(CORRUPT)
    with torch.no_grad(), model.patch(patched, edges=[E1, E3]):
        for ids in (CLEAN, OTHER, CORRUPT, CLEAN):
            logits = model(ids)
            expected = oracle(name).run(
                ids, oracle(name).run(CORRUPT).wrote, asks({E1: 1.0, E3: 1.0})
            )
            assert_close(logits, expected.logits, **CLOSE)
            assert torch.equal(model.last_trace.tokens, ids)
            assert_close(model.last_trace.current["A1.1"], expected.wrote["A1.1"], **CLOSE)


def test_a_single_prompt_without_a_batch_axis() -> None:
    model = ct.wrap(shared("hooked LN"))
    one = model.trace(CLEAN[:1], corrupt=CORRUPT[:1], edges=[E1])
    flat = model.trace(CLEAN[0], corrupt=CORRUPT[0], edges=[E1])
    assert torch.equal(flat.logits, one.logits)


# --- text, where the model has a tokenizer ------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvw"
"""A token a letter."""


def reading_model(seq_len: int | None = None) -> ct.PatchableModel:
    """A model with a tokenizer, by its anatomy."""

    def to_tokens(text: str | list[str]) -> torch.Tensor:
        texts = [text] if isinstance(text, str) else text
        return torch.tensor([[LETTERS.index(letter) for letter in one] for one in texts])

    found = dataclasses.replace(
        ct.wrap(shared("hooked LN"), verify=False).anatomy,
        to_tokens=to_tokens,
        to_strings=lambda row: [LETTERS[token] for token in row],
    )
    return ct.wrap(shared("hooked LN"), anatomy=found, seq_len=seq_len)


def test_a_string_is_one_prompt_and_a_list_of_strings_a_batch() -> None:
    model = reading_model()
    one = model.trace("abcd", corrupt="abce", edges=[E1])
    assert one.tokens.tolist() == [[0, 1, 2, 3]]
    assert (one.batch, one.seq) == (1, 4)
    two = model.trace(["abcd", "dcba"], corrupt=["abce", "ecba"], edges=[E1])
    assert two.tokens.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert_close(two.logits[:1], one.logits)
    by_hand = model.trace(two.tokens, patched=model.source_outputs(("abce", "ecba")), edges=[E1])
    assert torch.equal(by_hand.logits, two.logits)


def test_tokens_of_unequal_length_are_refused() -> None:
    with pytest.raises(ct.InputError, match=r"got \(1, 4\) and \(1, 3\)"):
        reading_model().trace(tokens(1, batch=1, seq=4), corrupt=tokens(2, batch=1, seq=3))


def test_texts_of_unequal_length_are_aligned_at_the_end() -> None:
    """Each prompt is patched as it is alone; see `tests/plan/test_prompts.py`."""
    model = reading_model()
    two = model.trace(["abcd", "ef"], corrupt=["dcba", "gh"], edges=[E1])
    for row, (clean, corrupt) in enumerate((("abcd", "dcba"), ("ef", "gh"))):
        one = model.trace(clean, corrupt=corrupt, edges=[E1])
        assert_close(two.logits[row, -one.seq :], one.logits[0], rtol=1e-4, atol=1e-5)


def test_datasets_of_text() -> None:
    model, mean = reading_model(), ct.AblationType.TOKENWISE_MEAN_CLEAN
    expected = model.source_outputs(["abcd", "efgh", "ijkl"], ct.AblationType.BATCH_TOKENWISE_MEAN)
    for data in (
        ["abcd", "efgh", "ijkl"],
        [["abcd", "efgh"], ["ijkl"]],
        [("abcd", "w"), ("efgh", "w"), ("ijkl", "w")],
    ):
        assert_close(model.source_outputs(data, mean).stack(), expected.stack()[:, :1])
    one = model.source_outputs("abcd", mean)
    assert_close(one.stack(), model.source_outputs("abcd").stack())


def test_tokens_are_told_as_text() -> None:
    trace = reading_model(seq_len=4).trace(
        ["abcd", "efgh"], corrupt=["abce", "efgi"], edges=[(3, E1), (0, E3)]
    )
    assert trace.token_strings(1) == ["e", "f", "g", "h"]
    assert list(trace.table()["token"]) == ["a", "d"]
    assert list(trace.table(batch_idx=1)["token"]) == ["e", "h"]


# --- what is refused ----------------------------------------------------------------------------

EDGE = "A0.1->Resid End"
BOTH_EDGES = "Give either edges= or masks=, not both: each says what is patched."
SAME_SHAPE = "Clean and corrupt prompts must have the same number of prompts and of tokens, got "
NO_TOKENIZER = "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
TOKENS_EXPECTED = "Expected token ids as a tensor [batch, seq], a string or a list of strings; got "

Ask_ = Callable[[ct.PatchableModel], Any]


def enter(model: ct.PatchableModel, *args: Any, **kwargs: Any) -> None:
    with model.patch(*args, **kwargs):
        model(CLEAN)


BAD: dict[str, tuple[type[Exception], str, Ask_]] = {
    "an unknown edge": (
        ct.EdgeError,
        "Unknown source 'A0.9' in the edge 'A0.9->Resid End'. Did you mean 'A0.3' or 'A0.2' or 'A0.1'?",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=["A0.9->Resid End"]),
    ),
    "an unknown edge at mask 0": (
        ct.EdgeError,
        "Unknown source 'A0.9' in the edge 'A0.9->Resid End'.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges={"A0.9->Resid End": 0.0}),
    ),
    "a misspelt edge among good ones": (
        ct.EdgeError,
        "Unknown destination 'ResidEnd' in the edge 'A0.1->ResidEnd'. Did you mean 'Resid End'?",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=[EDGE, "A0.1->ResidEnd"]),
    ),
    "a backward edge": (
        ct.EdgeError,
        "There is no edge 'A1.0->A0.1.Q': A1.0 does not write before A0.1.Q reads. The last source "
        "that A0.1.Q reads is Resid Start.",
        lambda m: enter(m, m.source_outputs(CORRUPT), edges=["A1.0->A0.1.Q"]),
    ),
    "a malformed edge": (
        ct.EdgeError,
        "Cannot read the edge 'A0.1 Resid End': expected 'source->destination', for example "
        "'Resid Start->Resid End'.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1 Resid End"]),
    ),
    "a name alone, malformed": (
        ct.EdgeError,
        "Cannot read the edge 'A0.1': expected 'source->destination'",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges="A0.1"),
    ),
    "no edge at all": (
        ct.EdgeError,
        "Cannot read 5 as an edge: expected a name such as 'Resid Start->Resid End', a pair "
        "(seq_idx, name), or an Edge.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=[5]),
    ),
    "a position of a model without": (
        ct.EdgeError,
        f"The edge '{EDGE}' was asked for at position 2, but the model was wrapped without positions.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=[(2, EDGE)]),
    ),
    "a position outside": (
        ct.EdgeError,
        f"Position 6 of the edge '{EDGE}' is outside the sequence: the model was wrapped with "
        "seq_len=6, so positions run from 0 to 5.",
        lambda m: ct.wrap(m.wrapped_model, seq_len=6).trace(
            CLEAN, corrupt=CORRUPT, edges=[(6, EDGE)]
        ),
    ),
    "edges and masks": (
        ct.InputError,
        BOTH_EDGES,
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges=[EDGE], masks={}),
    ),
    "masks of an unknown module": (
        ct.MaskError,
        "The masks name the module 'blocks.7.hook_mlp_in', which this model's graph does not have.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, masks={"blocks.7.hook_mlp_in": torch.ones(3)}),
    ),
    "masks of a wrong shape": (
        ct.MaskError,
        "The masks of 'blocks.0.hook_mlp_in' have the wrong shape: expected (5,) ([seq, head, source], "
        "each where it applies), got (3,).",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, masks={"blocks.0.hook_mlp_in": torch.ones(3)}),
    ),
    "masks that hold NaN": (
        ct.MaskError,
        "The masks of 'blocks.0.hook_mlp_in' hold Resid Start->MLP 0 = nan: expected finite numbers.",
        lambda m: m.trace(
            CLEAN, corrupt=CORRUPT, masks={"blocks.0.hook_mlp_in": torch.full((5,), float("nan"))}
        ),
    ),
    "a mask that is no number": (
        ct.MaskError,
        f"The mask of the edge '{EDGE}' is 'half': expected a finite number (0 = current, 1 = patched) "
        "or a tensor of one.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, edges={EDGE: "half"}),
    ),
    "clean and corrupt of unequal length": (
        ct.InputError,
        SAME_SHAPE + "(2, 6) and (2, 5) ([batch, seq]).",
        lambda m: m.trace(CLEAN, corrupt=tokens(2, seq=5), edges=[EDGE]),
    ),
    "clean and corrupt of unequal batch": (
        ct.InputError,
        SAME_SHAPE + "(2, 6) and (3, 6) ([batch, seq]).",
        lambda m: m.trace(CLEAN, corrupt=tokens(2, batch=3), edges=[EDGE]),
    ),
    "patched outputs of unequal length, by hand": (
        ct.InputError,
        "The patched outputs (resample) are for a batch of 2 × 5 tokens, but this pass runs 2 × 6.",
        lambda m: enter(m, m.source_outputs(tokens(2, seq=5)), edges=[EDGE]),
    ),
    "corrupt and patched": (
        ct.InputError,
        "Give either corrupt= or patched=, not both: each says what is patched in.",
        lambda m: m.trace(CLEAN, corrupt=CORRUPT, patched=m.source_outputs(CORRUPT), edges=[EDGE]),
    ),
    "edges and nothing to patch in": (
        ct.InputError,
        "There are edges to patch but nothing to patch in.",
        lambda m: m.trace(CLEAN, edges=[EDGE]),
    ),
    "edges and nothing to patch in, by hand": (
        ct.InputError,
        "There are edges to patch but nothing to patch in.",
        lambda m: enter(m, edges=[EDGE]),
    ),
    "text without a tokenizer": (ct.InputError, NO_TOKENIZER, lambda m: m.trace("a prompt")),
    "texts without a tokenizer": (ct.InputError, NO_TOKENIZER, lambda m: m.trace(["a", "b"])),
    "corrupt text without a tokenizer": (
        ct.InputError,
        NO_TOKENIZER,
        lambda m: m.trace(CLEAN, corrupt="a prompt", edges=[EDGE]),
    ),
    "token ids in a list": (ct.InputError, TOKENS_EXPECTED + "list.", lambda m: m.trace([[1, 2]])),
    "nothing to run": (ct.InputError, TOKENS_EXPECTED + "NoneType.", lambda m: m.trace(None)),
    "an empty list": (ct.InputError, TOKENS_EXPECTED + "list.", lambda m: m.source_outputs([])),
    "no prompts": (ct.InputError, "(0, 6)", lambda m: m.trace(CLEAN[:0])),
    "no tokens": (ct.InputError, "(2, 0)", lambda m: m.trace(CLEAN[:, :0])),
    "the wrapper again": (
        ct.AnatomyError,
        "This model is wrapped already; wrap its .wrapped_model to wrap it anew.",
        lambda m: ct.wrap(m),
    ),
    "no trace yet": (ct.NoTraceError, NO_PASS, lambda m: m.last_trace),
}
"""What the issue lists as bad input, as far as no figure is concerned."""


@pytest.mark.parametrize("what", BAD)
@pytest.mark.usefixtures("as_a_user")
def test_bad_input_is_refused_and_changes_nothing(what: str) -> None:
    kind, message, ask = BAD[what]
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    before = footprint(hooked)
    with pytest.raises(kind) as caught:
        ask(model)
    assert isinstance(caught.value, ct.CircuitTraceError)
    assert message in str(caught.value)
    assert footprint(hooked) == before
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[EDGE])
    assert [edge.name for edge in trace.edges] == [EDGE], (
        "the next request is as if nothing had been"
    )


SEQ_LEN = "seq_len must be a whole number of tokens, 1 or more, or None; got {}."
SLICE = "slice_output must be None, 'last_seq' or 'not_first_seq'; got {}."
BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "seq_len 0": ({"seq_len": 0}, SEQ_LEN.format("0")),
    "seq_len negative": ({"seq_len": -3}, SEQ_LEN.format("-3")),
    "seq_len fractional": ({"seq_len": 2.5}, SEQ_LEN.format("2.5")),
    "seq_len text": ({"seq_len": "6"}, SEQ_LEN.format("'6'")),
    "seq_len True": ({"seq_len": True}, SEQ_LEN.format("True")),
    "slice_output unknown": ({"slice_output": "last"}, SLICE.format("'last'")),
    "slice_output number": ({"slice_output": -1}, SLICE.format("-1")),
    "slice_output list": ({"slice_output": ["last_seq"]}, SLICE.format("['last_seq']")),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
@pytest.mark.usefixtures("as_a_user")
def test_options_out_of_range(what: str) -> None:
    options, message = BAD_OPTIONS[what]
    with pytest.raises(ct.InputError) as caught:
        ct.wrap(shared("hooked LN"), **options)
    assert str(caught.value) == message


def test_every_error_is_of_one_family_and_of_the_built_in_kind_that_a_reader_expects() -> None:
    kinds = {
        ct.AnatomyError: TypeError,
        ct.EdgeError: ValueError,
        ct.MaskError: ValueError,
        ct.InputError: ValueError,
        ct.NoTraceError: RuntimeError,
        ct.FigureError: ValueError,
    }
    for error, built_in in kinds.items():
        assert issubclass(error, ct.CircuitTraceError)
        assert issubclass(error, built_in)


def test_all_edges_of_a_node_are_its_ablation() -> None:
    model = wrapped("hooked LN")
    by_node = model.trace(tokens(1), corrupt=tokens(2), nodes=["A0.1", "MLP 0"])
    names = [edge.name for edge in model.edges if edge.src.name in ("A0.1", "MLP 0")]
    by_edge = model.trace(tokens(1), corrupt=tokens(2), edges=names)
    assert torch.equal(by_node.logits, by_edge.logits)
    assert [edge.name for edge in by_node.edges] == names


def test_nodes_take_masks_and_positions_and_give_way_to_edges() -> None:
    model = wrapped("hooked LN", 6)
    trace = model.trace(
        tokens(1),
        corrupt=tokens(2),
        nodes={(3, "A0.1"): 0.5, model.srcs[5]: 0.25},
        edges={(3, "A0.1->Resid End"): 0.0},
    )
    assert trace.edge("A0.1->MLP 1", 3).mask == 0.5
    assert trace.edge("A0.1->MLP 1", 2).mask == 0
    assert trace.edge("A0.1->Resid End", 3).mask == 0
    assert trace.edge(f"{model.srcs[5]}->Resid End", 5).mask == 0.25


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["A0.9"], r"Unknown source 'A0.9'\. Did you mean 'A0.3'"),
        (["A0.1.Q"], "can only be a destination"),
        ([(9, "A0.1")], "Position 9 of the node 'A0.1' is outside"),
        ([3], "Cannot read 3 as a node"),
        (7, "Cannot read 7 as nodes"),
    ],
)
def test_nodes_that_are_none(nodes: Any, message: str) -> None:
    with pytest.raises(ct.EdgeError, match=message):
        wrapped("hooked LN", 6).trace(tokens(1), corrupt=tokens(2), nodes=nodes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(1, 3), "whole numbers"),
        (torch.ones(1, 3, dtype=torch.bool), "whole numbers"),
        (torch.ones(1, 1, 3, dtype=torch.long), "whole numbers"),
        (torch.full((1, 3), 23), "run from 23 to 23; this model knows 0 to 22"),
        (torch.full((1, 3), -1), "run from -1"),
        (torch.ones(1, 17, dtype=torch.long), "17 tokens; this model's context is 16"),
    ],
)
def test_tokens_that_the_model_cannot_run(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ct.InputError, match=message):
        wrapped("hooked LN").source_outputs(data)


def test_wrapping_inside_an_open_patch() -> None:
    model = wrapped("hooked LN")
    with model.patch(), pytest.raises(ct.InputError, match="A patch is open on this model"):
        ct.wrap(model.wrapped_model)


@pytest.mark.usefixtures("as_a_user")
def test_numbers_of_numpy_are_whole_numbers_too() -> None:
    model = ct.wrap(CASES["hooked LN"].build(), seq_len=np.int64(6))
    assert model.seq_len == 6
    assert model.edge("A0.1->MLP 1", np.int64(3)).seq_idx == 3
    for odd in (True, 2.5, "3"):
        with pytest.raises(ct.EdgeError, match="expected a whole number"):
            model.edge("A0.1->MLP 1", odd)


def test_outputs_of_a_model_of_another_width_are_refused() -> None:
    wide = ct.wrap(build_hooked(d_model=12)).source_outputs(CORRUPT)
    with pytest.raises(ct.InputError, match=r"its stream is 12 wide \(d_model\), this one's 10"):
        wrapped("hooked LN").trace(CLEAN, patched=wide, edges=["A0.1->MLP 1"])


# --- nothing to patch ------------------------------------------------------------------------------

EMPTY: dict[str, Callable[[ct.PatchableModel], dict[str, Any]]] = {
    "masks of an empty circuit": lambda m: {
        "masks": {name: mask * 0 for name, mask in m.trace(CLEAN).masks.items()}
    },
    "no masks": lambda m: {"masks": {}},
    "no edges": lambda m: {"edges": []},
    "no nodes": lambda m: {"nodes": []},
}
NOT_EMPTY: dict[str, dict[str, Any]] = {
    "an edge at mask 0": {"edges": {"A0.0->Resid End": 0.0}},
    "a mask that learns": {
        "masks": {"blocks.1.hook_mlp_in": torch.zeros(10, requires_grad=True)},
    },
    "nothing asked for": {},
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_pass_that_patches_nothing_is_said(case: str, model: ct.PatchableModel) -> None:
    asked_for = EMPTY[case](model)
    with pytest.warns(UserWarning, match="^Nothing is patched in this pass: the masks are") as said:
        trace = model.trace(CLEAN, corrupt=CORRUPT, **asked_for)
    assert len(said) == 1
    assert_close(trace.logits, model(CLEAN).detach(), **CLOSE)


@pytest.mark.parametrize("case", NOT_EMPTY)
def test_masks_of_0_that_are_meant(case: str, model: ct.PatchableModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.trace(CLEAN, corrupt=CORRUPT, **NOT_EMPTY[case])
