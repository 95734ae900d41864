"""Scripts as auto-circuit's users write them, run with its imports or, these alone changed, with ours.

Each finds `tl_model` (a TransformerLens model), `tokens`, `corrupt_tokens` and `dataset` (a path), and
leaves what it computed in `results`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from circuit_trace.demo.prompts import CLEAN, CORRUPT
from circuit_trace.integrations.models import END_OF_TEXT

OURS = "from circuit_trace.integrations.auto_circuit import"

NAMES_AND_PLACES = [
    ("Mary", "John", "store"),
    ("Alice", "Bob", "park"),
    ("Tom", "Anna", "school"),
    ("Ruth", "Henry", "garden"),
    ("James", "Emma", "station"),
    ("Kate", "Paul", "library"),
]

ZERO_ABLATION = """
import torch as t
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model

model = patchable_model(
    tl_model, factorized=True, slice_output="last_seq", separate_qkv=True, device=t.device("cpu")
)
ablations = src_ablations(model, tokens, AblationType.ZERO)
with patch_mode(model, ablations, ["Resid Start->MLP 0", "MLP 0->A1.0.Q", "A1.0->Resid End"]):
    patched_out = model(tokens)
unpatched_out = model(tokens)
results = {
    "n edges": model.n_edges,
    "ablations": ablations,
    "patched": patched_out[model.out_slice],
    "unpatched": unpatched_out,
    "cache": model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"],
}
"""

EDGES_OVER_A_DATASET = """
from auto_circuit.data import load_datasets_from_json
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import batch_src_ablations, src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.visualize import draw_seq_graph

train_loader, test_loader = load_datasets_from_json(
    model=tl_model, path=dataset, device="cpu", batch_size=(2, 3), train_test_size=(6, 9)
)
model = patchable_model(tl_model, True, "last_seq", separate_qkv=True)
mean = src_ablations(model, test_loader, AblationType.TOKENWISE_MEAN_CORRUPT)
both = src_ablations(model, train_loader, AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT)
per_batch = batch_src_ablations(model, test_loader, AblationType.BATCH_ALL_TOK_MEAN, "corrupt")
edges = ["Resid Start->A0.1.V", "A0.1->A1.2.K", "MLP 0->A1.2.Q", "A1.2->Resid End", "MLP 0->MLP 1"]
with patch_mode(model, mean, edges):
    outs = [model(batch.clean) for batch in test_loader]
own_mean = []
with patch_mode(model, per_batch[next(iter(test_loader)).key]):
    own_mean.append(model(next(iter(test_loader)).clean))
scores = model.current_patch_masks_as_prune_scores()
results = {
    "prompts": [(b.clean, b.corrupt, b.answers, b.wrong_answers) for b in train_loader],
    "test prompts": [(b.clean, b.batch_diverge_idx) for b in test_loader],
    "labels": test_loader.seq_labels,
    "words": test_loader.word_idxs,
    "length": test_loader.seq_len,
    "mean": mean,
    "mean of both": both,
    "per batch": [per_batch[b.key] for b in test_loader],
    "outs": outs,
    "own mean": own_mean,
    "masks": scores,
    "figure": draw_seq_graph(model, scores, display_ipython=False),
}
"""

EDGE_OBJECTS = """
import torch
from auto_circuit.types import Edge
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.visualize import draw_seq_graph, net_viz

model = patchable_model(tl_model, factorized=True, separate_qkv=True)
chosen = {e for e in model.edges if e.src.layer == 1 and e.dest.layer >= 3 and e.src.head_idx == 2}
chosen.add(model.edge_name_dict[None]["MLP 1->Resid End"])
ablations = src_ablations(model, corrupt_tokens)
with torch.no_grad(), patch_mode(model, ablations, chosen):
    out = model(tokens)
    figure = draw_seq_graph(model, display_ipython=False)
by_name = sorted(model.edges, key=lambda edge: edge.name)
scores = model.new_prune_scores()
for number, edge in enumerate(by_name):
    scores[edge.dest.module_name][edge.patch_idx] = (number % 7 - 3) / 2
