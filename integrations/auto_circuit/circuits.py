"""`run_circuits`: the outputs of circuits of given sizes, chosen by given scores."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.errors import InputError, MaskError
from circuit_trace.plan.ablation import check_ablation
from circuit_trace.plan.dataset import BAR_AFTER_SECONDS
from circuit_trace.plan.masks import check_scores
from circuit_trace.progress import tqdm

from .ablations import src_ablations
from .data import BatchKey, PromptDataLoader, batches_of
from .model import PatchableModel
from .patching import patch_mode
from .scores import desc_prune_scores, prune_scores_threshold

BatchOutputs = dict[BatchKey, Tensor]
"""Outputs by the batches' keys."""

CircuitOutputs = dict[int, BatchOutputs]
"""Outputs by the number of edges in the circuit."""


class PatchType(Enum):
    """Which edges are patched: the circuit's, or all others."""

    EDGE_PATCH = 1
    """The circuit's edges carry the clean prompt's outputs into the corrupt prompt."""
    TREE_PATCH = 2
    """All other edges carry the corrupt prompt's outputs into the clean prompt."""

    def __str__(self) -> str:
        return self.name.replace("_", " ").title()


def run_circuits(
    model: PatchableModel,
    dataloader: PromptDataLoader,
    test_edge_counts: Iterable[int],
    prune_scores: ct.PruneScores,
    patch_type: PatchType = PatchType.EDGE_PATCH,
    ablation_type: ct.AblationType = ct.AblationType.RESAMPLE,
    reverse_clean_corrupt: bool = False,
    render_graph: bool = False,
    render_score_threshold: float = 0.0,
    render_file_path: str | None = None,
) -> CircuitOutputs:
    """Run circuits of several sizes, the edges of highest |score| first, on every batch.

    The model's masks are those of the last circuit afterwards.

    Args:
        model: The model, from `patchable_model`.
        dataloader: The prompts.
        test_edge_counts: How many edges each circuit has; see `edge_counts_util`.
        prune_scores: Scores of every edge.
        patch_type: Which edges are patched.
        ablation_type: What is patched in.
        reverse_clean_corrupt: Exchange clean and corrupt prompts.
        render_graph: Draw the last circuit of each batch.
        render_score_threshold: The smallest mask that is drawn.
        render_file_path: Where to write the picture.

    Returns:
        From the number of edges to the outputs `model(prompts)[model.out_slice]` of each batch. Where
        scores are equal a circuit may have more edges than asked for; the number is what it has.

    Raises:
        InputError: There is no batch, a circuit would have more edges than there are, or an option is
            none of its kind.
        MaskError: The scores do not fit the model, or do not cover it.
    """
    if not isinstance(patch_type, PatchType):
        raise InputError(f"patch_type must be a PatchType; got {patch_type!r}.")
    check_ablation(ablation_type)
    scores = _complete(model, prune_scores)
    descending = desc_prune_scores(scores)
    thresholds = [prune_scores_threshold(descending, count) for count in test_edge_counts]
    runs_clean = (patch_type is PatchType.TREE_PATCH) != reverse_clean_corrupt
    outputs: CircuitOutputs = {}
    mean = None
    if ablation_type.mean_over_dataset:
        mean = src_ablations(model, dataloader, ablation_type)
    n_batches = 0
    bar = tqdm(dataloader, desc="circuits", delay=BAR_AFTER_SECONDS, leave=False)
    for batch in batches_of(bar):
        n_batches += 1
        run, other = batch.clean, batch.corrupt
        if not runs_clean:
            run, other = other, run
        patched = src_ablations(model, other, ablation_type) if mean is None else mean
        with patch_mode(model, patched), torch.no_grad():
            for threshold in thresholds:
                n_edges = _set_circuit(model, scores, threshold, patch_type)
                logits = model(run)[model.out_slice]
                outputs.setdefault(n_edges, {})[batch.key] = logits.clone()
        if render_graph:
            _draw(model, dataloader, render_score_threshold, render_file_path)
    if n_batches == 0:
        raise InputError(
            "The dataloader has no batch, so no circuit ran: its batch_size is larger than the "
            "dataset (what is left over of a batch is dropped), or the dataset is empty."
        )
    return outputs


def _set_circuit(
    model: PatchableModel, scores: ct.PruneScores, threshold: Tensor, patch_type: PatchType
) -> int:
    """Set the masks so that the circuit, or all but the circuit, is patched; return its size."""
    n_edges = 0
    for name, mask in model.patch_masks.items():
        inside = scores[name].abs() >= threshold.to(scores[name].device)
        n_edges += int(inside.sum())
        mask.data.copy_(inside if patch_type is PatchType.EDGE_PATCH else ~inside)
    return n_edges


def _complete(model: PatchableModel, prune_scores: Any) -> ct.PruneScores:
    scores = check_scores(model.graph, prune_scores, "The prune scores")
    missing = [name for name in model.patch_masks if name not in scores]
    if missing:
        raise MaskError(
            f"The prune scores lack {len(missing)} of {len(model.patch_masks)} modules, first "
            f"{missing[0]!r}: whether their edges are in the circuit is not known. Start from "
            "model.new_prune_scores()."
        )
    return {name: scores[name] for name in model.patch_masks}


def _draw(model: PatchableModel, dataloader: Any, threshold: float, file_path: str | None) -> None:
    from circuit_trace.visualize import draw_seq_graph

    draw_seq_graph(
        model.last_trace,
        score_threshold=float(threshold),
        seq_labels=getattr(dataloader, "seq_labels", None),
        file_path=file_path,
    )
