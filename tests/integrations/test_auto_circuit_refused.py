"""What the drop-in for auto-circuit reads from files, and what it refuses, in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.demo.prompts import CLEAN, CORRUPT
from circuit_trace.integrations import auto_circuit as ac
from circuit_trace.integrations.models import load_bundled_model
from tests.models import HAS_BRIDGE, HAS_HOOKED

pytestmark = pytest.mark.usefixtures("as_a_user")

needs_bridge = pytest.mark.skipif(not HAS_BRIDGE, reason="TransformerLens 2 has no bridge")
needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has bridges alone")

IDS = {"clean": [0, 8, 42], "corrupt": [0, 8, 43], "answers": [1, 2], "wrong_answers": [3]}


def write(path: Path, *pairs: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"prompts": pairs, **more}))
    return path


def two_texts(folder: Path, **changes: Any) -> Path:
    """A dataset of two prompts, the second of which is changed."""
    pair = {"clean": CLEAN, "corrupt": CORRUPT, "answers": ["Mary"], "wrong_answers": ["John"]}
    return write(folder / "texts.json", pair, {**pair, **changes})


def load(path: Any, kind: Any = None, **options: Any) -> Any:
    options = {"device": "cpu", "batch_size": 1, "train_test_size": (1, 1), **options}
    return ac.load_datasets_from_json(load_bundled_model(kind), path, **options)


def load_ids(path: Any, **options: Any) -> Any:
    options = {"prepend_bos": False, "batch_size": 1, "train_test_size": (1, 1), **options}
    return ac.load_datasets_from_json(None, path, "cpu", **options)


@needs_hooked
def test_padding_on_the_left_is_not_read(tmp_path: Path) -> None:
    short = "Later John gave a drink to"
    dataset = two_texts(tmp_path, clean=short, corrupt=short)
    tl_model: Any = load_bundled_model("hooked")
    loader, _ = ac.load_datasets_from_json(
        tl_model, dataset, "cpu", batch_size=2, train_test_size=(2, 0), shuffle=False
    )
    batch = next(iter(loader))
    assert batch.clean[1, :-7].tolist() == [0] * 8
    alone = tl_model(tl_model.to_tokens(short))[0, -1]
    assert_close(tl_model(batch.clean)[1, -1], alone)


def test_datasets_of_token_ids(tmp_path: Path) -> None:
    uneven = {**IDS, "wrong_answers": [4, 5], "corrupt": [0, 9, 43]}
    path = write(tmp_path / "ids.json", IDS, uneven, IDS, seq_labels=["a", "b", "c"])
    train, test = load_ids(str(path), batch_size=(2, 1), train_test_size=(2, 1), shuffle=False)
    batch = next(iter(train))
    assert batch.clean.tolist() == [[0, 8, 42]] * 2
    assert batch.answers.tolist() == [[1, 2]] * 2
    assert [row.tolist() for row in batch.wrong_answers] == [[3], [4, 5]]
    assert (batch.batch_diverge_idx, train.seq_len, test.seq_labels) == (1, 3, ["a", "b", "c"])
    keys = [next(iter(loader)).key for loader in (train, train, test)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[2] == SAME_IN_EVERY_PROCESS


SAME_IN_EVERY_PROCESS = 12645469964999050706
"""The key of a batch of `IDS`."""

WRONG_DATASETS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda at: load(at / "none.json"), r"none.json cannot be read: "),
    "no path": (lambda at: load_ids([]), r"path names no file"),
    "no prompts": (
        lambda at: (at / "d.json").write_text("[]") and load(at / "d.json"),
        r'must hold \{"prompts": \[...\]\}',
    ),
    "a prompt without answers": (
        lambda at: load(write(at / "d.json", {"clean": "a"})),
        r"Prompt 0 of .*d.json lacks corrupt, answers, wrong_answers",
    ),
    "a prompt that is none": (
        lambda at: load(write(at / "d.json", "a")),
        r"Prompt 0 of .* lacks clean",
    ),
    "too few prompts": (
        lambda at: load(two_texts(at), train_test_size=(2, 3)),
        r"asks for 2 \+ 3 prompts, but there are 2",
    ),
    "unequal lengths": (
        lambda at: load(two_texts(at, clean="When"), return_seq_length=True),
        r"The prompts have 2 to 15 tokens. return_seq_length=True and pad=False need prompts of one",
    ),
    "unequal lengths in a batch": (
        lambda at: list(
            load_ids(write(at / "d.json", IDS, {**IDS, "clean": [0]}), shuffle=False)[1]
        ),
        r"The prompts of a batch must have the same number of tokens, got \[1, 3\]",
    ),
    "answers of unequal length": (
        lambda at: load(two_texts(at, answers=["Mary", "Mary John"])),
        r"\['Mary', 'Mary John'\] have \[1, 2\] tokens: those of one prompt",
    ),
    "answers that are numbers": (
        lambda at: load(two_texts(at, answers=[3])),
        r"Answers must be texts where a model's tokenizer reads them; got \[3\]",
    ),
    "BOS without a tokenizer": (
        lambda at: load_ids(two_texts(at), prepend_bos=True),
        r"Without a model there is no tokenizer and no cache: pass prepend_bos=False",
    ),
    "a list of another length": (
        lambda at: ac.PromptDataset([torch.tensor([1])], [], [], []),
        r"as many clean prompts as corrupt ones, answers and wrong answers; got 1, 0, 0, 0",
    ),
    "a cache of no prefix": (
        lambda at: ac.PromptDataLoader(ac.PromptDataset([], [], [], []), None, 0, object()),
        r"A kv_cache holds a prefix: diverge_idx must say its length, not 0",
    ),
}


@pytest.mark.parametrize("case", WRONG_DATASETS)
def test_wrong_datasets(case: str, tmp_path: Path) -> None:
    call, message = WRONG_DATASETS[case]
    with pytest.raises(ct.InputError, match=message):
        call(tmp_path)


@needs_bridge
def test_a_bridge_would_read_padding(tmp_path: Path) -> None:
    with pytest.raises(
        ct.InputError, match=r"have 2 to 15 tokens .* a TransformerBridge reads padding"
    ):
        load(two_texts(tmp_path, clean="When"), "bridge")


@needs_hooked
def test_a_cached_prefix_is_the_same_for_all(tmp_path: Path) -> None:
    path = two_texts(
        tmp_path, clean=CLEAN.replace("When", "After"), corrupt=CORRUPT.replace("When", "After")
    )
    with pytest.raises(ct.InputError, match=r"cuts off the 2 tokens .* not all prompts begin with"):
        load(path, "hooked", tail_divergence=True)
    train, test = load(two_texts(tmp_path, clean=CORRUPT), "hooked", tail_divergence=True)
    assert (train.kv_cache, test.diverge_idx) == (None, 0)  # a pair that nowhere differs, as there
    train, _ = load(two_texts(tmp_path), "hooked", tail_divergence=True)
    model = ac.patchable_model(
        load_bundled_model("hooked"), True, separate_qkv=True, kv_caches=(train.kv_cache, None)
    )
    batch = next(iter(train))
    with pytest.raises(ct.InputError, match=r"batches of \[1\] prompts, but was given 2"):
        model(batch.clean.repeat(2, 1))
    whole = model.to_tokens(CLEAN)
    assert_close(model(batch.clean), model(whole, past_kv_cache=None)[:, 2:])


@pytest.fixture(scope="module")
def model() -> ac.PatchableModel:
    return ac.patchable_model(load_bundled_model(), factorized=True, separate_qkv=True)


def a_loader(n: int) -> ac.PromptDataLoader:
    rows = [torch.tensor([0, 8, 42])] * n
    return ac.PromptDataLoader(ac.PromptDataset(rows, rows, rows, rows), 3, 0, batch_size=2)


def outputs_of(model: Any) -> Any:
    return model.source_outputs(CORRUPT)


def nested(model: Any) -> None:
    with ac.patch_mode(model, outputs_of(model)), ac.patch_mode(model, outputs_of(model)):
        pass


def entered(model: Any, *args: Any, **options: Any) -> None:
    with ac.patch_mode(model, *args, **options):
        pass


TOKENS = torch.tensor([[0, 8, 42]])
MEAN = ct.AblationType.TOKENWISE_MEAN_CLEAN

REFUSED: dict[str, tuple[type[Exception], Callable[[Any], Any], str]] = {
    "twice": (ct.AnatomyError, lambda m: ac.patchable_model(m, True), "is patchable already"),
    "residual graph": (
        ct.InputError,
        lambda m: ac.patchable_model(m.wrapped_model, factorized=False),
        "factorized=False asks for the residual graph, in which only neighbouring layers",
    ),
    "an edge that is none": (
        ct.EdgeError,
        lambda m: entered(m, outputs_of(m), ["A0.1->A1.1.Q", "MLP 1->A1.1.Q"]),
        "There is no edge 'MLP 1->A1.1.Q': MLP 1 does not write before A1.1.Q reads",
    ),
    "masks as edges": (
        ct.InputError,
        lambda m: entered(m, outputs_of(m), {"A0.1->A1.1.Q": 0.5}),
        r"gives every edge the value 1 .* model.patch\(outputs, edges=",
    ),
    "a pass from the middle": (
        ct.InputError,
        lambda m: entered(m, outputs_of(m), curr_src_outs=torch.zeros(1)),
        "curr_src_outs starts a pass at a later layer",
    ),
    "a patch in a patch": (ct.InputError, nested, "patch_mode is open on this model already"),
    "outputs of another shape": (
        ct.InputError,
        lambda m: entered(m, torch.zeros(11, 1, 15, 5)),
        r"of 11 sources × … × 64, or SourceOutputs; got \(11, 1, 15, 5\)",
    ),
    "outputs of another kind": (
        ct.InputError,
        lambda m: entered(m, "A0.1"),
        "SourceOutputs; got str",
    ),
    "scores of nothing": (ct.InputError, lambda m: m.circuit_prune_scores(), "Give either edges"),
    "scores of both": (
        ct.InputError,
        lambda m: m.circuit_prune_scores([], {}),
        "Give either edges",
    ),
    "an unknown module": (
        ct.InputError,
        lambda m: m.dest_wrapper("blocks.9"),
        "No destination has the module 'blocks.9'; they run from 'blocks.0.hook_q_input'",
    ),
    "no such module": (
        ct.InputError,
        lambda m: ac.module_by_name(m, "blocks.9"),
        "The model has no module 'blocks.9'",
    ),
    "a dataset for one batch": (
        ct.InputError,
        lambda m: ac.src_ablations(m, a_loader(2)),
        "takes one batch of tokens .*, got PromptDataLoader; batch_src_ablations takes a dataset",
    ),
    "a batch for a dataset": (
        ct.InputError,
        lambda m: ac.src_ablations(m, TOKENS, MEAN),
        "A mean over a dataset takes a PromptDataLoader; got Tensor",
    ),
    "an empty dataset": (
        ct.InputError,
        lambda m: ac.src_ablations(m, a_loader(1), MEAN),
        "The dataset has no batch: batch_size is larger than it",
    ),
    "no side": (
        ct.InputError,
        lambda m: ac.batch_src_ablations(m, a_loader(2)),
        "The ablation resample needs clean_corrupt='clean' or 'corrupt'; got None",
    ),
    "a side of a mean": (
        ct.InputError,
        lambda m: ac.batch_src_ablations(m, a_loader(2), MEAN, "clean"),
        "takes no clean_corrupt; got 'clean'",
    ),
    "circuits of no prompts": (
        ct.InputError,
        lambda m: ac.run_circuits(m, a_loader(1), [1], m.new_prune_scores()),
        "The dataloader has no batch, so no circuit ran",
    ),
    "circuits of a name": (
        ct.InputError,
        lambda m: ac.run_circuits(m, a_loader(2), [1], m.new_prune_scores(), "TREE_PATCH"),  # pyright: ignore
        "patch_type must be a PatchType; got 'TREE_PATCH'",
    ),
    "circuits of a part": (
        ct.InputError,
        lambda m: ac.run_circuits(m, a_loader(2), [0.5], m.new_prune_scores()),  # pyright: ignore
        "A circuit of 0.5 edges was asked for; the scores are of 110",
    ),
    "circuits on bare tokens": (
        ct.InputError,
        lambda m: ac.run_circuits(m, [TOKENS], [1], m.new_prune_scores()),  # pyright: ignore
        "Expected a PromptDataLoader, which gives PromptPairBatches; got a Tensor as a batch",
    ),
    "circuits ablated by name": (
        ct.InputError,
        lambda m: ac.run_circuits(
            m,
            a_loader(2),
            [1],
            m.new_prune_scores(),
            ablation_type="ZERO",  # pyright: ignore
        ),
        r"ablation must be an AblationType \(RESAMPLE, .*\); got 'ZERO'",
    ),
    "an ablation by name": (
        ct.InputError,
        lambda m: ac.src_ablations(m, TOKENS, "ZERO"),  # pyright: ignore
        r"ablation must be an AblationType \(RESAMPLE, .*\); got 'ZERO'",
    ),
    "ablations by name": (
        ct.InputError,
        lambda m: ac.batch_src_ablations(m, a_loader(2), "ZERO"),  # pyright: ignore
        r"ablation must be an AblationType \(RESAMPLE, .*\); got 'ZERO'",
    ),
    "masks of no number": (
        ct.InputError,
        lambda m: ac.set_all_masks(m, float("nan")),
        "The value of all masks must be a finite number; got nan",
    ),
    "no scores": (
        ct.MaskError,
        lambda m: ac.desc_prune_scores({}),
        "Expected PruneScores, a dict from modules' names to tensors; got {}",
    ),
    "circuits too large": (
        ct.InputError,
        lambda m: ac.run_circuits(m, a_loader(2), [111], m.new_prune_scores()),
        "A circuit of 111 edges was asked for; the scores are of 110",
    ),
    "scores of a part": (
        ct.MaskError,
        lambda m: ac.run_circuits(m, a_loader(2), [1], {"blocks.0.hook_mlp_in": torch.ones(5)}),
        "The prune scores lack 8 of 9 modules, first 'blocks.0.hook_q_input'",
    ),
    "groups of nothing": (
        ct.InputError,
        lambda m: ac.edge_counts_util(m.edges, ac.EdgeCounts.GROUPS),
        "EdgeCounts.GROUPS groups edges by their scores: give prune_scores",
    ),
    "sizes in words": (
        ct.InputError,
        lambda m: ac.edge_counts_util(m.edges, "all"),
        "test_counts must be an EdgeCounts, or a list of whole numbers or proportions; got 'all'",
    ),
    "gradients of another function": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(m, a_loader(2), None, "odds", "avg_diff", 0.0),  # pyright: ignore
        "grad_function must be one of logit, prob, logprob, logit_exp; got 'odds'",
    ),
    "gradients of another loss": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(m, a_loader(2), None, "logit", "kl", 0.0),  # pyright: ignore
        "answer_function must be one of avg_diff, avg_val, mse; got 'kl'",
    ),
    "gradients nowhere": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(m, a_loader(2), None, "logit", "avg_diff"),
        "Give either mask_val, for gradients at one value of all masks, or integrated_grad_samples",
    ),
    "gradients at no number": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(m, a_loader(2), None, "logit", "avg_diff", "0"),  # pyright: ignore
        "The value of all masks must be a finite number; got '0'",
    ),
    "gradients twice": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(m, a_loader(2), None, "logit", "avg_diff", 0.0, 3),
        "Give either mask_val",
    ),
    "half a step": (
        ct.InputError,
        lambda m: ac.mask_gradient_prune_scores(
            m,
            a_loader(2),
            None,
            "logit",
            "avg_diff",
            integrated_grad_samples=0.5,  # pyright: ignore
        ),
        "integrated_grad_samples must be a whole number, 1 or more; got 0.5",
    ),
    "another function": (
        ct.InputError,
        lambda m: ac.measure_answer_val(m, [], {}, "odds"),  # pyright: ignore
        "prob_func must be one of log_softmax, softmax, logits; got 'odds'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, model: ac.PatchableModel) -> None:
    error, call, message = REFUSED[case]
    ac.set_all_masks(model, 0.25)
    with pytest.raises(error, match=message):
        call(model)
    assert all(bool((mask == 0.25).all()) for mask in model.patch_masks.values())
    assert model.open_patch is None


ABSENT = {
    "subnetwork_probing_prune_scores": r"finds prune scores .* mask_gradient_prune_scores is,",
    "acdc_prune_scores": "circuit_trace.acdc is ACDC",
    "PRUNE_ALGO_DICT": "finds prune scores",
    "mask_fn_mode": "serves subnetwork probing",
    "set_mask_batch_size": "the same for all prompts of a batch",
    "make_model_patchable": "leaves the model as it is",
    "TASK_DICT": "Load a model with load_tl_model",
    "ioi_true_edges": "Load a model with load_tl_model",
    "measure_prune_metrics": "work it out from what run_circuits returns",
    "measure_roc": "measure_answer_diff_percent, measure_correct_ans_percent or measure_kl_div",
    "MicroModel": "circuit_trace.Anatomy",
    "graph_edges": r"patchable_model\(...\).edges",
    "load_cache": "weights_only=True",
}


@pytest.mark.parametrize("name", ABSENT)
def test_names_that_are_not_here_say_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match=ABSENT[name]) as caught:
        exec(f"from circuit_trace.integrations.auto_circuit import {name}")
    assert isinstance(caught.value, ct.CircuitTraceError)


def test_other_names_are_plainly_unknown(model: ac.PatchableModel) -> None:
    assert not hasattr(ac, "patchable_modle")
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        _ = model.no_such_thing
    with pytest.raises(AttributeError, match="'src_wrappers' belongs to how auto-circuit rewrites"):
        _ = model.src_wrappers
    wrapper = next(iter(model.wrappers))
    with pytest.raises(AttributeError, match=r"is model.last_trace.current.stack\(\)"):
        _ = wrapper.curr_src_outs
    with pytest.raises(AttributeError, match="A PatchWrapper has no attribute 'colour'"):
        _ = wrapper.colour