diagram, n_layers = net_viz(model, set(by_name[:40]), scores, (0, 1))
results = {
    "figure": figure,
    "diagram": [diagram],
    "out": out,
    "chosen": sorted(edge.name for edge in chosen),
    "named": {str(edge): edge.prune_score(scores) for edge in by_name},
    "masked": {e.name: e.patch_mask(model)[e.patch_idx].item() for e in by_name},
    "in all": [chosen <= model.edges, len(model.edges - chosen), len(model.edge_dict[None])],
    "sources": {s.src_idx: (s.name, s.module_name, s.layer, s.head_idx, s.head_dim) for s in model.srcs},
    "dests": {d.name: (d.module_name, d.layer, d.head_idx, d.head_dim) for d in model.dests},
    "first sources": {d.name: d.min_src_idx for d in model.dests},
    "nodes": len(model.nodes),
    "own edge": Edge(by_name[5].src, by_name[5].dest) == by_name[5],
    "numbers": [model.seq_dim, model.seq_len],
    "facts": [model.is_factorized, model.is_transformer, model.separate_qkv],
}
"""

CIRCUITS = """
from auto_circuit.data import load_datasets_from_json
from auto_circuit.metrics.prune_metrics.answer_diff import measure_answer_diff
from auto_circuit.metrics.prune_metrics.answer_value import measure_answer_val
from auto_circuit.metrics.prune_metrics.kl_div import measure_kl_div
from auto_circuit.prune import run_circuits
from auto_circuit.types import AblationType, CircuitOutputs, EdgeCounts, PatchType, PruneScores
from auto_circuit.utils.graph_utils import edge_counts_util, patchable_model
from auto_circuit.utils.tensor_ops import desc_prune_scores, prune_scores_threshold

train_loader, test_loader = load_datasets_from_json(
    tl_model, dataset, "cpu", batch_size=4, train_test_size=(4, 8), shuffle=False
)
model = patchable_model(tl_model, factorized=True, slice_output="last_seq", separate_qkv=True)
scores: PruneScores = model.new_prune_scores()
for number, edge in enumerate(sorted(model.edges, key=lambda edge: edge.name)):
    scores[edge.dest.module_name][edge.patch_idx] = (number * 37 % 101 - 50) / 10
groups = {name: one.round() for name, one in scores.items()}
results = {
    "sorted": desc_prune_scores(scores),
    "threshold": [prune_scores_threshold(scores, n) for n in (0, 1, 17)],
    "default counts": edge_counts_util(model.edges),
    "by scores": edge_counts_util(model.edges, prune_scores=groups),
    "by groups": edge_counts_util(model.edges, EdgeCounts.GROUPS, groups, zero_edges=False),
    "by tens": edge_counts_util(model.edges, EdgeCounts.LOGARITHMIC, true_edge_count=33),
    "by hand": edge_counts_util(model.edges, [5, 0.5, 0, 20], all_edges=True, zero_edges=False),
    "two": edge_counts_util(model.edges, [0, 7]),
}
for patch_type in PatchType:
    for ablation in (AblationType.RESAMPLE, AblationType.ZERO, AblationType.TOKENWISE_MEAN_CLEAN):
        for swapped in (False, True):
            outs: CircuitOutputs = run_circuits(
                model=model,
                dataloader=test_loader,
                test_edge_counts=[0, 3, 20, 20, len(model.edges)],
                prune_scores=scores,
                patch_type=patch_type,
                ablation_type=ablation,
                reverse_clean_corrupt=swapped,
            )
            results[f"{patch_type} {ablation.name} {swapped}"] = {
                n: [batch_outs[batch.key] for batch in test_loader] for n, batch_outs in outs.items()
            }
results["masks"] = model.current_patch_masks_as_prune_scores()
results["difference"] = measure_answer_diff(model, test_loader, outs)
results["probability"] = measure_answer_diff(model, test_loader, outs, "softmax")
results["value"] = measure_answer_val(model, test_loader, outs, "log_softmax")
results["wrong value"] = measure_answer_val(model, test_loader, outs, wrong_answer=True)
results["divergence"] = measure_kl_div(model, test_loader, outs)
"""

POSITIONS = """
from auto_circuit.data import load_datasets_from_json
from auto_circuit.prune import run_circuits
from auto_circuit.types import PatchType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.visualize import draw_seq_graph

