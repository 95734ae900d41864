"""The seven ablations against plain zeros and means."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.plan import ablate_batch
from tests.models import TYPICAL, oracle, tokens, wrapped
from tests.oracle import Ask

CLEAN, CORRUPT = tokens(11, batch=3), tokens(12, batch=3)
A = ct.AblationType


@cache
def wrote(name: str, what: str) -> dict[str, Tensor]:
    """What each source writes on the clean or corrupt prompts, by TransformerLens' own hooks."""
    return oracle(name).run({"clean": CLEAN, "corrupt": CORRUPT}[what]).wrote


def both(clean: Tensor, corrupt: Tensor) -> Tensor:
    return torch.cat([clean, corrupt]).mean(0, keepdim=True)


EXPECTED: dict[A, Callable[[Tensor, Tensor], Tensor]] = {
    A.RESAMPLE: lambda clean, corrupt: corrupt,
    A.ZERO: lambda clean, corrupt: torch.zeros_like(corrupt),
    A.TOKENWISE_MEAN_CLEAN: lambda clean, corrupt: clean.mean(0, keepdim=True),
    A.TOKENWISE_MEAN_CORRUPT: lambda clean, corrupt: corrupt.mean(0, keepdim=True),
    A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT: both,
    A.BATCH_TOKENWISE_MEAN: lambda clean, corrupt: corrupt.mean(0, keepdim=True),
    A.BATCH_ALL_TOK_MEAN: lambda clean, corrupt: corrupt.mean((0, 1), keepdim=True),
}
"""From what a source wrote on the clean and the corrupt prompts to what is patched in."""


def test_the_seven_have_auto_circuits_names() -> None:
    assert set(EXPECTED) == set(A)
    assert [ablation.name for ablation in A] == [
        "RESAMPLE",
        "ZERO",
        "TOKENWISE_MEAN_CLEAN",
        "TOKENWISE_MEAN_CORRUPT",
        "TOKENWISE_MEAN_CLEAN_AND_CORRUPT",
        "BATCH_TOKENWISE_MEAN",
        "BATCH_ALL_TOK_MEAN",
    ]
    assert str(A.BATCH_ALL_TOK_MEAN) == "batch all tok mean"


@pytest.mark.parametrize("ablation", EXPECTED)
@pytest.mark.parametrize("name", TYPICAL)
def test_each_against_plain_arithmetic(name: str, ablation: A) -> None:
    model = wrapped(name)
    data = [(CLEAN, CORRUPT)] if ablation.mean_over_dataset else CORRUPT
    outputs = model.source_outputs(data, ablation)
    clean, corrupt = wrote(name, "clean"), wrote(name, "corrupt")
    assert list(outputs) == list(clean)
    for source, value in outputs.items():
        expected = EXPECTED[ablation](clean[source], corrupt[source])
        assert_close(value, expected.expand_as(value), rtol=1e-5, atol=1e-5)
    assert outputs.ablation is ablation
    assert outputs.batch == (1 if ablation.mean_over_dataset else 3)


