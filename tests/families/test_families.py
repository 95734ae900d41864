"""Every family through TransformerBridge is exact: against plain Hugging Face models and hooks.

Runs on TransformerLens 3.9 (`make test`) and 4.x (`make test-compat`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.integrations.transformer_lens import anatomy
from circuit_trace.record import lens_of
from circuit_trace.record.inputs import stream_at
from tests.families.models import (
    COHERE,
    CONFIGS,
    GRANITE_PLAIN,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    NOT_ROTATED,
    OPENAI_GPT,
    PARALLEL,
    ROTATED_UNSEEN,
    T5,
    bridge,
    hugging_face,
    tokens,
)
from tests.families.oracle import FamilyOracle, shape_of

SEQ = 6
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
"""Float32: two implementations of attention (TransformerLens', Hugging Face's) over two layers."""

family = pytest.mark.parametrize("architecture", CONFIGS)


@cache
def wrapped(architecture: str, seq_len: int | None = None) -> ct.PatchableModel:
    model = bridge(architecture) if seq_len is None else wrapped(architecture).wrapped_model
    return ct.wrap(model, seq_len=seq_len)


@cache
def oracle(architecture: str, seq_len: int | None = None) -> FamilyOracle:
    model = hugging_face(architecture)
    shape = shape_of(architecture, model.config, architecture in PARALLEL, seq_len)
    return FamilyOracle(model, architecture, shape)


@family
def test_nodes_are_one_per_head_and_per_key_value_head(architecture: str) -> None:
    model, second = wrapped(architecture), oracle(architecture)
    assert [src.name for src in model.srcs] == second.shape.sources
    assert [dest.name for dest in model.dests] == second.shape.dests
    has_groups = hasattr(second.model.config, "num_key_value_heads")
    n_kv = N_KV_HEADS if has_groups else N_HEADS
    assert sum(dest.name.endswith(".K") for dest in model.dests) == N_LAYERS * n_kv


@family
def test_without_patched_edges_the_pass_is_the_models_own(architecture: str) -> None:
    model = wrapped(architecture)
    with torch.no_grad():
        expected = model.wrapped_model(tokens(1))
    trace = model.trace(tokens(1))
    assert_close(trace.logits, expected, rtol=0, atol=1e-6)
    assert trace.reconstruction_error() < 1e-5


@family
def test_sources_are_what_reaches_the_stream(architecture: str) -> None:
    found = wrapped(architecture).trace(tokens(1)).current
    expected = oracle(architecture).run(tokens(1))
    for name, wrote in expected.wrote.items():
        assert_close(found[name], wrote, **CLOSE)


@family
def test_all_edges_patched_is_the_corrupt_prompts_pass(architecture: str) -> None:
    model = wrapped(architecture)
    ones = {module.name: torch.ones(module.shape) for module in model.graph.modules}
    trace = model.trace(tokens(1), corrupt=tokens(2), masks=ones)
    with torch.no_grad():
        expected = model.wrapped_model(tokens(2))
    assert_close(trace.logits, expected, rtol=1e-5, atol=1e-5)
    assert trace.reconstruction_error() < 1e-5


@family
def test_outputs_have_shares_of_the_logits(architecture: str) -> None:
    """What patching the end's edges adds to a logit difference, from the shares, against the logits
    of the pass: for one scale of the final norm, before a soft cap or scaling."""
    model = wrapped(architecture)
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=["A0.1->Resid End", "MLP 1->Resid End"])
    received = stream_at(trace, model.dests[-1], 1)
    shares = lens_of(trace, 1).logits(received, range(trace.seq))
    unembed = model.anatomy.unembed
    assert unembed is not None
    nothing = unembed.norm(torch.zeros_like(received)[None])[0] @ unembed.weight()
    own = unembed.bias()
    nothing = nothing if own is None else nothing + own
    assert trace.logits is not None
    assert_close(unembed.finish(shares + nothing).detach(), trace.logits[1], **CLOSE)


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("n_edges", [1, 12, None])
@family
def test_any_edges_and_masks(architecture: str, n_edges: int | None, seq_len: int | None) -> None:
    model, second = wrapped(architecture, seq_len), oracle(architecture, seq_len)
    asks = second.shape.asks((1.0, 0.5, -0.3), n=n_edges, seed=3)
    corrupt = second.run(tokens(2))
    expected = second.run(tokens(1), corrupt.wrote, asks)
    trace = model.trace(tokens(1), corrupt=tokens(2), masks=second.shape.prune_scores(asks))
    assert_close(trace.logits, expected.logits, **CLOSE)
    for name, wrote in expected.wrote.items():
        assert_close(trace.current[name], wrote, **CLOSE)
        assert_close(trace.patched[name], corrupt.wrote[name], **CLOSE)
    assert trace.reconstruction_error() < 1e-5


@family
def test_heads_attend_as_in_the_oracle(architecture: str) -> None:
    model, second = wrapped(architecture), oracle(architecture)
    asks = second.shape.asks((1.0, 0.5, -0.3), n=20, seed=4)
    expected = second.run(tokens(1), second.run(tokens(2)).wrote, asks)
    masks = second.shape.prune_scores(asks)
    trace = model.trace(tokens(1), corrupt=tokens(2), masks=masks, heads="*")
    for name in trace.heads:
        layer, head = (int(part) for part in name[1:].split("."))
        shared_by = N_HEADS // second.shape.n_kv_heads
        record = trace.head(name)
        assert_close(record.pattern, expected.patterns[layer][:, head], **CLOSE)
        assert_close(record.q, expected.projected[f"{name}.Q"], **CLOSE)
        assert_close(record.k, expected.projected[f"A{layer}.{head // shared_by}.K"], **CLOSE)
        assert_close(record.v, expected.projected[f"A{layer}.{head // shared_by}.V"], **CLOSE)


ROTATED = [name for name in CONFIGS if name not in NOT_ROTATED and name not in ROTATED_UNSEEN]


@family
def test_rotated_queries_and_keys_make_the_pattern(architecture: str) -> None:
    """Norms of queries and keys are in them; masks (sliding windows) are taken from the pattern."""
    model = wrapped(architecture)
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=["A0.1->A1.2.Q"], heads="*")
    for name in trace.heads:
        record = trace.head(name)
        assert (record.rot_q is not None) == (architecture in ROTATED)
        if record.rot_q is None:
            continue
        attention = hugging_face(architecture).model.layers[int(name[1])].self_attn
        scores = record.rot_q @ record.rot_k.transpose(1, 2) * attention.scaling
        cap = getattr(attention, "attn_logit_softcapping", None)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        scores = scores.masked_fill(record.pattern == 0, -torch.inf)
        assert_close(scores.softmax(-1), record.pattern, **CLOSE)


@pytest.mark.parametrize("architecture", ["OPTForCausalLM", "GPTJForCausalLM"])
def test_a_pattern_shown_after_it_was_used_is_recorded_as_used(architecture: str) -> None:
    """What a user's hook returns there has no effect on the pass, which the bridge may warn of."""
    model = ct.wrap(bridge(architecture))
    plain = model.trace(tokens(1), heads="A0.1")
    model.wrapped_model.blocks[0].attn.hook_pattern.add_hook(lambda tensor, hook: tensor * 2)  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edited = model.trace(tokens(1), heads="A0.1")
    assert_close(edited.current["A0.1"], plain.current["A0.1"])
    assert_close(edited.head("A0.1").pattern, plain.head("A0.1").pattern)


