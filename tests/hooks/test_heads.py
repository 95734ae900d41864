"""Attention patterns, queries, keys and values of a pass, against TransformerLens' own hook points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.anatomy import HeadsPoint
from circuit_trace.record import HeadRecord
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.footprint import footprint, lent, n_hooks
from tests.models import (
    CASES,
    D_HEAD,
    HAS_HOOKED,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    TWO,
    hooked,
    oracle,
    shape_of,
    shared,
    tokens,
    wrapped,
)

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
"""Float32 sums in another order, as in `tests/test_exactness.py`."""
HEADS = [f"A{layer}.{head}" for layer in range(N_LAYERS) for head in range(N_HEADS)]
ALWAYS = ("pattern", "q", "k", "v")
ROTATED = ("rot_q", "rot_k")

needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="needs HookedTransformer")


@pytest.fixture(params=TWO)
def model(request: pytest.FixtureRequest) -> Iterator[ct.PatchableModel]:
    with lent(shared(request.param)) as hooked:
        yield ct.wrap(hooked, verify=False)


def point(name: str, what: str) -> str:
    """TransformerLens' name of the point where a head's tensor passes."""
    return f"blocks.{name[1:].split('.')[0]}.attn.hook_{what}"


def of_head(whole: Tensor, name: str, what: str) -> Tensor:
    """A head's part of a tensor in TransformerLens' layouts, its key-value head's where shared."""
    head = int(name.split(".")[1])
    if what == "pattern":
        return whole[:, head]
    assert whole.ndim == 4
    assert whole.shape[2] in (N_HEADS, N_KV_HEADS)
    return whole[:, :, head // (N_HEADS // whole.shape[2])]


def check(record: HeadRecord, expected: Mapping[str, Tensor]) -> None:
    """Compare every tensor that a record has."""
    for what in ALWAYS + ROTATED:
        found = getattr(record, what)
        if what in ALWAYS or found is not None:
            assert_close(
                found, of_head(expected[point(record.name, what)], record.name, what), **CLOSE
            )


@pytest.mark.parametrize("name", CASES)
def test_an_unpatched_pass_shows_what_transformer_lens_caches(name: str) -> None:
    trace = wrapped(name).trace(CLEAN, heads="*")
    with torch.no_grad():
        _, cache = shared(name).run_with_cache(CLEAN)
    assert list(trace.heads) == HEADS
    for head in HEADS:
        record = trace.head(head)
        check(record, cache)
        for what in ROTATED:
            assert (getattr(record, what) is None) == (point(head, what) not in cache)
        assert record.pattern.shape == (2, SEQ, SEQ)
        assert record.k.shape == record.v.shape == record.q.shape == (2, SEQ, D_HEAD)
        z = of_head(cache[point(head, "z")], head, "z")
        assert_close(record.pattern @ record.v, z, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_a_patched_pass_shows_the_oracles(name: str) -> None:
    asks = shape_of(name).asks((-0.3, 0.5, 1.0), n=30, seed=4)
    asked = ["A0.2", "A1.*"]
    trace = wrapped(name).trace(
        CLEAN, corrupt=CORRUPT, edges={ask.name: ask.mask for ask in asks}, heads=asked
    )
    second, seen = oracle(name), {}
    keys = {point(head, what) for head in trace.heads for what in ALWAYS + ROTATED}

    def see(key: str) -> tuple[str, Any]:
        def record(tensor: Tensor, hook: Any) -> None:
            seen[key] = tensor.clone()

        return key, record

    corrupt = second.run(CORRUPT)
    shown = [see(key) for key in sorted(keys & second.model.hook_dict.keys())]
    second.run(CLEAN, corrupt.wrote, asks, users_hooks=shown)
    assert trace.heads == ("A0.2", *HEADS[N_HEADS:])
    for head in trace.heads:
        check(trace.head(head), seen)
    unpatched = wrapped(name).trace(CLEAN, heads="A1.*")
    moved = [trace.head(h).pattern - unpatched.head(h).pattern for h in unpatched.heads]
    assert max(float(one.abs().max()) for one in moved) > 1e-2


USED = {
    "hooked LN": ("q", "k"),
    "bridge GPT-2": ("q", "k"),
    "hooked grouped": ("q", "k"),
    "hooked rotary, gated MLP": ROTATED,
    "hooked norms after alone": ROTATED,
    "bridge Llama": ROTATED,
}
"""Which tensors attention multiplies in a model."""


@pytest.mark.parametrize("name", [name for name in USED if name in CASES])
def test_queries_and_keys_make_the_pattern(name: str) -> None:
    trace = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"], heads="*")
    future = torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1)
    for head in HEADS:
        record = trace.head(head)
        q, k = (getattr(record, what) for what in USED[name])
        scores = (q @ k.transpose(1, 2) / D_HEAD**0.5).masked_fill(future, -torch.inf)
        assert_close(scores.softmax(-1), record.pattern, **CLOSE)


# --- what it costs ------------------------------------------------------------------------------


def test_nothing_is_attached_or_kept_unless_asked(model: ct.PatchableModel) -> None:
    with model.patch():
        plain = n_hooks(model.wrapped_model)
        model(CLEAN)
    assert model.last_trace.heads == ()
    assert model.last_trace.head_tensors == {}
    with model.patch(heads=[]):
        assert n_hooks(model.wrapped_model) == plain
    with model.patch(heads="A1.2"):
        assert n_hooks(model.wrapped_model) > plain


def test_only_the_asked_heads_memory_is_kept(model: ct.PatchableModel) -> None:
    trace = model.trace(CLEAN, heads=["A1.2", "A0.*"])
    for name in trace.heads:
        for what, tensor in trace.head_tensors[name].items():
            width = SEQ if what == "pattern" else D_HEAD
            assert tensor.untyped_storage().nbytes() == 2 * SEQ * width * tensor.element_size()
            assert not tensor.requires_grad


def test_the_model_is_left_as_it_was(model: ct.PatchableModel) -> None:
    before = footprint(model.wrapped_model)
    model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"], heads="*")
    with pytest.raises(ct.EdgeError), model.patch(heads="A9.*"):
        pass
    assert footprint(model.wrapped_model) == before


def test_the_logits_are_the_same_bit_for_bit(model: ct.PatchableModel) -> None:
    edges = ["A0.1->A1.2.Q", "A0.2->A1.1.V"]
    plain = model.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    assert torch.equal(
        model.trace(CLEAN, corrupt=CORRUPT, edges=edges, heads="*").logits, plain.logits
    )


def test_gradients_flow_and_are_not_kept(model: ct.PatchableModel) -> None:
    with model.patch(heads="A0.1"):
        logits = model(CLEAN)
    assert logits.requires_grad
    assert not model.last_trace.head("A0.1").pattern.requires_grad


# --- contexts and users' hooks ------------------------------------------------------------------


def test_contexts_inside_one_another_record_the_heads_of_all(model: ct.PatchableModel) -> None:
    patched = model.source_outputs(CORRUPT)
    edge = ["A0.1->A1.2.Q"]
    with model.patch(patched, edges=edge, heads=["A1.2"]):
        with model.patch(patched, edges=edge, heads=["A0.3", "A1.2"]):
            model(CLEAN)
        both = model.last_trace
        model(CLEAN)
    assert both.heads == ("A0.3", "A1.2")
    assert model.last_trace.heads == ("A1.2",)
    assert torch.equal(model.last_trace.head("A1.2").q, both.head("A1.2").q)


def test_each_pass_has_its_own(model: ct.PatchableModel) -> None:
    with model.patch(heads="A1.2"):
        model(CLEAN)
        first = model.last_trace.head("A1.2")
        before = first.q
        model(CORRUPT)
    assert torch.equal(first.q, before)
    assert (model.last_trace.head("A1.2").q - before).abs().max() > 1e-2


def double(tensor: Tensor, hook: Any) -> Tensor:
    return tensor * 2


def test_what_a_users_hook_makes_of_a_pattern_is_what_the_heads_used(
    model: ct.PatchableModel,
) -> None:
    plain = model.trace(CLEAN, heads="A0.*").head("A0.1")
    model.wrapped_model.blocks[0].attn.hook_pattern.add_hook(double)  # pyright: ignore[reportAttributeAccessIssue]
    trace = model.trace(CLEAN, heads="A0.*")
    head = trace.head("A0.1")
    assert_close(head.pattern, plain.pattern * 2)
    W_O = model.wrapped_model.blocks[0].attn.W_O[1]  # pyright: ignore[reportAttributeAccessIssue]
    assert_close(head.pattern @ head.v @ W_O, trace.current["A0.1"], **CLOSE)


@needs_hooked
def test_keys_shown_once_per_query_head() -> None:
    """A flag set after the model was wrapped: each head still gets its own."""
    own = hooked(n_key_value_heads=N_KV_HEADS)
    model = ct.wrap(own)
    grouped = model.trace(CLEAN, heads="*")
    own.set_ungroup_grouped_query_attention(True)
    ungrouped = model.trace(CLEAN, heads="*")
    for name in HEADS:
        assert_close(ungrouped.head(name).k, grouped.head(name).k, **CLOSE)
        assert_close(ungrouped.head(name).v, grouped.head(name).v, **CLOSE)


# --- refusals -----------------------------------------------------------------------------------


def test_an_anatomy_without_such_points_is_refused() -> None:
    toy = ToyModel()
    model = ct.wrap(toy, anatomy=toy_anatomy(toy))
    stream = torch.ones(1, 3, 2)
    with model.patch():
        attached = n_hooks(toy)
        with pytest.raises(ct.AnatomyError) as caught, model.patch(heads="B1.*"):
            pass
        assert n_hooks(toy) == attached
        model(stream)
    assert str(caught.value) == (
        "How 'B1.0' attends cannot be recorded: the model's anatomy does not say where its pattern, "
        "queries, keys and values pass. Leave heads= out, or give that SourceSite its "
        "attention={'pattern': HeadsPoint(...), 'q': ...}."
    )
    assert n_hooks(toy) == 0


@pytest.mark.parametrize("what", ["q", "pattern"])
def test_points_where_something_else_passes_are_refused(what: Any) -> None:
    """The stream has no heads: three do not divide its width, and it is no pattern."""
    name = TWO[-1]
    anatomy = wrapped(name).anatomy
    site = anatomy.sources[1]
    false = HeadsPoint(anatomy.dests[0].stream, 3, heads_first=what == "pattern")
    false_site = replace(site, attention={**site.attention, what: false})
    sources = (anatomy.sources[0], false_site, *anatomy.sources[2:])
    model = ct.wrap(shared(name), anatomy=replace(anatomy, sources=sources), verify=False)
    with pytest.raises(ct.InputError, match=rf"The '{what}' of 3 heads, among them 'A0.1', was to"):
        model.trace(CLEAN, heads="A0.1")
    assert model.trace(CLEAN, heads="A1.1").heads == ("A1.1",)
