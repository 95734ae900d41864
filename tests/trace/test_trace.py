"""The record of a pass: frozen, detached, outliving the pass, and right."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import CASES, TYPICAL, hooked, oracle, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT, OTHER = tokens(1, seq=SEQ), tokens(2, seq=SEQ), tokens(3, seq=SEQ)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
EDGES = {"A0.1->A1.2.Q": 1.0, "A0.3->MLP 1": 0.5, "MLP 0->Resid End": 0.0}


@pytest.fixture(params=TYPICAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> ct.PatchableModel:
    return wrapped(name)


@pytest.fixture
def trace(model: ct.PatchableModel) -> ct.Trace:
    return model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


def everything(trace: ct.Trace) -> dict[str, Tensor]:
    """A copy of every number that a trace gives."""
    found = {"logits": trace.logits, "tokens": trace.tokens, "current": trace.current.stack()}
    if trace.patched is not None:
        found["patched"] = trace.patched.stack()
    found |= {f"mask {key}": mask for key, mask in trace.masks.items()}
    for edge in trace.edges:
        found[f"received {edge}"] = trace.edge(edge.name, edge.seq_idx).received
    found["error"] = torch.tensor(trace.reconstruction_error())
    return {key: tensor.clone() for key, tensor in found.items()}


def check_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key


# --- what it holds ------------------------------------------------------------------------------


def test_it_holds_tokens_logits_edges_and_masks(model: ct.PatchableModel, trace: ct.Trace) -> None:
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        logits = model(CLEAN)
    assert torch.equal(trace.tokens, CLEAN)
    assert torch.equal(trace.logits, logits)
    assert (trace.batch, trace.seq) == (2, SEQ)
    in_order = ["A0.1->A1.2.Q", "A0.3->MLP 1", "MLP 0->Resid End"]
    assert [edge.name for edge in trace.edges] == in_order, "those at mask 0 too"
    assert sum(float(mask.abs().sum()) for mask in trace.masks.values()) == 1.5
    assert trace.graph is model.graph
    assert repr(trace) == "<Trace: batch 2, seq 6, 11 sources, 3 edges patched>"


def test_edges_are_the_oracles(name: str, trace: ct.Trace) -> None:
    corrupt = oracle(name).run(CORRUPT).wrote
    for edge_name, mask in EDGES.items():
        flow = trace.edge(edge_name)
        current = trace.current[edge_name.split("->")[0]]
        patched = corrupt[edge_name.split("->")[0]]
        assert flow.mask == mask
        assert torch.equal(flow.current, current)
        assert_close(flow.patched, patched, **CLOSE)
        assert_close(flow.delta, patched - current, **CLOSE)
        assert_close(flow.received, (1 - mask) * current + mask * patched, **CLOSE)
        assert repr(flow) == f"<EdgeFlow {edge_name}: mask {mask}>"


def test_an_edge_that_was_not_patched_carries_the_current_output(trace: ct.Trace) -> None:
    flow = trace.edge("A0.0->Resid End")
    assert flow.mask == 0.0
    assert torch.equal(flow.received, trace.current["A0.0"])
    assert torch.equal(flow.patched, trace.patched["A0.0"]), "what would have been patched in"


def test_a_pass_that_was_only_recorded(model: ct.PatchableModel) -> None:
    trace = model.trace(CLEAN)
    assert trace.patched is None
    assert list(trace.edges) == []
    flow = trace.edge("A0.1->A1.2.Q")
    assert (flow.patched, flow.delta, flow.mask) == (None, None, 0.0)
    assert torch.equal(flow.received, flow.current)
    dest = trace.dest("A1.2.Q")
    assert (dest.patched, dest.delta) == (None, None)
    assert torch.equal(dest.received, dest.current)
    assert not dest.mask.any()
    assert repr(trace) == "<Trace: batch 2, seq 6, 11 sources, nothing patched>"


def test_a_destination(name: str, model: ct.PatchableModel, trace: ct.Trace) -> None:
    second = oracle(name)
    expected = second.run(CLEAN, second.run(CORRUPT).wrote, [])
    dest = trace.dest("A1.2.Q")
    sources = ["Resid Start", "A0.0", "A0.1", "A0.2", "A0.3", "MLP 0"]
    assert list(dest.sources) == sources
    assert dest.current.shape == dest.patched.shape == dest.received.shape
    assert dest.current.shape == (6, 2, SEQ, model.cfg.d_model)
    assert dest.mask.tolist() == [0, 0, 1, 0, 0, 0]
    for row, source in enumerate(sources):
        assert_close(dest.current[row], expected.wrote[source], **CLOSE)
        assert torch.equal(dest[source].current, dest.current[row])
        assert_close(dest.delta[row], dest.patched[row] - dest.current[row])
        from_it = dest.patched if source == "A0.1" else dest.current
        assert_close(dest.received[row], from_it[row])
    assert repr(dest) == "<DestFlow A1.2.Q: 6 sources>"


@pytest.mark.parametrize(
    ("dest", "hint"),
    [
        ("A9.0.Q", " Did you mean 'A1.0.Q' or 'A0.0.Q' or 'A1.3.Q'?"),
        (
            "A1.2",
            " 'A1.2' can only be a source. Did you mean 'A1.2.V' or 'A1.2.Q' or 'A1.2.K'?",
        ),
        ("Resid Start", " 'Resid Start' can only be a source. Did you mean 'Resid End'?"),
        ("", ""),
    ],
)
def test_an_unknown_destination(dest: str, hint: str) -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    with pytest.raises(ct.EdgeError) as caught:
        trace.dest(dest)
    assert str(caught.value) == (
        f"Unknown destination {dest!r}.{hint} The destinations run from 'A0.0.Q' to 'Resid End'."
    )


def test_an_unknown_edge() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    with pytest.raises(ct.EdgeError, match=r"Unknown source 'A0\.7' .* Did you mean 'A0\.3'"):
        trace.edge("A0.7->Resid End")
    with pytest.raises(ct.EdgeError, match="wrapped without positions"):
        trace.edge("A0.1->Resid End", 2)
    with pytest.raises(ct.EdgeError, match="does not write before"):
        trace.dest("A1.0.Q")["A1.1"]


def test_positions(name: str) -> None:
    model = wrapped(name, SEQ)
    asked = {(1, "A0.1->A1.2.Q"): 1.0, (4, "A0.1->A1.2.Q"): 0.5}
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=asked)
    assert [str(edge) for edge in trace.edges] == ["A0.1->A1.2.Q @1", "A0.1->A1.2.Q @4"]
    at = [trace.edge("A0.1->A1.2.Q", position) for position in range(SEQ)]
    assert [flow.mask for flow in at] == [0.0, 1.0, 0.0, 0.0, 0.5, 0.0]
    whole = trace.edge("A0.1->A1.2.Q")
    assert whole.mask.tolist() == [0.0, 1.0, 0.0, 0.0, 0.5, 0.0]  # pyright: ignore[reportAttributeAccessIssue]
    current, patched = trace.current["A0.1"], trace.patched["A0.1"]
    mask = whole.mask[None, :, None]
    assert_close(whole.received, (1 - mask) * current + mask * patched)
    for position, flow in enumerate(at):
        assert_close(flow.received[:, position], whole.received[:, position])
    dest = trace.dest("A1.2.Q")
    assert dest.mask.shape == (SEQ, 6)
    assert dest.mask[4].tolist() == [0, 0, 0.5, 0, 0, 0]
    assert_close(dest.received[2], whole.received)
    with pytest.raises(ct.EdgeError, match=r"Position 6 .* positions run from 0 to 5"):
        trace.edge("A0.1->A1.2.Q", 6)


def test_a_pass_of_another_length_than_the_positions_is_refused() -> None:
    """Also where nothing is patched: what is asked of its record by position would have no answer."""
    with pytest.raises(ct.InputError, match=r"seq_len=9, but this pass has 6 positions"):
        wrapped("hooked LN", 9).trace(CLEAN, corrupt=CORRUPT)


# --- it stays -----------------------------------------------------------------------------------


def test_it_is_frozen(trace: ct.Trace) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.logits = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.edge("A0.1->A1.2.Q").edge = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        trace.current["A0.1"] = torch.zeros(1)


def test_it_outlives_its_context_and_later_passes(model: ct.PatchableModel) -> None:
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model(CLEAN)
        trace = model.last_trace
        before = everything(trace)
        model(OTHER)
    model.trace(CORRUPT, corrupt=OTHER, edges=["A0.0->Resid End"])
    model(OTHER)
    check_same(before, everything(trace))
    assert model.last_trace is not trace


def test_it_outlives_the_wrapper_and_lets_it_go(name: str) -> None:
    hooked_model = CASES[name].build()
    model = ct.wrap(hooked_model)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    before = everything(trace)
    gone = weakref.ref(hooked_model.blocks[0].mlp)
    del model, hooked_model
    gc.collect()
    check_same(before, everything(trace))
    assert trace.table().shape == (3, 17)
    assert gone() is None, "a record must not keep the model alive"


def test_nothing_in_it_has_a_history(model: ct.PatchableModel) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        assert model(CLEAN).requires_grad
    found = everything(model.last_trace)
    assert [key for key, tensor in found.items() if tensor.requires_grad or tensor.grad_fn] == []


def test_logits_changed_in_place_are_refused() -> None:
    """The trace shares the memory of the logits that the user got: copying them costs too much."""
    model = wrapped("hooked LN")
    with torch.no_grad(), model.patch():
        logits = model(CLEAN)
        assert torch.equal(model.last_trace.logits, logits)
        logits[:, -1] = float("-inf")
    with pytest.raises(ct.InputError, match=r"were changed in place afterwards.*logits\.clone\(\)"):
        model.last_trace.logits  # noqa: B018


def test_the_users_tokens_are_the_users_to_change() -> None:
    model, ids = wrapped("hooked LN"), CLEAN.clone()
    trace = model.trace(ids)
    ids.zero_()
    assert torch.equal(trace.tokens, CLEAN)


def test_the_users_masks_are_the_users_to_change() -> None:
    """An optimizer's step after the pass must not rewrite what the pass was patched with."""
    model = wrapped("hooked LN")
    scores = {"blocks.1.hook_mlp_in": torch.zeros(10)}
    scores["blocks.1.hook_mlp_in"][3] = 0.5
    trace = model.trace(CLEAN, corrupt=CORRUPT, masks=scores)
    scores["blocks.1.hook_mlp_in"].zero_()
    assert trace.masks["blocks.1.hook_mlp_in"].tolist() == [0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0]
    assert [edge.name for edge in trace.edges] == ["A0.2->MLP 1"]
    assert trace.reconstruction_error() < 1e-5