train_loader, test_loader = load_datasets_from_json(
    model=tl_model,
    path=[dataset, dataset],
    device="cpu",
    batch_size=2,
    train_test_size=(4, 4),
    return_seq_length=True,
    random_seed=7,
)
model = patchable_model(
    tl_model, True, slice_output="not_first_seq", seq_len=test_loader.seq_len, separate_qkv=True
)
batch = next(iter(test_loader))
ablations = src_ablations(model, batch.corrupt)
edges = {edge for edge in model.edges if edge.seq_idx in (2, 14) and edge.name.startswith("A0.")}
with patch_mode(model, ablations, edges):
    at_two = model(batch.clean)
    figure = draw_seq_graph(model, seq_labels=test_loader.seq_labels, display_ipython=False)
with patch_mode(model, ablations, ["A0.1->MLP 1"]):
    everywhere = model(batch.clean)
    everywhere_masks = {n: m.clone() for n, m in model.current_patch_masks_as_prune_scores().items()}
scores = model.circuit_prune_scores(edges)
outs = run_circuits(model, test_loader, [len(edges)], scores, PatchType.TREE_PATCH)
results = {
    "length": test_loader.seq_len,
    "labels": test_loader.seq_labels,
    "words": test_loader.word_idxs,
    "n edges": [model.n_edges, len(model.edges), sorted(model.edge_dict)],
    "at two": at_two[model.out_slice],
    "figure": figure,
    "scores figure": draw_seq_graph(model, scores, 0.5, True, orientation="v", display_ipython=False),
    "everywhere": everywhere,
    "masks": everywhere_masks,
    "scores": scores,
    "as bools": model.circuit_prune_scores(["MLP 0->MLP 1"], bool=True),
    "circuit": {n: [of[b.key] for b in test_loader] for n, of in outs.items()},
}
"""

CACHED_PREFIX = """
from auto_circuit.data import load_datasets_from_json
from auto_circuit.prune import run_circuits
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model

train_loader, test_loader = load_datasets_from_json(
    model=tl_model,
    path=dataset,
    device="cpu",
    batch_size=(2, 3),
    train_test_size=(6, 9),
    return_seq_length=True,
    tail_divergence=True,
)
model = patchable_model(
    tl_model,
    factorized=True,
    slice_output="last_seq",
    seq_len=test_loader.seq_len,
    separate_qkv=True,
    kv_caches=(train_loader.kv_cache, test_loader.kv_cache),
)
mean = src_ablations(model, test_loader, AblationType.TOKENWISE_MEAN_CORRUPT)
with patch_mode(model, mean, ["A0.0->A1.1.Q", "MLP 0->A1.1.K", "A1.1->Resid End"]):
    outs = [model(batch.clean) for batch in test_loader]
resampled = []
for batch in train_loader:
    with patch_mode(model, src_ablations(model, batch.corrupt), ["MLP 0->A1.1.V", "A0.2->MLP 0"]):
        resampled.append(model(batch.clean)[model.out_slice])
scores = model.circuit_prune_scores(["A0.0->A1.1.Q", "Resid Start->A0.0.K"])
circuits = run_circuits(model, test_loader, [2 * test_loader.seq_len], scores)
results = {
    "cut": [test_loader.diverge_idx, train_loader.diverge_idx, test_loader.seq_len],
    "labels": test_loader.seq_labels,
    "batch sizes": sorted(model.kv_caches),
    "mean": mean,
    "outs": outs,
    "resampled": resampled,
    "circuits": {n: [of[b.key] for b in test_loader] for n, of in circuits.items()},
    "cache": model.run_with_cache(batch.clean)[1]["blocks.1.attn.hook_z"],
}
"""

MASKS_BY_HAND = """
import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.misc import module_by_name

model = patchable_model(tl_model, factorized=True, separate_qkv=False)
edges = {edge.name: edge for edge in model.edges}
ablations = src_ablations(model, corrupt_tokens)
outs = []
set_all_masks(model, val=0.3)
with torch.no_grad(), patch_mode(model, ablations):
    outs.append(model(tokens))
    set_all_masks(model, 0.0)
    outs.append(model(tokens))
    for name in ("A0.3->A1.1", "MLP 0->Resid End"):
        edges[name].patch_mask(model).data[edges[name].patch_idx] = 1.0
        outs.append(model(tokens))
    mask = module_by_name(model, "blocks.1.hook_mlp_in").patch_mask
    mask.data = torch.linspace(-1, 2, mask.numel())
    outs.append(model.run_with_cache(tokens)[0])
    outs.append(tl_model(tokens))
    for wrapper in model.dest_wrappers:
        wrapper.patch_mask.data = torch.ones_like(wrapper.patch_mask.data) / 2
    outs.append(tl_model(tokens))
    outs.append(model(corrupt_tokens))
