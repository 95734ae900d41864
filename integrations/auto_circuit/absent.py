"""auto-circuit's names that are not here, and what to use in their place."""

from __future__ import annotations

from circuit_trace.errors import CircuitTraceError


class AbsentError(CircuitTraceError, ImportError):
    """A name of auto-circuit's that the drop-in does not have."""


_FINDERS = (
    "finds prune scores, which is not part of the drop-in. Scores saved by auto-circuit load as they "
    "are; edge attribution scores are the gradients of the masks: open train_mask_mode(model) and "
    "patch_mode(model, outputs), run the model, call backward() on a metric, and read mask.grad"
)
_SUBNETWORK = (
    "serves subnetwork probing, which is not part of the drop-in: a pass uses the masks' own values, "
    "the same for all prompts of a batch"
)
_ENGINE = (
    "belongs to how auto-circuit rewrites a model; circuit_trace leaves the model as it is. What a "
    "pass wrote is in model.last_trace: last_trace.current.stack(), last_trace.edge(name).received"
)
_TASKS = (
    "belongs to auto-circuit's own experiments, which are not part of the drop-in. Load a model with "
    "load_tl_model and prompts with load_datasets_from_json"
)
_METRICS = (
    "is not part of the drop-in, which has measure_answer_val, measure_answer_diff and "
    "measure_kl_div: compute it from what run_circuits returns"
)
_TOYS = (
    "is a model of auto-circuit's own. Any module can be patched that has an anatomy: see "
    "circuit_trace.Anatomy and circuit_trace.wrap(model, anatomy=...)"
)

_REASONS: dict[str, tuple[str, ...]] = {
    _FINDERS: (
        "acdc_prune_scores",
        "activation_magnitude_prune_scores",
        "circuit_probing_prune_scores",
        "edge_attribution_patching_prune_scores",
        "ground_truth_prune_scores",
        "mask_gradient_prune_scores",
        "parameter_integrated_grads_prune_scores",
        "random_prune_scores",
        "run_prune_algos",
        "subnetwork_probing_prune_scores",
        "PruneAlgo",
        "PRUNE_ALGO_DICT",
    ),
    _SUBNETWORK: ("mask_fn_mode", "set_mask_batch_size", "MaskFn", "sample_hard_concrete"),
    _ENGINE: ("curr_src_outs", "patch_src_outs", "src_wrappers", "make_model_patchable"),
    _TASKS: (
        "Task",
        "TASKS",
        "TASK_DICT",
        "ioi_circuit_single_template_logit_diff_percent",
        "ioi_true_edges",
        "ioi_head_based_official_edges",
        "docstring_true_edges",
        "docstring_node_based_official_edges",
        "greaterthan_true_edges",
        "sports_players_true_edges",
        "tracr_reverse_true_edges",
        "tracr_xproportion_official_edges",
    ),
    _METRICS: (
        "answer_diff_percent",
        "measure_correct_ans_percent",
        "measure_correct_ans_greater_than_incorrect_percent",
        "measure_prune_metrics",
        "measurement_figs",
        "correct_answer_proportion",
        "correct_answer_greater_than_incorrect_proportion",
        "measure_roc",
        "measure_same_under_knockouts",
    ),
    _TOYS: ("MicroModel", "AutoencoderTransformer", "sae_model", "get_tracr_model"),
    "comes with the model: patchable_model(...).edges": ("graph_edges",),
    "is torch.save": ("save_cache",),
    "is torch.load(path, weights_only=True)": ("load_cache",),
}

_WHY = {name: reason for reason, names in _REASONS.items() for name in names}


def why_absent(name: str) -> str | None:
    """What to use instead of a name of auto-circuit's that is not here; None for any other name."""
    return f"{name!r} {_WHY[name]}." if name in _WHY else None