def test_attention_that_forms_no_pattern() -> None:
    """Hugging Face's fused attention in a bridge that delegates to it."""
    own = bridge("OPTForCausalLM")
    own.original_model.set_attn_implementation("sdpa")
    model = ct.wrap(own)
    fused = model.trace(tokens(1), heads="A0.1")
    with pytest.raises(ct.InputError, match=r"did not show the 'pattern' of A0\.1: a fused kernel"):
        _ = fused.head("A0.1").pattern
    own.original_model.set_attn_implementation("eager")
    trace = model.trace(tokens(1), heads="A0.1")
    head = trace.head("A0.1")
    assert_close(fused.head("A0.1").v, head.v)
    wrote = head.pattern @ head.v @ own.blocks[0].attn.W_O[1]
    assert_close(wrote, fused.current["A0.1"], **CLOSE)


@family
def test_means_of_a_dataset(architecture: str) -> None:
    """A mean of what reached the stream, also where a norm of each pass stands in between."""
    model, second = wrapped(architecture), oracle(architecture)
    mean = model.source_outputs(
        [(tokens(3), tokens(4)), (tokens(5, batch=3), tokens(6, batch=3))],
        ct.AblationType.TOKENWISE_MEAN_CLEAN,
    )
    passes = [second.run(tokens(3)).wrote, second.run(tokens(5, batch=3)).wrote]
    for name in second.shape.sources:
        expected = torch.cat([one[name] for one in passes]).mean(0, keepdim=True)
        assert_close(mean[name], expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_padded_batches_with_an_attention_mask(architecture: str, side: str) -> None:
    """Patching everything from a batch of other prompts gives their pass, padding and all."""
    model = wrapped(architecture)
    mask = torch.ones(2, SEQ, dtype=torch.long)
    mask[1, slice(None, 2) if side == "left" else slice(-2, None)] = 0
    ones = {module.name: torch.ones(module.shape) for module in model.graph.modules}
    with torch.no_grad():
        expected = model.wrapped_model(tokens(2), attention_mask=mask)
        with model.patch():
            model(tokens(2), attention_mask=mask)
        patched = model.last_trace.current
        with model.patch(patched, masks=ones):
            found = model(tokens(1), attention_mask=mask)
    real = mask.bool()
    assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_a_norm_of_the_stream_itself_is_refused() -> None:
    """Where the sum is normalised, no source adds to what later destinations read."""
    with pytest.raises(ct.AnatomyError, match="did not run through the residual stream"):
        ct.wrap(bridge("OpenAIGPTLMHeadModel", OPENAI_GPT))


def test_a_residual_multiplier_of_one() -> None:
    """Granite's default: its blocks differ from others' all the same."""
    model = ct.wrap(bridge("GraniteForCausalLM", GRANITE_PLAIN))
    with torch.no_grad():
        assert_close(model.trace(tokens(1)).logits, model.wrapped_model(tokens(1)))


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ct.AnatomyError, match="is not built as decoder models are"):
        ct.wrap(bridge("T5ForConditionalGeneration", T5))