@pytest.mark.parametrize("ablation", EXPECTED)
@pytest.mark.parametrize("name", TYPICAL)
def test_each_patched_in_against_the_oracle(name: str, ablation: A) -> None:
    model = wrapped(name)
    asks = [
        Ask("A0.1", "A1.1.K", None, 0.5),
        Ask("MLP 0", "A1.2.Q", None, 1.0),
        Ask("A0.3", "MLP 1", None, 1.0),
        Ask("Resid Start", "Resid End", None, 1.0),
    ]
    edges = {ask.name: ask.mask for ask in asks}
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=edges, ablation=ablation)
    clean, corrupt = wrote(name, "clean"), wrote(name, "corrupt")
    patched = {
        source: EXPECTED[ablation](clean[source], corrupt[source]).expand_as(clean[source])
        for source in clean
    }
    expected = oracle(name).run(CLEAN, patched, asks)
    assert_close(trace.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert_close(trace.patched.stack(), torch.stack(list(patched.values())), rtol=1e-5, atol=1e-5)
    assert trace.reconstruction_error() < 1e-5
    assert (trace.logits - model.trace(CLEAN).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("ablation", "of"),
    [
        (A.ZERO, lambda clean: torch.zeros_like(clean)),
        (A.TOKENWISE_MEAN_CLEAN, lambda clean: clean.mean(0, keepdim=True)),
        (A.BATCH_TOKENWISE_MEAN, lambda clean: clean.mean(0, keepdim=True)),
        (A.BATCH_ALL_TOK_MEAN, lambda clean: clean.mean((0, 1), keepdim=True)),
    ],
)
def test_those_that_need_no_corrupt_prompt_take_the_clean_one(
    ablation: A, of: Callable[[Tensor], Tensor]
) -> None:
    model = wrapped("hooked LN")
    trace = model.trace(CLEAN, edges=["A0.1->Resid End"], ablation=ablation)
    clean = wrote("hooked LN", "clean")["A0.1"]
    assert_close(trace.patched["A0.1"], of(clean).expand_as(clean))


@pytest.mark.parametrize(
    "ablation", [A.RESAMPLE, A.TOKENWISE_MEAN_CORRUPT, A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT]
)
def test_those_that_need_a_corrupt_prompt_say_so(ablation: A) -> None:
    model = wrapped("hooked LN")
    with pytest.raises(ct.InputError) as caught:
        model.trace(CLEAN, edges=["A0.1->Resid End"], ablation=ablation)
    assert str(caught.value) == (
        "There are edges to patch but nothing to patch in. Pass the outputs of another prompt, "
        "model.source_outputs(corrupt), or call model.trace(tokens, corrupt=..., edges=...)."
    )


@pytest.mark.parametrize("ablation", [a for a in A if a is not A.RESAMPLE])
def test_zeros_and_means_fit_any_number_of_prompts(ablation: A) -> None:
    model = wrapped("hooked LN")
    data = [(CLEAN, CORRUPT)] if ablation.mean_over_dataset else CORRUPT
    outputs = model.source_outputs(data, ablation)
    trace = model.trace(tokens(13, batch=5), patched=outputs, edges=["A0.1->Resid End"])
    assert trace.patched["A0.1"].shape == (5, 6, model.cfg.d_model)
    assert_close(trace.patched["A0.1"][4], outputs["A0.1"][0])


@pytest.mark.parametrize("ablation", [A.ZERO, A.BATCH_ALL_TOK_MEAN])
def test_zeros_and_means_over_tokens_fit_any_length(ablation: A) -> None:
    model = wrapped("hooked LN")
    outputs = model.source_outputs(CORRUPT, ablation)
    trace = model.trace(tokens(13, batch=2, seq=9), patched=outputs, edges=["A0.1->Resid End"])
    assert trace.patched["A0.1"].shape == (2, 9, model.cfg.d_model)


def test_means_per_token_do_not_fit_another_length() -> None:
    model = wrapped("hooked LN")
    outputs = model.source_outputs(CORRUPT, A.BATCH_TOKENWISE_MEAN)
    with pytest.raises(ct.InputError) as caught:
        model.trace(tokens(13, batch=3, seq=9), patched=outputs, edges=["A0.1->Resid End"])
    assert str(caught.value).startswith(
        "The patched outputs (batch tokenwise mean) are for a batch of 3 × 6 tokens, but this pass "
        "runs 3 × 9."
    )


BAD_ABLATIONS = ["zero", None, 2, "ZERO"]
MEMBERS = ", ".join(ablation.name for ablation in A)


@pytest.mark.parametrize("ablation", BAD_ABLATIONS)
@pytest.mark.parametrize("edges", [None, ["A0.1->Resid End"]])
@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_ablation(ablation: object, edges: list[str] | None) -> None:
    model = wrapped("hooked LN")
    asks = (
        lambda: model.source_outputs(CLEAN, ablation),
        lambda: model.trace(CLEAN, corrupt=CORRUPT, edges=edges, ablation=ablation),
    )
    for ask in asks:
        with pytest.raises(ct.InputError) as caught:
            ask()
        assert str(caught.value) == (
            f"ablation must be an AblationType ({MEMBERS}); got {ablation!r}."
        )


def test_a_mean_over_a_dataset_is_no_ablation_of_one_batch() -> None:
    with pytest.raises(AssertionError, match="is a mean over a dataset"):
        ablate_batch(torch.zeros(1, 2, 3, 4), A.TOKENWISE_MEAN_CLEAN)
