"""Patched logits and records against the oracle, for every kind of model.

The oracle (`tests/oracle.py`) is TransformerLens itself, on a twin with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import (
    CASES,
    D_VOCAB,
    N_HEADS,
    TWO,
    copy_of,
    oracle,
    shape_of,
    shared,
    tokens,
    wrapped,
)
from tests.oracle import Ask, Pass

ONE = TWO[0]
SEQ = 6
CLEAN, CORRUPT = tokens(seed=1, seq=SEQ), tokens(seed=2, seq=SEQ)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
"""Float32 sums in another order: 1e-6 to 1e-5 is what is seen, a forgotten bias gives 1e-1."""
BIG = 1e-2
"""A change that no rounding explains."""

BINARY, ANY = (1.0,), (-1.5, -0.3, 0.25, 0.5, 1.0, 1.7)


@pytest.fixture(autouse=True)
def _check_types_of_one_model_only(request: pytest.FixtureRequest) -> None:
    """Types are checked on the first model; on the others it would only take time."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("name") != next(iter(CASES)):
        request.getfixturevalue("as_a_user")


WITH_HEADS_ALONE = [
    name for name in CASES if CASES[name].n_kv_heads == N_HEADS and name != "hooked ungrouped"
]
"""Models whose heads have keys and values of their own: `separate_qkv=False` needs it. One whose
shared heads were ungrouped has too, but TransformerLens' `use_attn_in` refuses it."""


@cache
def corrupt_pass(name: str, separate_qkv: bool = True) -> Pass:
    return oracle(name, separate_qkv).run(CORRUPT)


@cache
def clean_pass(name: str) -> Pass:
    return oracle(name).run(CLEAN)


def as_edges_argument(asks: Sequence[Ask]) -> dict[Any, float]:
    return {a.name if a.seq_idx is None else (a.seq_idx, a.name): a.mask for a in asks}


def check_against_oracle(
    name: str, asks: Sequence[Ask], seq_len: int | None, how: str, separate_qkv: bool = True
) -> None:
    """Trace those edges and compare logits, sources, destinations and edges with the oracle."""
    model = wrapped(name, seq_len, separate_qkv)
    scores = shape_of(name, seq_len, separate_qkv).prune_scores(asks)
    ask_for: dict[str, Any] = {
        "list": {"edges": list(as_edges_argument(asks))},
        "mapping": {"edges": as_edges_argument(asks)},
        "scores": {"masks": scores},
    }[how]
    trace = model.trace(CLEAN, corrupt=CORRUPT, **ask_for)

    second, corrupt = oracle(name, separate_qkv), corrupt_pass(name, separate_qkv)
    expected = second.run(CLEAN, corrupt.wrote, asks)
    assert_close(trace.logits, expected.logits, **CLOSE)
    assert list(trace.current) == list(expected.wrote)
    current, patched = trace.current.stack(), trace.patched.stack()
    assert_close(current, torch.stack(list(expected.wrote.values())), **CLOSE)
    assert_close(patched, torch.stack(list(corrupt.wrote.values())), **CLOSE)
    assert {edge.name for edge in trace.edges} == {ask.name for ask in asks}
    assert trace.masks.keys() == scores.keys()
    for module, dests in second.shape.modules.items():
        mask = scores[module]
        assert torch.equal(trace.masks[module], mask), module
        rows = mask if "mlp" not in module and "resid" not in module else mask.unsqueeze(-2)
        rows = rows if seq_len else rows.expand(SEQ, *rows.shape)
        n = rows.shape[-1]
        changes = torch.einsum("phn,nbpd->hbpd", rows, patched[:n] - current[:n])
        for dest, change in zip(dests, changes, strict=True):
            received = current[:n].sum(0) + change + second.bias_before(dest, expected)
            assert_close(received, expected.read[dest], **CLOSE)
    for ask in asks[:3]:
        check_edge(trace, ask, expected, corrupt)
    assert trace.reconstruction_error() < 1e-5