def test_logits_that_are_scaled_after_the_unembedding() -> None:
    model = ct.wrap(bridge("CohereForCausalLM", COHERE))
    with torch.no_grad():
        assert_close(model.trace(tokens(1)).logits, model.wrapped_model(tokens(1)))


@pytest.mark.parametrize("when", ["never", "before it is wrapped", "after"])
def test_a_scale_that_compatibility_mode_folds_into_the_unembedding(when: str) -> None:
    """`cfg.logit_scale` stays what it was. The oracle is what the model returns, also under a plain
    hook that makes the end of the stream what one edge's patch makes of it."""
    own = bridge("CohereForCausalLM", COHERE)
    if when == "before it is wrapped":
        own.enable_compatibility_mode(disable_warnings=True)
    model = ct.wrap(own)
    if when == "after":
        model.trace(tokens(1))
        own.enable_compatibility_mode(disable_warnings=True)
    patched = model.source_outputs(tokens(2))
    with torch.no_grad():
        plain = own(tokens(1))
        with model.patch():
            own.run_with_hooks(tokens(1), fwd_hooks=[])
    assert_close(model.last_trace.logits, plain)
    trace = model.trace(tokens(1), patched=patched)
    assert_close(trace.logits, plain)
    change = patched["MLP 1"] - trace.current["MLP 1"]
    hook = ("blocks.1.hook_resid_post", lambda tensor, hook: tensor + change)
    with torch.no_grad():
        expected = own.run_with_hooks(tokens(1), fwd_hooks=[hook])
    edge = "MLP 1->Resid End"
    assert_close(model.trace(tokens(1), patched=patched, edges=[edge]).logits, expected, **CLOSE)

    def metric(logits: torch.Tensor, batch: object) -> torch.Tensor:
        return logits[:, -1, 3] - logits[:, -1, 5]

    scores = ct.exact_scores(model, (tokens(1), tokens(2)), metric, edges=[edge])
    found = scores["blocks.1.hook_resid_post"][model.edge(edge).src.idx]
    assert_close(found, metric(expected - plain, None).mean().to(found), **CLOSE)
    assert len(trace.table([edge], direction=(3, 5))) == 1, "the weights give these logits"


def test_a_forgotten_norm_is_named_with_its_layer() -> None:
    """Gemma 2 as if its blocks normalised before their parts only."""
    model = bridge("Gemma2ForCausalLM")
    right = anatomy(model)
    wrong = replace(right, sources=tuple(replace(site, norm=None) for site in right.sources))
    with pytest.raises(ct.AnatomyError, match=r"residual stream that MLP 0 reads differs by"):
        ct.wrap(model, anatomy=wrong)