outs.append(model(tokens))
results = {
    "outs": outs,
    "masks": model.current_patch_masks_as_prune_scores(),
    "sources": {w.module_name: w.in_srcs for w in model.wrappers if w.is_dest},
}
"""

MASK_GRADIENTS = """
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import batch_src_ablations
from auto_circuit.utils.graph_utils import (
    patch_mode, patchable_model, set_all_masks, train_mask_mode
)
from auto_circuit.utils.tensor_ops import (
    batch_answer_diff_percents, batch_avg_answer_diff, batch_avg_answer_val, multibatch_kl_div
)
from auto_circuit.visualize import draw_seq_graph

answers, wrong = [tokens[0, 1:2], tokens[0, 3:5]], [tokens[0, 3:5], tokens[0, 1:2]]
prompts = PromptDataset(
    tokens.repeat(2, 1), corrupt_tokens.repeat(2, 1), answers, wrong
)
loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0, batch_size=2)
model = patchable_model(tl_model, True, "last_seq", None, True)
src_outs = batch_src_ablations(model, loader, AblationType.RESAMPLE, clean_corrupt="corrupt")
found = []
with train_mask_mode(model) as masks:
    for val in (0.0, 0.5):
        set_all_masks(model, val)
        for batch in loader:
            with patch_mode(model, src_outs[batch.key].clone().detach()):
                logits = model(batch.clean)[model.out_slice]
                loss = batch_avg_answer_diff(logits, batch) - batch_avg_answer_val(logits, batch, True)
                loss.backward()
        found.append({name: mask.grad.clone() for name, mask in masks.items()})
results = {
    "gradients": found,
    "loss": loss.detach(),
    "percents": batch_answer_diff_percents(logits, logits + logits**2, batch).detach(),
    "divergence": multibatch_kl_div(logits.log_softmax(-1), (logits / 2).log_softmax(-1)).detach(),
    "figure": draw_seq_graph(model, found[1], 0.05, layer_spacing=True, display_ipython=False),
    "still": [mask.requires_grad for mask in masks.values()],
}
"""

ANSWERS_AT_EVERY_POSITION = """
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.metrics.prune_metrics.answer_diff import measure_answer_diff
from auto_circuit.metrics.prune_metrics.answer_diff_percent import (
    answer_diff_percent, measure_answer_diff_percent
)
from auto_circuit.metrics.prune_metrics.answer_value import measure_answer_val
from auto_circuit.metrics.prune_metrics.correct_answer_percent import measure_correct_ans_percent
from auto_circuit.metrics.prune_metrics.kl_div import measure_kl_div
from auto_circuit.prune import run_circuits
from auto_circuit.types import PatchType
from auto_circuit.utils.graph_utils import patchable_model

clean, corrupt = (one.repeat(4, 1) for one in (tokens, corrupt_tokens))
for row in range(1, 4):  # four prompts that differ
    clean[row, row * 3], corrupt[row, row * 3] = corrupt[row, 2], clean[row, 2]
with torch.no_grad():
    right, wrong = (tl_model(one)[:, 1:].argsort(-1)[..., -1:] for one in (clean, corrupt))
    wrong = torch.where(right == wrong, (wrong + 1) % 100, wrong)
prompts = PromptDataset(clean, corrupt, list(right), list(wrong))
loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0, batch_size=2, shuffle=False)
model = patchable_model(tl_model, True, "not_first_seq", separate_qkv=True)
scores = model.new_prune_scores()
for number, edge in enumerate(sorted(model.edges, key=lambda edge: edge.name)):
    scores[edge.dest.module_name][edge.patch_idx] = (number * 37 % 101 - 50) / 10
