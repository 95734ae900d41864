"""auto-circuit's names for patching and drawing, on circuit_trace's engine.

A script that patches and draws with auto-circuit 1.0.1 runs on TransformerLens 2.16 to 4.x when its
imports are changed:

>>> from circuit_trace.integrations.auto_circuit import AblationType, draw_seq_graph, load_tl_model
>>> from circuit_trace.integrations.auto_circuit import patch_mode, patchable_model, src_ablations
>>> model = load_tl_model("bundled", "cpu")
>>> tokens = model.to_tokens("When Mary and John went to the store , John gave a drink to")
>>> model = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)
>>> ablations = src_ablations(model, tokens, AblationType.ZERO)
>>> with patch_mode(model, ablations, ["MLP 0->A1.0.Q", "A1.0->Resid End"]):
...     patched_out = model(tokens)
>>> figure = draw_seq_graph(model, model.current_patch_masks_as_prune_scores())

AUTO_CIRCUIT.md, beside this folder, says what is called what, and what differs.
"""

from typing import Any

from circuit_trace.model import OutputSlice as OutputSlice
from circuit_trace.plan import AblationType as AblationType
from circuit_trace.plan import PruneScores as PruneScores
from circuit_trace.progress import tqdm as tqdm
from circuit_trace.visualize import draw_seq_graph as draw_seq_graph
from circuit_trace.visualize import net_viz as net_viz

from .ablations import batch_src_ablations as batch_src_ablations
from .ablations import src_ablations as src_ablations
from .absent import AbsentError as AbsentError
from .absent import why_absent as _why_absent
from .answers import batch_answer_diff_percents as batch_answer_diff_percents
from .answers import batch_answer_diffs as batch_answer_diffs
from .answers import batch_avg_answer_diff as batch_avg_answer_diff
from .answers import batch_avg_answer_val as batch_avg_answer_val
from .answers import (
    correct_answer_greater_than_incorrect_proportion as correct_answer_greater_than_incorrect_proportion,
)
from .answers import correct_answer_proportion as correct_answer_proportion
from .answers import multibatch_kl_div as multibatch_kl_div
from .circuits import BatchOutputs as BatchOutputs
from .circuits import CircuitOutputs as CircuitOutputs
from .circuits import PatchType as PatchType
from .circuits import run_circuits as run_circuits
from .data import BatchKey as BatchKey
from .data import PromptDataLoader as PromptDataLoader
from .data import PromptDataset as PromptDataset
from .data import PromptPair as PromptPair
from .data import PromptPairBatch as PromptPairBatch
from .data import collate_fn as collate_fn
from .gradients import (
    edge_attribution_patching_prune_scores as edge_attribution_patching_prune_scores,
)
from .gradients import mask_gradient_prune_scores as mask_gradient_prune_scores
from .load import load_datasets_from_json as load_datasets_from_json
from .load import load_tl_model as load_tl_model
from .load import repo_path_to_abs_path as repo_path_to_abs_path
from .measures import Measurements as Measurements
from .measures import answer_diff_percent as answer_diff_percent
from .measures import measure_answer_diff as measure_answer_diff
from .measures import measure_answer_diff_percent as measure_answer_diff_percent
from .measures import measure_answer_val as measure_answer_val
from .measures import measure_correct_ans_percent as measure_correct_ans_percent
from .measures import measure_kl_div as measure_kl_div
from .model import PatchableModel as PatchableModel
from .model import PatchWrapper as PatchWrapper
from .model import module_by_name as module_by_name
from .model import patchable_model as patchable_model
from .nodes import DestNode as DestNode
from .nodes import Edge as Edge
from .nodes import Node as Node
from .nodes import SrcNode as SrcNode
from .patching import patch_mode as patch_mode
from .patching import set_all_masks as set_all_masks
from .patching import train_mask_mode as train_mask_mode
from .scores import AlgoPruneScores as AlgoPruneScores
from .scores import EdgeCounts as EdgeCounts
from .scores import TaskPruneScores as TaskPruneScores
from .scores import TestEdges as TestEdges
from .scores import desc_prune_scores as desc_prune_scores
from .scores import edge_counts_util as edge_counts_util
from .scores import flat_prune_scores as flat_prune_scores
from .scores import prune_scores_threshold as prune_scores_threshold

PatchWrapperImpl = PatchWrapper


def __getattr__(name: str) -> Any:
    """Say what to use instead of what is not here."""
    why = _why_absent(name)
    if why is not None:  # an AttributeError would lose its message in `from … import name`
        raise AbsentError(why)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
