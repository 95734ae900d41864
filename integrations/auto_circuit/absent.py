"""auto-circuit's names that are not here, and what to use in their place."""

from __future__ import annotations

import re

from circuit_trace.errors import CircuitTraceError


class AbsentError(CircuitTraceError, ImportError):
    """A name of auto-circuit's that the drop-in does not have."""


_REASONS = {
    r"\w+_prune_scores PruneAlgo run_\w*prune_\w+ \w*PRUNE_ALGO\w*": (
        "finds prune scores in a way that is not part of the drop-in. mask_gradient_prune_scores is, "
        "which with mask_val=0.0 is edge attribution patching; circuit_trace.score_edges has further "
        "methods, circuit_trace.acdc is ACDC. Scores saved by auto-circuit load as they are"
    ),
    r"mask_fn_mode set_mask_batch_size MaskFn mask_fn sample_hard_concrete SP SP_\w+": (
        "serves subnetwork probing, which is not part of the drop-in: a pass uses the masks' own "
        "values, the same for all prompts of a batch"
    ),
    r"curr_src_outs patch_src_outs src_wrappers make_model_patchable set_module_by_name "
    r"\w*src_out_hook remove_hooks": (
        "belongs to how auto-circuit rewrites a model; circuit_trace leaves the model as it is. What "
        "the sources wrote in the last pass is model.last_trace.current.stack()"
    ),
    r"Task TASKS TASK_DICT \w+_TASK TaskKey AlgoKey \w+_CACHE IOI_CIRCUIT\w* ioi_(circuit|node)_\w+ "
    r"\w+_(true|official|acdc)_edges\w* CIRCUIT CONNECTED_PAIRS Conn idx_to_nodes": (
        "belongs to auto-circuit's own experiments, which are not part of the drop-in. Load a model "
        "with load_tl_model and prompts with load_datasets_from_json"
    ),
    r"measure\w+ \w+Measurements \w+_METRIC PRUNE_METRIC\w* PruneMetric\w* \w*roc_plot \w*_auc "
    r"\w*_auc_plot edge_patching_plot \w*same_under_knockout\w* \w*CompletenessScores "
    r"\w*prune_scores?_similarities\w* indices_vals vocab_avg_val": (
        "measures in a way that is not part of the drop-in: work it out from what run_circuits returns, "
        "or use measure_answer_val, measure_answer_diff, measure_answer_diff_percent, "
        "measure_correct_ans_percent or measure_kl_div"
    ),
    r"MicroModel Block \w*Autoencoder\w* \w+_autoencoder sae_model \w*Projector\w* RotationMatrix "
    r"Symmetric get_(tracr|projector)_model get_model_and_data train_model TRACR_TASK_KEY \w+_VOCAB BOS "
    r"MAX_SEQ_LEN CHUNK_SIZE STATE_DICT_MAPS": (
        "belongs to a model of auto-circuit's own. Any module that has an anatomy can be patched, with "
        "patchable_model(..., anatomy=...): see circuit_trace.Anatomy"
    ),
    r"graph_edges (factorized|simple)_\w+_nodes": (
        "comes with the model: patchable_model(...).edges, .nodes, .srcs and .dests"
    ),
    r"save_cache load_cache": "is torch.save, and torch.load(path, weights_only=True)",
    r"COLOR_PALETTE": "is auto-circuit's choice of colours; here a link's colour says what it is",
    r"run_prompt get_most_similar_embeddings percent_gpu_mem_used avg_kl_div avg_l0_norm node_name "
    r"t_fmt identity \w*default_factory": (
        "is a helper of auto-circuit's that is not part of the drop-in"
    ),
}
"""What is said of the names that one of some patterns matches."""


def why_absent(name: str) -> str | None:
    """What to use instead of a name of auto-circuit's that is not here; None for any other name."""
    for patterns, why in _REASONS.items():
        if any(re.fullmatch(pattern, name) for pattern in patterns.split()):
            return f"{name!r} {why}."
    return None