def test_masks_that_a_trace_gives_are_no_way_into_it(trace: ct.Trace) -> None:
    before = everything(trace)
    for mask in wrapped("hooked LN").trace(CLEAN).masks.values():
        mask.fill_(9.0)
    check_same(before, everything(trace))
    assert not any(mask.any() for mask in wrapped("hooked LN").trace(CLEAN).masks.values())


CHANGED = (
    "The model's output weights were changed in place after this pass was recorded, so what its heads "
    "wrote can no longer be computed: a record keeps them as narrow as the model does (hook_z). Make "
    "tables, figures and tensors before such a step, or trace again."
)


@pytest.mark.parametrize("name", ["hooked LN", "bridge GPT-2", "bridge Llama", "bridge native"])
def test_weights_changed_after_the_pass_are_noticed(name: str) -> None:
    """A gradient step, say: the heads' outputs are projected when they are asked for."""
    hooked_model = CASES[name].build()
    model = ct.wrap(hooked_model)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    before = trace.current["A0.1"].clone()
    optimizer = torch.optim.SGD(hooked_model.parameters(), lr=0.1)
    hooked_model(CLEAN).sum().backward()
    optimizer.step()
    asks: dict[str, Any] = {
        "an edge": lambda: trace.edge("A0.1->A1.2.Q").current,
        "what was patched": lambda: trace.edge("A0.1->A1.2.Q").patched,
        "what was received": lambda: trace.edge("A0.1->A1.2.Q").received,
        "a destination": lambda: trace.dest("MLP 1").received,
        "the table": trace.table,
        "the check": trace.reconstruction_error,
        "all of it": trace.current.stack,
    }
    for what, ask in asks.items():
        with pytest.raises(ct.InputError) as caught:
            ask()
        assert str(caught.value) == CHANGED, what
    again = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert again.reconstruction_error() < 1e-5
    assert (again.current["A0.1"] - before).abs().max() > 1e-2


