"""Every method against another way to compute it, on every kind of model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.score.methods import METHODS
from tests.models import CASES, N_KV_HEADS, TYPICAL, oracle, tokens, wrapped
from tests.score.naive import attribution, each_on_the_way, on_the_way

SEQ, BATCH = 6, 2
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
IN_DOUBLE = tuple(name for name in ("hooked LN", "hooked grouped", "bridge GPT-2") if name in CASES)
"""Models that compute all of a pass in double precision, as finite differences need."""


def here(*more: str) -> list[str]:
    """Typical models and some more, of those that the installed TransformerLens has."""
    return [*TYPICAL, *(name for name in more if name in CASES)]


positions = pytest.mark.parametrize("seq_len", [None, SEQ])


def metric(logits: Tensor, batch: Any) -> Tensor:
    """A logit difference, as papers use."""
    return logits[:, -1, 3] - logits[:, -1, 5]


def summed(logits: Tensor) -> Tensor:
    return metric(logits, None).sum()


def scored(model: ct.PatchableModel, method: str, **options: Any) -> dict[str, Tensor]:
    return ct.score_edges(model, (CLEAN, CORRUPT), metric, method=method, **options)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert found[key].shape == score.shape
        assert_close(found[key], score.to(found[key].dtype), rtol=1e-4, atol=1e-4)
    assert max(float(score.abs().max()) for score in expected.values()) > 1e-3


@positions
@pytest.mark.parametrize("name", CASES)
def test_eap_is_the_gradient_of_the_engines_masks(name: str, seq_len: int | None) -> None:
    model = wrapped(name, seq_len)
    assert_same(scored(model, "eap"), scored(model, "mask-gradient"))


@positions
@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].n_kv_heads != N_KV_HEADS])
def test_also_where_queries_keys_and_values_are_one(name: str, seq_len: int | None) -> None:
    model = wrapped(name, seq_len, False)
    assert_same(scored(model, "eap"), scored(model, "mask-gradient"))


@pytest.mark.parametrize("ablation", ["ZERO", "BATCH_TOKENWISE_MEAN", "BATCH_ALL_TOK_MEAN"])
@pytest.mark.parametrize("name", here("hooked norms after too"))
def test_also_for_the_ablations_of_a_batch(name: str, ablation: str) -> None:
    model = wrapped(name, SEQ)
    options: dict[str, Any] = {"ablation": ct.AblationType[ablation]}
    eap = scored(model, "eap", **options)
    assert_same(eap, scored(model, "mask-gradient", **options))
    by_hand = {"patched": model.source_outputs(CORRUPT, options["ablation"])}
    assert_same(eap, scored(model, "eap", **by_hand))
    alone = {"clean": CLEAN}
    found = ct.score_edges(model, alone, metric, method="eap-ig", steps=[0.0], **options)
    expected = {"patched": model.source_outputs(CLEAN, options["ablation"])}
    assert_same(found, scored(model, "eap", **expected))


@pytest.mark.parametrize(
    "ablation", [kind.name for kind in ct.AblationType if kind.mean_over_dataset]
)
def test_also_for_means_over_a_dataset(ablation: str) -> None:
    model = wrapped(TYPICAL[0])
    pairs = [(tokens(seed, seq=SEQ), tokens(seed + 1, seq=SEQ)) for seed in (5, 7)]
    options = {"patched": model.source_outputs(pairs, ct.AblationType[ablation])}
    eap = scored(model, "eap", **options)
    assert_same(eap, scored(model, "mask-gradient", **options))
    uneven = [(CLEAN, CORRUPT), (CLEAN[:1], CORRUPT[:1])]
    found = ct.score_edges(model, [uneven[0], uneven[0]], metric, **options)
    assert_same(found, eap)


@pytest.mark.parametrize("mask_value", [0.4, 1.0])
@pytest.mark.parametrize("name", IN_DOUBLE)
@positions
def test_masks_agree_with_finite_differences(
    name: str, seq_len: int | None, mask_value: float
) -> None:
    model = ct.wrap(CASES[name].build().to(torch.float64), seq_len=seq_len)
    scores = scored(model, "mask-gradient", mask_value=mask_value)
    assert_close(_slopes(model, scores, mask_value), _picked(model, scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", IN_DOUBLE)
@positions
def test_eap_agrees_with_finite_differences(name: str, seq_len: int | None) -> None:
    model = ct.wrap(CASES[name].build().to(torch.float64), seq_len=seq_len)
    scores = scored(model, "eap")
    assert scores["blocks.0.hook_q_input"].dtype == torch.float64
    slopes = _slopes(model, scores, 0.0)
    assert_close(slopes, _picked(model, scores), rtol=1e-5, atol=1e-6)
    assert slopes.abs().max() > 1e-3


def _sample(model: ct.PatchableModel) -> list[ct.Edge]:
    return [model.edges[i] for i in random.Random(0).sample(range(model.n_edges), 20)]


def _place(model: ct.PatchableModel, edge: ct.Edge) -> tuple[str, tuple[int, ...]]:
    position = () if edge.seq_idx is None else (edge.seq_idx,)
    head = () if edge.dest.head is None else (edge.dest.slot,)
    return edge.dest.module_name, (*position, *head, edge.src.idx)


def _picked(model: ct.PatchableModel, scores: Mapping[str, Tensor]) -> Tensor:
    places = [_place(model, edge) for edge in _sample(model)]
    return torch.stack([scores[name][index] for name, index in places])


def _slopes(model: ct.PatchableModel, like: Mapping[str, Tensor], value: float) -> Tensor:
    """How the mean metric changes as one mask moves, by two passes for each sampled edge."""
    patched = model.source_outputs(CORRUPT)

    def at(edge: ct.Edge, step: float) -> Tensor:
        masks = {name: torch.full_like(score, value) for name, score in like.items()}
        name, index = _place(model, edge)
        masks[name][index] += step
        with torch.no_grad(), model.patch(patched, masks=masks):
            return metric(model(CLEAN), None).mean()

    return torch.stack([(at(e, 1e-5) - at(e, -1e-5)) / 2e-5 for e in _sample(model)])


@positions
@pytest.mark.parametrize("name", here("hooked parallel", "hooked norms after too"))
@pytest.mark.parametrize(
    ("method", "points"),
    [("eap", [0.0]), ("clean-corrupted", [0.0, 1.0]), ("eap-ig", [1 / 6, 0.5, 5 / 6])],
)
def test_inputs_on_the_way_agree_with_plain_hooks(
    name: str, method: str, points: list[float], seq_len: int | None
) -> None:
    second = oracle(name)
    patched = second.run(CORRUPT).wrote
    moves = [[on_the_way(second, CLEAN, patched, point)] for point in points]
    by_position = seq_len is not None
    expected = attribution(second, CLEAN, patched, summed, moves=moves, by_position=by_position)
    assert_same(scored(wrapped(name, seq_len), method, steps=3), expected)


@pytest.mark.parametrize("name", here("hooked attention-only", "hooked norms after too"))
def test_activations_on_the_way_agree_with_plain_hooks(name: str) -> None:
    second = oracle(name)
    patched = second.run(CORRUPT).wrote
    points = (1 / 6, 0.5, 5 / 6)
    moves = [run for p in points for run in each_on_the_way(second, CLEAN, patched, p)]
    expected = attribution(second, CLEAN, patched, summed, moves=moves)
    assert_same(scored(wrapped(name), "eap-ig-activations", steps=3), expected)


def test_at_its_clean_end_every_path_is_eap() -> None:
    model = wrapped(TYPICAL[0], SEQ)
    eap = scored(model, "eap")
    for method in ("eap-ig", "eap-ig-activations"):
        assert_same(scored(model, method, steps=[0.0]), eap)
    assert_same(scored(model, "eap-ig", steps=[0, 1]), scored(model, "clean-corrupted"))


def _change(model: ct.PatchableModel) -> float:
    with torch.no_grad():
        return float((metric(model(CORRUPT), None) - metric(model(CLEAN), None)).mean())


def _out_of_start(scores: Mapping[str, Tensor]) -> float:
    return sum(float(score[..., 0].sum()) for score in scores.values())


@pytest.mark.parametrize("name", IN_DOUBLE)
def test_edges_out_of_the_start_add_up_to_the_whole_change(name: str) -> None:
    """Integrated gradients are complete; the midpoint rule's error falls as the square of the step."""
    model = ct.wrap(CASES[name].build().to(torch.float64))
    change = _change(model)
    errors = [abs(_out_of_start(scored(model, "eap-ig", steps=n)) - change) for n in (16, 64, 256)]
    assert errors[2] < 1e-3 * abs(change)
    assert errors[2] < errors[1] / 8
    assert abs(_out_of_start(scored(model, "eap")) - change) > 0.1 * abs(change), (
        "it is no identity"
    )


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("magnitude", "mask-gradient")])
def test_edges_into_the_end_add_up_where_it_is_read_linearly(method: str) -> None:
    for name in here("hooked no norm"):
        model = wrapped(name)
        into_end = float(scored(model, method)[model.graph.modules[-1].name].sum())
        is_whole = into_end == pytest.approx(_change(model), rel=1e-3)
        assert is_whole == (name == "hooked no norm")


