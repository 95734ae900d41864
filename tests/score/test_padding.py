"""Padded batches: each prompt counts as it does alone and unpadded, whichever side is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.plan import flat_scores
from circuit_trace.score.methods import METHODS
from tests.models import CASES, TYPICAL, oracle, shared, tokens, wrapped

MORE = ("hooked rotary, gated MLP", "hooked norms after too", "bridge GPT-NeoX")
MODELS = [*TYPICAL, *(name for name in MORE if name in CASES)]
LENGTHS = (3, 6, 5)
SEQ = max(LENGTHS)
CLEAN = [tokens(seed, batch=1, seq=n) for seed, n in enumerate(LENGTHS)]
CORRUPT = [tokens(seed + 9, batch=1, seq=n) for seed, n in enumerate(LENGTHS)]
RIGHT, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
PAD = 7
METRICS = ("logit_diff", "answer_logprob", "loss", "kl")

sides = pytest.mark.parametrize("side", ["left", "right"])


def padded(rows: list[Tensor], side: str, token: int = PAD) -> Tensor:
    """One batch of prompts of unequal lengths."""
    return torch.cat([_filled(row, side, token) for row in rows])


def _filled(row: Tensor, side: str, value: int) -> Tensor:
    n = SEQ - row.shape[1]
    return pad(row, (n, 0) if side == "left" else (0, n), value=value)


def mask_of(rows: list[Tensor], side: str) -> Tensor:
    return torch.cat([_filled(torch.ones_like(row), side, 0) for row in rows])


def batch(side: str, token: int = PAD) -> dict[str, Tensor]:
    return {
        "clean": padded(CLEAN, side, token),
        "corrupt": padded(CORRUPT, side, token),
        "answers": RIGHT,
        "wrong_answers": WRONG,
        "attention_mask": mask_of(CLEAN, side),
    }


def alone() -> list[tuple[Tensor, ...]]:
    """Each prompt a batch of its own, unpadded."""
    return [(CLEAN[i], CORRUPT[i], RIGHT[i : i + 1], WRONG[i : i + 1]) for i in range(len(LENGTHS))]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-4, atol=1e-5)
    assert max(float(score.abs().max()) for score in expected.values()) > 1e-3


@cache
def scored_alone(name: str, metric: str, method: str) -> Mapping[str, Tensor]:
    return ct.score_edges(wrapped(name), alone(), metric, method=method, steps=2)


@sides
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", MODELS)
def test_scores_by_gradients(name: str, metric: str, side: str) -> None:
    method = "eap-ig" if metric == "kl" else "eap"
    found = ct.score_edges(wrapped(name), batch(side), metric, method=method, steps=2)
    assert_same(found, scored_alone(name, metric, method))


@sides
@pytest.mark.parametrize("method", [*METHODS, "exact"])
@pytest.mark.parametrize("name", TYPICAL)
def test_every_method(name: str, method: str, side: str) -> None:
    found = ct.score_edges(wrapped(name), batch(side), method=method, steps=2)
    assert_same(found, scored_alone(name, "logit_diff", method))


@sides
def test_a_mask_in_forward_is_that_in_the_batch(side: str) -> None:
    model = wrapped(TYPICAL[0])
    data = batch(side)
    mask = data.pop("attention_mask")
    expected = ct.score_edges(model, batch(side))
    for forward in ({"attention_mask": mask}, lambda pairs: {"attention_mask": mask.bool()}):
        for found in (
            ct.score_edges(model, data, forward=forward),
            ct.score_edges(model, [data], forward=forward),
        ):
            assert_same(found, expected)


@sides
@pytest.mark.parametrize("name", TYPICAL)
def test_what_the_padding_is_does_not_matter(name: str, side: str) -> None:
    """Not even where what is patched in is a mean, or clean and corrupt are padded unlike."""
    model = wrapped(name)
    for ablation in ("BATCH_TOKENWISE_MEAN", "BATCH_ALL_TOK_MEAN", "ZERO"):
        options: dict[str, Any] = {"ablation": ct.AblationType[ablation], "method": "eap-ig"}
        assert_same(
            ct.score_edges(model, batch(side, 7), **options),
            ct.score_edges(model, batch(side, 19), **options),
        )
    other = {"corrupt_attention_mask": mask_of(CORRUPT[1:] + CORRUPT[:1], side)}
    both = [
        {**batch(side, token), "corrupt": padded(CORRUPT[1:] + CORRUPT[:1], side, token), **other}
        for token in (7, 19)
    ]
    for method in ("eap", "exact", "mask-gradient"):
        found = [ct.score_edges(model, one, method=method) for one in both]
        assert_same(*found)


@sides
@pytest.mark.parametrize("name", TYPICAL)
def test_acdc_decides_as_it_does_for_the_prompts_alone(name: str, side: str) -> None:
    model = wrapped(name)
    for metric in ("kl", "logit_diff"):
        expected = ct.acdc(model, alone(), metric, threshold=0.03)
        found = ct.acdc(model, batch(side), metric, threshold=0.03)
        assert torch.equal(
            flat_scores(model.graph, found.circuit), flat_scores(model.graph, expected.circuit)
        )
        assert found.metric == pytest.approx(expected.metric, rel=1e-4, abs=1e-5)
        assert 0 < found.n_edges < model.n_edges


@sides
@pytest.mark.parametrize("patch", ["complement", "circuit"])
@pytest.mark.parametrize("name", TYPICAL)
def test_faithfulness(name: str, patch: Any, side: str) -> None:
    model = wrapped(name)
    scores = scored_alone(name, "logit_diff", "eap")
    options: dict[str, Any] = {"sizes": (0.1, 0.5), "patch": patch, "prune": False}
    expected = ct.faithfulness(model, alone(), scores, **options)  # pyright: ignore[reportCallIssue]
    found = ct.faithfulness(model, batch(side), scores, **options)  # pyright: ignore[reportCallIssue]
    for one, other in (
        (found.values, expected.values),
        (found.clean, expected.clean),
        (found.corrupt, expected.corrupt),
    ):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@sides
@pytest.mark.parametrize("name", TYPICAL)
def test_a_traced_pass(name: str, side: str) -> None:
    model = wrapped(name)
    mask = mask_of(CLEAN, side)
    edges = {"A0.1->A1.1.K": 1.0, "MLP 0->A1.2.Q": 0.5, "Resid Start->MLP 1": 1.0}
    trace = model.trace(
        padded(CLEAN, side),
        corrupt=padded(CORRUPT, side),
        edges=edges,
        forward={"attention_mask": mask},
    )
    assert trace.logits is not None
    assert trace.reconstruction_error() < 1e-4
    for row, (clean, corrupt) in enumerate(zip(CLEAN, CORRUPT, strict=True)):
        expected = model.trace(clean, corrupt=corrupt, edges=edges)
        real = mask[row].bool()
        assert_close(trace.logits[row][real], expected.logits[0], rtol=1e-4, atol=1e-5)
        flow, own = trace.edge("A0.1->A1.1.K"), expected.edge("A0.1->A1.1.K")
        assert_close(flow.received[row][real], own.received[0], rtol=1e-4, atol=1e-5)
        assert not flow.delta[row][~real].any(), "nothing is patched into padding"


MEANS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "BATCH_ALL_TOK_MEAN": lambda rows: torch.cat(rows, 1).mean(1, keepdim=True),
    "BATCH_TOKENWISE_MEAN": lambda rows: _by_position(rows),
    "TOKENWISE_MEAN_CORRUPT": lambda rows: _by_position(rows),
}
"""From what a source writes on each prompt alone, `[1, seq, d_model]`, padding left out."""


def _by_position(rows: list[Tensor]) -> Tensor:
    """The mean at each position over the prompts that are long enough, padded at the right."""
    means = [torch.cat([r[:, i] for r in rows if r.shape[1] > i]).mean(0) for i in range(SEQ)]
    return torch.stack(means)[None]


@sides
@pytest.mark.parametrize("ablation", MEANS)
@pytest.mark.parametrize("name", TYPICAL)
def test_means_count_no_padding(name: str, ablation: str, side: str) -> None:
    model, kind = wrapped(name), ct.AblationType[ablation]
    data: Any = padded(CORRUPT, side)
    if kind.mean_over_dataset:
        rows = ((CORRUPT[:1], CLEAN[:1]), (CORRUPT[1:], CLEAN[1:]))
        data = [
            {
                "clean": padded(other, side),
                "corrupt": padded(some, side),
                "attention_mask": mask_of(some, side),
            }
            for some, other in rows
        ]
        outputs = model.source_outputs(data, kind)
    else:
        forward = {"attention_mask": mask_of(CORRUPT, side)}
        outputs = model.source_outputs(data, kind, forward=forward)
    wrote = [oracle(name).run(row).wrote for row in CORRUPT]
    for source in ("Resid Start", "A0.1", "MLP 1"):
        rows = [one[source] for one in wrote]
        rows = [row.flip(1) for row in rows] if side == "left" else rows
        expected = MEANS[ablation](rows)
        expected = expected.flip(1) if side == "left" else expected
        found = outputs[source][:1]
        assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-5)


def test_a_position_that_is_always_padding_is_not_patched() -> None:
    model = wrapped(TYPICAL[0])
    corrupt, mask = padded(CORRUPT[:1], "left"), mask_of(CORRUPT[:1], "left")
    for ablation in ("RESAMPLE", "BATCH_TOKENWISE_MEAN"):
        outputs = model.source_outputs(
            corrupt, ct.AblationType[ablation], forward={"attention_mask": mask}
        )
        trace = model.trace(CLEAN[1], patched=outputs, edges=["A0.1->Resid End"])
        there = mask[0].bool()
        delta = trace.edge("A0.1->Resid End").delta[0]
        assert not delta[~there].any()
        assert (delta[there].abs().sum(-1) > 1e-3).all()


def test_prompts_of_a_loss_have_two_tokens_or_more() -> None:
    model = wrapped(TYPICAL[0])
    data = {"clean": tokens(1, seq=4), "corrupt": tokens(2, seq=4)}
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    with pytest.raises(ct.InputError, match=r"^Batch 0: The loss needs prompts of two tokens"):
        ct.score_edges(model, {**data, "attention_mask": mask}, "loss")


def test_arguments_that_cannot_be_repeated_are_refused() -> None:
    model = wrapped(TYPICAL[0])
    data = (tokens(1), tokens(2), RIGHT[:2], WRONG[:2])
    message = r"the argument 'loss_per_token' of forward= is a object, which cannot be copied"
    with pytest.raises(ct.InputError, match=message):
        ct.exact_scores(model, data, forward={"loss_per_token": object()})


@pytest.mark.parametrize("name", [n for n in TYPICAL if n.startswith("bridge")][:1])
def test_arguments_of_each_prompt_are_repeated(name: str) -> None:
    """Positions given by hand go with each copy of the batch."""
    model = wrapped(name)
    data = (tokens(1), tokens(2), RIGHT[:2], WRONG[:2])
    ids = torch.arange(6).expand(2, -1)
    expected = ct.exact_scores(model, data, edges="*->Resid End")
    found = ct.exact_scores(
        model, data, edges="*->Resid End", forward={"position_ids": ids, "use_cache": False}
    )
    assert_same(found, expected)


def test_the_model_runs_as_it_would_by_itself() -> None:
    """The clean metric of a padded batch is that of plain passes, one prompt at a time."""
    curve = ct.faithfulness(  # pyright: ignore[reportCallIssue]
        wrapped(TYPICAL[0]), batch("right"), scored_alone(TYPICAL[0], "logit_diff", "eap")
    )
    hooked = shared(TYPICAL[0])
    with torch.no_grad():
        plain = [hooked(row)[0, -1] for row in CLEAN]
    expected = [float(row[r] - row[w]) for row, r, w in zip(plain, RIGHT, WRONG, strict=True)]
    assert curve.clean.tolist() == pytest.approx(expected, rel=1e-4)