outs = run_circuits(model, loader, [0, 30, len(model.edges)], scores, PatchType.TREE_PATCH)
means, deviations, points = answer_diff_percent(model, loader, outs, "softmax", False)
results = {
    "value": measure_answer_val(model, loader, outs),
    "wrong value": measure_answer_val(model, loader, outs, "softmax", wrong_answer=True),
    "difference": measure_answer_diff(model, loader, outs, "log_softmax"),
    "percent": measure_answer_diff_percent(model, loader, outs),
    "percents of each": [means, deviations, [(n, one.detach()) for n, one in points]],
    "percents of the mean": answer_diff_percent(model, loader, outs),
    "right": measure_correct_ans_percent(model, loader, outs),
    "right of both": measure_correct_ans_percent(model, loader, outs, True),
    "divergence": measure_kl_div(model, loader, outs),
}
"""

SCORES_BY_GRADIENTS = """
from auto_circuit.data import load_datasets_from_json
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.edge_attribution_patching import edge_attribution_patching_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import AblationType
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.visualize import draw_seq_graph

train_loader, test_loader = load_datasets_from_json(
    tl_model, dataset, "cpu", batch_size=4, train_test_size=(8, 4), shuffle=False
)
model = patchable_model(tl_model, factorized=True, slice_output="last_seq", separate_qkv=True)
attribution_scores = mask_gradient_prune_scores(
    model=model,
    dataloader=train_loader,
    official_edges=None,
    grad_function="logit",
    answer_function="avg_diff",
    mask_val=0.0,
)
found = [attribution_scores, edge_attribution_patching_prune_scores(model, train_loader, None)]
for grad_function in ("logit", "prob", "logprob", "logit_exp"):
    for answer_function in ("avg_diff", "avg_val"):
        found.append(
            mask_gradient_prune_scores(
                model, train_loader, None, grad_function, answer_function, mask_val=0.3
            )
        )
for mask_val, samples, ablation, side in (
    (0.5, None, AblationType.ZERO, None),
    (None, 3, AblationType.RESAMPLE, "corrupt"),
    (None, 1, AblationType.BATCH_TOKENWISE_MEAN, "clean"),
    (None, 2, AblationType.TOKENWISE_MEAN_CORRUPT, None),
):
    found.append(
        mask_gradient_prune_scores(
            model, train_loader, None, "logprob", "avg_diff", mask_val, samples, ablation, side
        )
    )
outs = run_circuits(model, test_loader, [20], attribution_scores)
results = {
    "scores": found,
    "masks": model.current_patch_masks_as_prune_scores(),
    "circuit": {n: [of[b.key] for b in test_loader] for n, of in outs.items()},
    "figure": draw_seq_graph(model, attribution_scores, 3.0, display_ipython=False),
}
"""

SCRIPTS = {
    "zero ablation": ZERO_ABLATION,
    "edges over a dataset": EDGES_OVER_A_DATASET,
    "edge objects": EDGE_OBJECTS,
    "circuits": CIRCUITS,
    "positions": POSITIONS,
    "cached prefix": CACHED_PREFIX,
    "masks by hand": MASKS_BY_HAND,
    "mask gradients": MASK_GRADIENTS,
    "answers at every position": ANSWERS_AT_EVERY_POSITION,
    "scores by gradients": SCORES_BY_GRADIENTS,
}


def with_our_imports(script: str) -> str:
    """The script with its import lines changed, and nothing else."""
    return re.sub(r"from auto_circuit[\w.]* import", OURS, script)


def run(script: str, model: Any, dataset: Path) -> dict[str, Any]:
    """Execute a script and return its results."""
    tokens = [_tokens(model, text) for text in (CLEAN, CORRUPT)]
    names: dict[str, Any] = {
        "tl_model": model,
        "tokens": tokens[0],
        "corrupt_tokens": tokens[1],
        "dataset": dataset,
    }
    exec(compile(script, "<script>", "exec"), names)
    return names["results"]


def _tokens(model: Any, text: str) -> torch.Tensor:
    given = model.tokenizer([END_OF_TEXT + text], add_special_tokens=False, return_tensors="pt")
    return given["input_ids"]


def flagged_copy(model: Any, separate_qkv: bool = True) -> Any:
    """A copy of a HookedTransformer for auto-circuit to rewrite: with the flags that it needs, and a
    tokenizer that, as GPT-2's for a long time, puts no BOS token before a text by itself."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    twin = copy.deepcopy(model)
    twin.set_use_attn_result(True)
    twin.set_use_hook_mlp_in(True)
    twin.set_use_split_qkv_input(separate_qkv)
    twin.set_use_attn_in(not separate_qkv)
    own = json.loads((files("circuit_trace.demo") / "data" / "tokenizer.json").read_text())
    twin.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps({**own, "post_processor": None})),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    return twin.requires_grad_(False)