@positions
@pytest.mark.parametrize("name", TYPICAL)
def test_the_magnitude_is_what_a_table_says(name: str, seq_len: int | None) -> None:
    model = wrapped(name, seq_len)
    found = scored(model, "magnitude")
    trace = model.trace(CLEAN, corrupt=CORRUPT)
    change = trace.patched.stack() - trace.current.stack()
    by_source = change.norm(dim=-1).mean(1).T if seq_len else change.flatten(2).norm(dim=-1).mean(1)
    for module in model.graph.modules:
        expected = by_source[..., : module.n_sources]
        expected = expected.unsqueeze(-2) if module.has_heads else expected
        assert_close(found[module.name], expected.expand_as(found[module.name]))


def test_exact_is_one_of_them() -> None:
    model = wrapped(TYPICAL[0])
    assert_same(scored(model, "exact"), ct.exact_scores(model, (CLEAN, CORRUPT), metric))


@pytest.mark.parametrize("method", ["eap-ig", "clean-corrupted", "mask-gradient"])
def test_kl_is_scored_where_it_has_a_slope(method: str) -> None:
    model = wrapped(TYPICAL[0])
    pairs = (CLEAN, CORRUPT)
    scores = ct.score_edges(model, pairs, "kl", method=method, mask_value=1.0, steps=64)
    total = _out_of_start(scores)
    assert abs(total) > 1e-3
    if method == "eap-ig":
        with torch.no_grad():
            clean, corrupt = (model(one)[:, -1].log_softmax(-1) for one in pairs)
        kl = (clean.exp() * (clean - corrupt)).sum(-1).mean()
        assert total == pytest.approx(float(kl), rel=0.02)


def test_bfloat16_comes_close() -> None:
    model = CASES[TYPICAL[-1]].build()
    expected = scored(ct.wrap(model), "eap")
    found = scored(ct.wrap(model.to(torch.bfloat16)), "eap")
    assert {score.dtype for score in found.values()} == {torch.float32}
    ours, theirs = (torch.cat([s.flatten() for s in one.values()]) for one in (found, expected))
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.99


def test_heads_of_other_weights_cannot_be_moved_step_by_step() -> None:
    model = wrapped(TYPICAL[0])
    other = CASES[TYPICAL[0]].build()
    with torch.no_grad():
        other.blocks[0].attn.W_O.mul_(1.1)
    patched = ct.wrap(other).source_outputs(CORRUPT)
    assert_same(
        scored(model, "eap", patched=patched), scored(model, "mask-gradient", patched=patched)
    )
    with pytest.raises(
        ct.InputError, match=r"^Batch 0: What is patched into 'A0.0' comes from other"
    ):
        scored(model, "eap-ig-activations", patched=patched)