def test_biases_changed_after_the_pass_do_not_make_the_record_wrong() -> None:
    model = ct.wrap(hooked())
    trace = model.trace(CLEAN)
    with torch.no_grad():
        model.wrapped_model.blocks[0].attn.b_O.add_(2)  # pyright: ignore[reportAttributeAccessIssue]
    assert trace.reconstruction_error() < 1e-5


@pytest.mark.parametrize("batch_idx", [-1, 2, 1.5, "0", None])
@pytest.mark.usefixtures("as_a_user")
def test_a_batch_element_that_there_is_not(batch_idx: object) -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    for ask in (lambda: trace.table(batch_idx=batch_idx), lambda: trace.check_batch_idx(batch_idx)):
        with pytest.raises(ct.InputError) as caught:
            ask()
        assert str(caught.value) == (
            f'batch_idx={batch_idx!r} is outside the traced batch: expected 0 to 1, or "mean".'
        )


def test_tokens_as_text_come_from_the_anatomy() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    assert trace.token_strings() is None
    spelling = dataclasses.replace(trace, to_strings=lambda row: [f"<{int(t)}>" for t in row])
    assert spelling.token_strings(1) == [f"<{token}>" for token in CLEAN[1].tolist()]


def test_a_pair_names_an_edge_at_a_position() -> None:
    trace = wrapped("hooked LN", CLEAN.shape[1]).trace(CLEAN)
    assert trace.edge((3, "A0.1->Resid End")).edge == trace.edge("A0.1->Resid End", 3).edge


