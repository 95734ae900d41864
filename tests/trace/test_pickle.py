"""A pickled or copied record gives the same answers, in another process and without its model."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import pickletools
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.plan import SiteOutput
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.models import CASES, HAS_BRIDGE, HAS_HOOKED, TYPICAL, wrapped
from tests.trace.test_saved import CLEAN as TOKENS
from tests.trace.test_saved import CORRUPT as OTHER_TOKENS
from tests.trace.test_saved import MADE, answers, bundled, check_same, edges_of, toy

READ = {"direction": ANSWERS, "n_tokens": 3}
EDGES = {"A1.0->Resid End": 1.0, "MLP 0->A1.0.V": 0.5}


def over(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


WAYS = {"pickled": over, "copied": copy.deepcopy, "pickled twice": lambda value: over(over(value))}


def fresh(kind: str) -> ct.PatchableModel:
    return ct.wrap(ct.load_model("bundled", kind=kind))


KINDS = [kind for kind, has in (("hooked", HAS_HOOKED), ("bridge", HAS_BRIDGE)) if has]


@pytest.mark.parametrize("made", MADE)
def test_a_trace_of_every_kind(made: str) -> None:
    trace = MADE[made]()
    check_same(over(trace), trace)


@pytest.mark.parametrize("name", CASES)
def test_a_trace_of_every_model(name: str) -> None:
    trace = wrapped(name).trace(TOKENS, corrupt=OTHER_TOKENS, edges=edges_of(name))
    check_same(over(trace), trace)


@pytest.mark.parametrize("way", WAYS)
def test_outputs_are_still_read_as_tokens(way: str) -> None:
    trace = bundled()
    found = WAYS[way](trace)
    check_same(found, trace)
    for element in (0, 1, "mean"):
        expected = trace.table(batch_idx=element, **READ)
        assert found.table(batch_idx=element, **READ).equals(expected)
    other = WAYS[way](trace.diff(trace))
    assert other.top(5).equals(trace.diff(trace).top(5))
    assert found.draw(label="tokens").to_json() == trace.draw(label="tokens").to_json()


def test_a_trace_without_unembedding_or_tokens() -> None:
    check_same(over(toy(3)), toy(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_plain_data(kind: str) -> None:
    """What it asks for by name is ours and torch's: no model, no tokenizer, nothing of others."""
    model = fresh(kind)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES, heads="A1.*")
    plain = {"circuit_trace", "torch", "collections", "_codecs"}
    for value in (trace, trace.diff(trace), trace.current, trace.head("A1.0")):
        asked = list(pickletools.genops(pickle.dumps(value, protocol=2)))
        names = {str(argument) for code, argument, _ in asked if code.name == "GLOBAL"}
        assert names
        assert {name.split(" ")[0].split(".")[0] for name in names} <= plain


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_weights_that_change_later_change_nothing_in_a_copy(kind: str) -> None:
    model = fresh(kind)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    outputs = model.source_outputs(CORRUPT)
    before = answers(trace), outputs.stack()
    found, found_outputs = over(trace), over(outputs)
    deep, deep_outputs = copy.deepcopy((trace, outputs))
    for parameter in model.parameters():
        parameter.mul_(1.5)
    for one in (found, deep):
        now = answers(one)
        for name, value in before[0].items():
            is_same = (
                torch.equal(now[name], value) if isinstance(value, Tensor) else now[name] == value
            )
            assert is_same, name
    for one in (found_outputs, deep_outputs):
        assert torch.equal(one.stack(), before[1])
    for late in (trace, outputs):
        with pytest.raises(ct.InputError, match="output weights were changed in place"):
            pickle.dumps(late)


@pytest.mark.parametrize("name", TYPICAL)
@torch.no_grad()
def test_pickled_outputs_are_patched_in(name: str) -> None:
    model = wrapped(name)
    outputs = model.source_outputs(OTHER_TOKENS)
    logits = []
    for one in (outputs, over(outputs)):
        with model.patch(one, edges=edges_of(name)):
            logits.append(model(TOKENS))
    assert_close(*logits)  # with weights of its own another order of additions


def test_a_pickle_is_no_larger_than_its_numbers() -> None:
    """Also where these lie in a larger tensor, and a layer's weights go in once."""
    large = torch.randn(64, 4, 2, 8)
    part = SiteOutput(large[:1], torch.randn(9, 2, 8, 16)[3], torch.randn(16))
    found = over(part)
    assert torch.equal(found.project([0, 1]), part.project([0, 1]))
    assert len(pickle.dumps(part)) < 2 * (4 * 2 * 8 + 2 * 8 * 16 + 16) * 4
    model = wrapped(TYPICAL[0])
    one, both = model.trace(TOKENS), model.trace(TOKENS, corrupt=OTHER_TOKENS)
    codes = sum(site.code.nbytes for site in both.current.sites)
    assert len(pickle.dumps(both)) - len(pickle.dumps(one)) < codes + 4_000


def test_a_shallow_copy_is_the_record_itself() -> None:
    trace = toy()
    assert copy.copy(trace) is trace


# --- other processes ----------------------------------------------------------------------------


def in_a_worker(outputs: ct.SourceOutputs, trace: ct.Trace) -> tuple[ct.Trace, Any, Any]:
    """Patches what it is sent in, reads the trace that it is sent, and sends its own back."""
    model = ct.wrap(ct.load_model("bundled"))
    with torch.no_grad(), model.patch(outputs, edges=EDGES):
        model(CLEAN)
    return model.last_trace, trace.table("*->Resid End", **READ), trace.logits


def test_a_spawned_worker_takes_and_gives_records() -> None:
    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        sent = pool.submit(in_a_worker, model.source_outputs(CORRUPT), trace)
        found, table, logits = sent.result(timeout=300)
    assert_close(found.logits, trace.logits)
    own = trace.table(**READ, compare=("current", "patched"))  # the worker knew no clean pass
    assert found.table(**READ)["promotes"].tolist() == own["promotes"].tolist()
    assert torch.equal(logits, trace.logits)
    assert table.equals(trace.table("*->Resid End", **READ))


# --- wrapped models -----------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_HOOKED, reason="no HookedTransformer in this TransformerLens")
@pytest.mark.parametrize("way", [over, copy.deepcopy, copy.copy])
def test_a_wrapped_model(way: Any) -> None:
    model = ct.wrap(ct.load_model("bundled"), seq_len=15, slice_output="last_seq")
    found = way(model)
    assert (found.seq_len, found.out_slice, found.n_edges) == (15, model.out_slice, model.n_edges)
    assert (found.wrapped_model is model.wrapped_model) == (way is copy.copy)
    asked = {"corrupt": CORRUPT, "edges": [(14, "A1.0->Resid End")]}
    assert torch.equal(found.trace(CLEAN, **asked).logits, model.trace(CLEAN, **asked).logits)


def test_wrapped_models_that_cannot_be_pickled_say_so() -> None:
    model = ct.wrap(ct.load_model("bundled"))
    with model.patch(), pytest.raises(ct.InputError, match="A patch is open on this model"):
        pickle.dumps(model)
    model.wrapped_model.extra = lambda: None
    kind = type(model.wrapped_model).__name__
    with pytest.raises(ct.InputError, match=f"^A {kind} cannot be pickled .*wrap the model where"):
        pickle.dumps(model)


def test_a_model_of_an_anatomy_of_its_own_is_not_copied() -> None:
    model = ToyModel()
    with pytest.raises(ct.AnatomyError, match="wrapped with an anatomy of your own"):
        pickle.dumps(ct.wrap(model, anatomy=toy_anatomy(model)))