def write_dataset(path: Path) -> Path:
    """Prompts that begin alike ("When", then a name), and answers to them."""
    frame = "When {} and {} went to the {} , {} gave a drink to"
    prompts = [
        {
            "clean": frame.format(first, second, place, second),
            "corrupt": frame.format(second, first, place, first),
            "answers": [first],
            "wrong_answers": [second],
        }
        for one, other, place in NAMES_AND_PLACES
        for first, second in ((one, other), (other, one))
    ]
    prompts += [{**pair, "answers": [pair["answers"][0], "the"]} for pair in prompts[:5]]
    words = prompts[0]["clean"].split()
    content = {"seq_labels": words, "word_idxs": {"IO": 1, "end": 13}, "prompts": prompts}
    path.write_text(json.dumps(content))
    return path


def links_of(diagrams: Any) -> list[tuple[str, str, float]]:
    """What diagrams draw: the first and last lines of a link's label, its edge and its score or mask,
    and its width. auto-circuit's ghost links, which keep nodes in place, have no label."""
    return sorted(
        (label.split("<br>")[0], _number(label.split("<br>")[-1]), value)
        for diagram in diagrams
        for label, value in zip(diagram.link.label, diagram.link.value, strict=True)
        if label
    )


def _number(line: str) -> str:
    return line.replace("score ", "").replace("mask ", "")


def fingerprint(results: dict[str, Any]) -> dict[str, float]:
    """A few numbers for each result: how many numbers it holds, their mean, norm, and a sum that
    depends on their order; and a checksum of its texts."""
    found = {}
    for key, value in results.items():
        numbers, texts = _parts(value)
        row = torch.tensor(numbers, dtype=torch.float64)
        wave = torch.cos(torch.arange(len(row), dtype=torch.float64))
        found[f"{key}: numbers"] = float(len(row))
        if numbers:
            found[f"{key}: mean"] = row.mean().item()
            found[f"{key}: norm"] = row.norm().item() / len(row) ** 0.5
            found[f"{key}: wave"] = (row * wave).mean().item()
        found[f"{key}: texts"] = float(crc32(" ".join(texts).encode()))
    return found


def _parts(value: Any) -> tuple[list[float], list[str]]:
    """The numbers and the texts of a result of any kind, in an order of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().flatten().tolist(), []
    if isinstance(value, str):
        return [], [value]
    if isinstance(value, bool | int | float):
        return [float(value)], []
    if isinstance(value, slice) or value is None:
        return [], [str(value)]
    if hasattr(value, "data"):
        return _parts(list(value.data))
    if isinstance(value, Mapping):
        pairs = sorted(((str(key), one) for key, one in value.items()), key=lambda pair: pair[0])
        return _joined([part for pair in pairs for part in pair])
    if value and hasattr(value[0], "link"):
        return _joined([text for link in links_of(value) for text in link[:2]])
    return _joined(list(value))


def _joined(values: list[Any]) -> tuple[list[float], list[str]]:
    parts = [_parts(value) for value in values]
    return [n for numbers, _ in parts for n in numbers], [t for _, texts in parts for t in texts]


GOLDEN = Path(__file__).parent / "golden" / "auto_circuit.json"
"""What auto-circuit itself computes; `python -m tests.peer.test_drop_in` writes it."""


def golden(name: str) -> dict[str, float]:
    """The fingerprint of what auto-circuit computes with the script of that name."""
    return json.loads(GOLDEN.read_text())[name]


def write_golden(found: dict[str, dict[str, float]]) -> None:
    """Write what auto-circuit computes for all scripts."""
    rounded = {
        name: {key: float(f"{number:.10g}") for key, number in one.items()}
        for name, one in found.items()
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