def test_writing_to_what_is_read_leaves_the_record_as_it_was() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    for name in ("Resid Start", "A0.1", "MLP 0"):
        before = trace.current[name].clone()
        trace.current[name].zero_()
        torch.testing.assert_close(trace.current[name], before)


@pytest.mark.parametrize("how", ["bridge GPT-2", "bundled"])
def test_the_mask_of_a_pass_of_ones_own_says_what_is_padding(how: str) -> None:
    """Where a pass inside `patch` is given an attention mask, padding counts as little as in `trace`."""
    bare = ct.load_model("bundled") if how == "bundled" else CASES[how].build()
    model = ct.wrap(bare)
    clean, corrupt = (tokens(seed, batch=2, seq=SEQ) % 10 for seed in (1, 2))
    mask = torch.ones(2, SEQ, dtype=torch.long)
    mask[0, :2] = 0
    with torch.no_grad(), model.patch(model.source_outputs(corrupt), edges=["MLP 0->Resid End"]):
        bare(clean, attention_mask=mask)
        assert torch.equal(model.last_trace.real_positions, mask == 1)
        bare(clean)
        assert model.last_trace.real is None
        bare(clean, attention_mask=torch.ones(2, SEQ, dtype=torch.long))
        assert model.last_trace.real_positions.all()
    traced = model.trace(
        clean, corrupt=corrupt, edges=["MLP 0->Resid End"], forward={"attention_mask": mask}
    )
    assert torch.equal(traced.real_positions, mask == 1)
