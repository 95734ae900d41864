"""Scores by the masks' gradients, against finite differences and against `score_edges`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.integrations import auto_circuit as ac
from circuit_trace.integrations.models import load_bundled_model
from tests.integrations.auto_circuit_scripts import write_dataset

EDGES = ["MLP 0->Resid End", "A0.1->A1.2.Q", "A0.3->A1.0.V", "A0.2->MLP 0"]


@pytest.fixture(scope="module")
def model() -> ac.PatchableModel:
    return ac.patchable_model(load_bundled_model(), True, "last_seq", separate_qkv=True)


@pytest.fixture
def loader(model: ac.PatchableModel, tmp_path: Any) -> ac.PromptDataLoader:
    dataset = write_dataset(tmp_path / "prompts.json")
    return ac.load_datasets_from_json(
        model, dataset, "cpu", batch_size=2, train_test_size=(4, 0), shuffle=False
    )[0]


def loss_at(model: ac.PatchableModel, loader: Any, masks: ct.PruneScores) -> float:
    """The loss by plain means: log-probabilities of what the engine computes with these masks."""
    total = 0.0
    for batch in loader:
        logits = model.engine.trace(batch.clean, corrupt=batch.corrupt, masks=masks).logits[:, -1]
        rows = zip(logits.log_softmax(-1).double(), batch.answers, batch.wrong_answers, strict=True)
        total -= sum(float(row[right] - row[wrong]) for row, right, wrong in rows) / len(logits)
    return total


def test_finite_differences(model: ac.PatchableModel, loader: ac.PromptDataLoader) -> None:
    found = ac.mask_gradient_prune_scores(model, loader, None, "logprob", "avg_diff", mask_val=0.3)
    step = 0.05
    for name in EDGES:
        edge = model.edge_name_dict[None][name]
        values = []
        for sign in (1, -1):
            masks = model.new_prune_scores(0.3)
            masks[edge.dest.module_name][edge.patch_idx] += sign * step
            values.append(loss_at(model, loader, masks))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(edge.prune_score(found)) == pytest.approx(slope, rel=0.02, abs=2e-3), name
        assert abs(slope) > 1e-3, name


def test_attribution_patching_is_score_edges(
    model: ac.PatchableModel, loader: ac.PromptDataLoader
) -> None:
    """Its gradients are of the negated difference, and add up over batches."""
    batches = [(b.clean, b.corrupt, b.answers, b.wrong_answers) for b in loader]
    expected = ct.score_edges(model.engine, batches, "logit_diff", method="eap")
    for found in (
        ac.edge_attribution_patching_prune_scores(model, loader, None),
        ac.mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", mask_val=0.0),
    ):
        assert found.keys() == expected.keys()
        for name, score in expected.items():
            assert_close(found[name], -len(batches) * score, rtol=1e-4, atol=1e-4)


def test_a_path_is_the_sum_of_its_points(
    model: ac.PatchableModel, loader: ac.PromptDataLoader
) -> None:
    def at(**options: Any) -> ct.PruneScores:
        return ac.mask_gradient_prune_scores(model, loader, None, "prob", "avg_val", **options)

    whole = at(integrated_grad_samples=2)
    points = [at(mask_val=value) for value in (0.0, 0.5, 1.0)]
    for name, score in whole.items():
        assert_close(score, sum(point[name] for point in points), rtol=1e-4, atol=1e-6)


def test_squared_error_of_outputs(model: ac.PatchableModel) -> None:
    """The answers are the outputs wanted: where they are the model's own, no edge has a slope."""
    clean, corrupt = (model.to_tokens(text) for text in ("When Mary and John", "When Tom and John"))
    with torch.no_grad():
        wanted = model(clean)[model.out_slice][0]
    scores = []
    for answers in (wanted, wanted + 1):
        prompts = ac.PromptDataset(clean, corrupt, [answers], [answers])
        loader = ac.PromptDataLoader(prompts, seq_len=None, diverge_idx=0)
        found = ac.mask_gradient_prune_scores(model, loader, None, "logit", "mse", mask_val=0.0)
        scores.append(max(float(score.abs().max()) for score in found.values()))
    assert scores[0] < 1e-4 < 1e-2 < scores[1]
    tokens = ac.PromptDataset(clean, corrupt, [torch.tensor([1])], [torch.tensor([2])])
    with pytest.raises(ct.InputError, match="compares outputs with answers of their shape"):
        ac.mask_gradient_prune_scores(
            model, ac.PromptDataLoader(tokens, None, 0), None, "logit", "mse", mask_val=0.0
        )


def test_weights_get_no_gradients_and_grad_may_be_off(loader: ac.PromptDataLoader) -> None:
    tl_model: Any = load_bundled_model()
    tl_model.requires_grad_(True)
    model = ac.patchable_model(tl_model, True, "last_seq", separate_qkv=True)
    with torch.no_grad():
        found = ac.mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", 0.0)
    assert all(weight.grad is None for weight in tl_model.parameters())
    assert all(weight.requires_grad for weight in tl_model.parameters())
    assert not any(mask.requires_grad for mask in model.patch_masks.values())
    assert max(float(score.abs().max()) for score in found.values()) > 1
    assert model.open_patch is None
