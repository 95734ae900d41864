"""`reconstruction_error` is small for a true record and large for any that was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import circuit_trace as ct
from tests.models import TYPICAL, shape_of, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
ROUNDING, WRONG = 1e-5, 1e-2
EDGES = {
    "A0.1->A1.2.Q": 1.0,
    "A0.1->A1.0.K": 0.5,
    "Resid Start->A1.1.V": 1.0,
    "A0.3->MLP 1": -0.5,
    "MLP 0->Resid End": 1.0,
}


@pytest.fixture(params=TYPICAL, scope="module")
def trace(request: pytest.FixtureRequest) -> ct.Trace:
    return wrapped(request.param).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", TYPICAL)
def test_a_true_record_adds_up(name: str, seq_len: int | None) -> None:
    model = wrapped(name, seq_len)
    scores = shape_of(name, seq_len).prune_scores(
        shape_of(name, seq_len).asks((-1.0, 0.0, 0.3, 1.0), seed=5)
    )
    assert model.trace(CLEAN).reconstruction_error() < ROUNDING
    assert model.trace(CLEAN, corrupt=CORRUPT).reconstruction_error() < ROUNDING
    assert model.trace(CLEAN, corrupt=CORRUPT, masks=scores).reconstruction_error() < ROUNDING


def with_site(outputs: ct.SourceOutputs, number: int, change: Callable) -> ct.SourceOutputs:
    """The same outputs, but one site's code changed."""
    sites = list(outputs.sites)
    sites[number] = replace(sites[number], code=change(sites[number].code.clone()))
    return replace(outputs, sites=tuple(sites))


def one_head_doubled(code: torch.Tensor) -> torch.Tensor:
    code[:, :, min(1, code.shape[2] - 1)] *= 2
    return code


def one_prompt_at_one_position(code: torch.Tensor) -> torch.Tensor:
    code[1, 3] += 2
    return code


def not_a_number(code: torch.Tensor) -> torch.Tensor:
    code[0, 0, 0, 0] = float("nan")
    return code


CHANGES = {f.__name__: f for f in (one_head_doubled, one_prompt_at_one_position)}
CHANGES["zeroed"] = torch.zeros_like
CHANGES["positions rolled"] = lambda code: code.roll(1, 1)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("site", range(5))
def test_a_tampered_current_output_shows(trace: ct.Trace, site: int, change: str) -> None:
    assert trace.reconstruction_error() < ROUNDING
    tampered = replace(trace, current=with_site(trace.current, site, CHANGES[change]))
    assert tampered.reconstruction_error() > WRONG


@pytest.mark.parametrize("site", range(5))
def test_a_record_with_nan_in_it_never_adds_up(site: int) -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    broken = replace(trace, current=with_site(trace.current, site, not_a_number))
    assert not broken.reconstruction_error() < WRONG


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("site", [0, 1, 2])
def test_a_tampered_patched_output_shows(trace: ct.Trace, site: int, change: str) -> None:
    """Sites that a patched edge leaves: the embedding, heads A0.1 and A0.3, and MLP 0."""
    plan = trace.plans[0]
    patched = with_site(plan.patched, site, CHANGES[change])
    tampered = replace(trace, plans=(replace(plan, patched=patched),))
    assert tampered.reconstruction_error() > WRONG


@pytest.mark.parametrize(
    "module", ["blocks.1.hook_q_input", "blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"]
)
def test_a_tampered_mask_shows(trace: ct.Trace, module: str) -> None:
    plan = trace.plans[0]
    masks = {**plan.masks, module: plan.masks[module] * 0.5}
    tampered = replace(trace, plans=(replace(plan, masks=masks),))
    assert tampered.reconstruction_error() > WRONG


def test_every_input_that_was_read_is_compared(trace: ct.Trace) -> None:
    for number, read in enumerate(trace.reads):
        other = replace(read, seen=read.seen * 1.5)
        reads = (*trace.reads[:number], other, *trace.reads[number + 1 :])
        assert replace(trace, reads=reads).reconstruction_error() > WRONG, number
    assert len(trace.reads) > 5


@pytest.mark.parametrize("name", ["hooked LN", "bridge GPT-2"])
def test_a_forgotten_bias_shows(name: str) -> None:
    trace = wrapped(name).trace(CLEAN)
    tampered = replace(trace, biases=(*trace.biases[:1], None, *trace.biases[2:]))
    assert tampered.reconstruction_error() > WRONG


def test_a_record_without_inputs_says_so(trace: ct.Trace) -> None:
    with pytest.raises(ct.NoTraceError) as caught:
        replace(trace, reads=()).reconstruction_error()
    assert str(caught.value) == (
        "This trace holds no destination inputs to compare with; trace the pass again."
    )


def test_it_says_how_far_off_a_record_is() -> None:
    """One per cent of everything recorded is one per cent off."""
    trace = wrapped("hooked no norm").trace(CLEAN)
    sites = tuple(replace(site, code=site.code * 1.01) for site in trace.current.sites)
    biases = tuple(None if bias is None else bias * 1.01 for bias in trace.biases)
    scaled = replace(trace, current=replace(trace.current, sites=sites), biases=biases)
    assert scaled.reconstruction_error() == pytest.approx(0.01, rel=1e-2)