def check_edge(trace: ct.Trace, ask: Ask, expected: Pass, corrupt: Pass) -> None:
    flow = trace.edge(ask.name, ask.seq_idx)
    current, patched = expected.wrote[ask.src], corrupt.wrote[ask.src]
    at = slice(None) if ask.seq_idx is None else ask.seq_idx
    received = (1 - ask.mask) * current + ask.mask * patched
    assert_close(flow.current, current, **CLOSE)
    assert_close(flow.patched, patched, **CLOSE)
    assert_close(flow.delta, patched - current, **CLOSE)
    assert_close(flow.received[:, at], received[:, at], **CLOSE)
    assert torch.as_tensor(flow.mask) == pytest.approx(ask.mask)


REQUESTS = {
    "20 edges, list": (20, BINARY, "list"),
    "20 edges, mapping": (20, ANY, "mapping"),
    "all edges, scores": (None, ANY, "scores"),
}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", CASES)
def test_a_patched_pass_is_the_oracles(name: str, seq_len: int | None, request_name: str) -> None:
    n, values, how = REQUESTS[request_name]
    asks = shape_of(name, seq_len).asks(values, n=n, seed=len(request_name))
    check_against_oracle(name, asks, seq_len, how)


@pytest.mark.parametrize("kind", ["Q", "K", "V", "MLP", "End"])
@pytest.mark.parametrize("name", CASES)
def test_a_single_edge_is_the_oracles(name: str, kind: str) -> None:
    """Into each kind of destination; ways to ask and positions are spread over the kinds."""
    how = {"Q": "list", "K": "mapping", "V": "scores", "MLP": "list", "End": "mapping"}[kind]
    seq_len = SEQ if kind in ("K", "V", "End") else None
    every = shape_of(name, seq_len).asks(BINARY if how == "list" else ANY, seed=len(name))
    into = [ask for ask in every if kind in ask.dest]
    if CASES[name].attn_only and kind == "MLP":
        assert not into
        return
    check_against_oracle(name, [into[len(into) * 3 // 4]], seq_len, how)


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", WITH_HEADS_ALONE)
def test_unsplit_heads_are_the_oracles(name: str, seq_len: int | None) -> None:
    """Against TransformerLens' `use_attn_in`."""
    n, how = (20, "mapping") if seq_len is None else (None, "scores")
    asks = shape_of(name, seq_len, separate_qkv=False).asks(ANY, n=n)
    check_against_oracle(name, asks, seq_len, how, separate_qkv=False)


@pytest.mark.parametrize("name", [one for one in (ONE, "hooked ungrouped") if one in CASES])
def test_an_unsplit_edge_is_its_three_split_edges(name: str) -> None:
    asked = {"A0.1->A1.2": 0.7, "MLP 0->A1.0": 1.0}
    split = {f"{edge}.{letter}": mask for edge, mask in asked.items() for letter in "QKV"}
    one = wrapped(name, None, False).trace(CLEAN, corrupt=CORRUPT, edges=asked)
    three = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=split)
    assert_close(one.logits, three.logits, **CLOSE)
    assert (one.logits - shared(name)(CLEAN)).abs().max() > BIG


@pytest.mark.parametrize("name", CASES)
def test_without_patched_edges_the_logits_are_the_models_own_bit_for_bit(name: str) -> None:
    model = wrapped(name)
    with torch.no_grad():
        own = shared(name)(CLEAN)
    zero = {module: torch.zeros(mask.shape) for module, mask in model.trace(CLEAN).masks.items()}
    for ask_for in ({}, {"edges": []}, {"edges": {}}, {"masks": {}}, {"masks": zero}):
        assert torch.equal(model.trace(CLEAN, corrupt=CORRUPT, **ask_for).logits, own), ask_for
    at_zero = model.trace(CLEAN, corrupt=CORRUPT, edges={"A0.0->Resid End": 0.0})
    assert torch.equal(at_zero.logits, own)
    assert [edge.name for edge in at_zero.edges] == ["A0.0->Resid End"]


@pytest.mark.parametrize(
    ("name", "seq_len"), [*((name, None) for name in CASES), *((name, SEQ) for name in TWO)]
)
def test_with_all_edges_patched_the_logits_are_the_corrupt_prompts(
    name: str, seq_len: int | None
) -> None:
    model = wrapped(name, seq_len)
    ones = shape_of(name, seq_len).prune_scores(shape_of(name, seq_len).asks(BINARY))
    assert all((mask == 1).all() for mask in ones.values())
    trace = model.trace(CLEAN, corrupt=CORRUPT, masks=ones)
    with torch.no_grad():
        corrupt, clean = shared(name)(CORRUPT), shared(name)(CLEAN)
    assert_close(trace.logits, corrupt, **CLOSE)
    assert (clean - corrupt).abs().max() > BIG
    assert len(trace.edges) == model.n_edges


def ablated(twin: Any, source: str, change: torch.Tensor) -> torch.Tensor:
    """The logits with one source's output changed where it enters the stream."""
    if source == "Resid Start":
        key = "blocks.0.hook_resid_pre"
    elif source.startswith("MLP"):
        key = f"blocks.{source.split()[1]}.hook_mlp_out"
    else:
        key = f"blocks.{source[1:].split('.')[0]}.hook_attn_out"

    def change_it(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor + change

    with torch.no_grad():
        return twin.run_with_hooks(CLEAN, fwd_hooks=[(key, change_it)])


@pytest.mark.parametrize("name", CASES)
def test_all_out_edges_of_a_source_are_its_ablation(name: str) -> None:
    shape = shape_of(name)
    sources = ["Resid Start", "A0.1", "A1.3"] + ([] if shape.attn_only else ["MLP 0"])
    for source in sources:
        edges = [f"{source}->{dest}" for dest in shape.dests if source in shape.before(dest)]
        trace = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=edges)
        change = corrupt_pass(name).wrote[source] - clean_pass(name).wrote[source]
        expected = ablated(oracle(name).model, source, change)
        assert_close(trace.logits, expected, **CLOSE)
        assert (trace.logits - wrapped(name).trace(CLEAN).logits).abs().max() > BIG, source


@pytest.mark.parametrize("name", TWO)
def test_a_name_alone_means_every_position(name: str) -> None:
    edges = ["A0.1->A1.2.Q", "MLP 0->Resid End"]
    everywhere = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=edges)
    each = wrapped(name, SEQ).trace(CLEAN, corrupt=CORRUPT, edges=edges)
    spelt_out = wrapped(name, SEQ).trace(
        CLEAN, corrupt=CORRUPT, edges=[(seq_idx, edge) for edge in edges for seq_idx in range(SEQ)]
    )
    assert torch.equal(each.logits, spelt_out.logits)
    assert_close(each.logits, everywhere.logits, **CLOSE)
    assert len(each.edges) == 2 * SEQ


def test_every_way_to_name_the_same_edges_gives_the_same_logits() -> None:
    model = wrapped(ONE, SEQ)
    asks = shape_of(ONE, SEQ).asks(BINARY, n=12)
    pairs = list(as_edges_argument(asks))
    ways = [
        {"edges": pairs},
        {"edges": (pair for pair in pairs)},
        {"edges": dict.fromkeys(pairs, 1)},
        {"edges": {pair: torch.tensor(1.0) for pair in pairs}},
        {"edges": [model.edge(name, seq_idx) for seq_idx, name in pairs]},
        {"edges": [(seq_idx, f" {name.replace('->', ' -> ')} ") for seq_idx, name in pairs]},
        {"masks": shape_of(ONE, SEQ).prune_scores(asks)},
    ]
    traces = [model.trace(CLEAN, corrupt=CORRUPT, **way) for way in ways]
    for trace in traces[1:]:
        assert torch.equal(trace.logits, traces[0].logits)
        assert trace.edges == traces[0].edges


def test_one_edge_may_be_given_bare() -> None:
    model = wrapped(ONE)
    listed = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->Resid End"])
    for bare in ("A0.1->Resid End", model.edge("A0.1->Resid End")):
        assert torch.equal(model.trace(CLEAN, corrupt=CORRUPT, edges=bare).logits, listed.logits)
    assert (listed.logits - model.trace(CLEAN).logits).abs().max() > BIG


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = ct.wrap(copy_of(shared(ONE)).to(dtype))
    edges = as_edges_argument(shape_of(ONE).asks(BINARY, n=20))
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    expected = wrapped(ONE).trace(CLEAN, corrupt=CORRUPT, edges=edges)
    assert trace.logits.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    assert_close(trace.logits.float(), expected.logits, rtol=tolerance, atol=tolerance)


HYPOTHESIS = settings(max_examples=25, deadline=None, derandomize=True, database=None)
MODELS_TO_VARY = [
    name
    for name in ("hooked LN", "hooked grouped", "hooked parallel", "bridge GPT-2")
    if name in CASES
]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, int | None, list[Ask], torch.Tensor, int]:
    """A model, positions or none, edges with masks, a batch of tokens and a seed for what is patched."""
    name = draw(st.sampled_from(MODELS_TO_VARY))
    batch, seq = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    seq_len = draw(st.sampled_from([None, seq]))
    every = shape_of(name, seq_len).edges()
    chosen = draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=40, unique=True))
    masks = draw(st.lists(st.floats(-2, 2, width=32), min_size=len(chosen), max_size=len(chosen)))
    asks = [
        Ask(every[number][1], every[number][2], every[number][0], mask)
        for number, mask in zip(chosen, masks, strict=True)
    ]
    ids = draw(st.lists(st.integers(0, D_VOCAB - 1), min_size=batch * seq, max_size=batch * seq))
    return name, seq_len, asks, torch.tensor(ids).view(batch, seq), draw(st.integers(0, 1000))


def arbitrary_outputs(name: str, like: ct.SourceOutputs, seed: int) -> tuple[Any, dict]:
    """Values that no prompt gives, as our record of them and as plain vectors."""
    generator = torch.Generator().manual_seed(seed)
    sites = tuple(
        replace(site, code=torch.randn(site.code.shape, generator=generator)) for site in like.sites
    )
    vectors: dict[str, torch.Tensor] = {}
    for source in shape_of(name).sources:
        code = sites[_site_of(name, source)].code
        if source.startswith("A"):
            layer, head = (int(part) for part in source[1:].split("."))
            vectors[source] = code[:, :, head] @ shared(name).blocks[layer].attn.W_O[head].detach()
        else:
            vectors[source] = code[:, :, 0]
    return replace(like, sites=sites), vectors


def _site_of(name: str, source: str) -> int:
    """Sites stand in the order Resid Start, heads of layer 0, MLP 0, heads of layer 1, …"""
    if source == "Resid Start":
        return 0
    per_layer = 1 if CASES[name].attn_only else 2
    if source.startswith("MLP"):
        return 2 + per_layer * int(source.split()[1])
    return 1 + per_layer * int(source[1:].split(".")[0])


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
@HYPOTHESIS
@given(requests())
def test_any_edges_masks_shapes_and_patched_values(request: tuple) -> None:
    name, seq_len, asks, ids, seed = request
    model = wrapped(name, seq_len)
    patched, vectors = arbitrary_outputs(name, model.source_outputs(ids), seed)
    trace = model.trace(ids, patched=patched, edges=as_edges_argument(asks))
    expected = oracle(name).run(ids, vectors, asks)
    # Masks to ±2 on noise make streams of several hundred: compare relative to their size.
    scale = max(1.0, float(expected.logits.abs().max()))
    assert_close(trace.logits / scale, expected.logits / scale, rtol=1e-4, atol=2e-5)
    for source, wrote in expected.wrote.items():
        size = max(1.0, float(wrote.abs().max()))
        assert_close(trace.current[source] / size, wrote / size, rtol=1e-4, atol=2e-5)
    assert trace.reconstruction_error() < 1e-4


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
@HYPOTHESIS
@given(requests())
def test_masks_of_zero_and_one_are_the_ends_of_a_line(request: tuple) -> None:
    """Into the end of the stream, which nothing follows but a sum, mask m is linear interpolation."""
    name, seq_len, asks, ids, _ = request
    model = wrapped(name, seq_len)
    to_end = {
        spec: mask for spec, mask in as_edges_argument(asks).items() if "Resid End" in str(spec)
    }
    if not to_end:
        to_end = {"Resid Start->Resid End": 0.5}
    corrupt = ids.flip(0).roll(1, 1)
    trace = model.trace(ids, corrupt=corrupt, edges=to_end)
    plain = model.trace(ids, corrupt=corrupt)
    end = trace.dest("Resid End")
    change = end.received.sum(0) - plain.dest("Resid End").received.sum(0)
    expected = torch.zeros_like(change)
    for spec, mask in to_end.items():
        seq_idx, edge_name = spec if isinstance(spec, tuple) else (slice(None), spec)
        source = edge_name.split("->")[0]
        expected[:, seq_idx] += mask * (plain.patched[source] - plain.current[source])[:, seq_idx]
    assert_close(change, expected, rtol=1e-4, atol=1e-4)
