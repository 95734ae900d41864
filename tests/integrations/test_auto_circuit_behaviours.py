"""What auto-circuit's own tests ask of it, asked of both libraries in our words.

Those tests come with its repository alone (pip brings none), so they are not run here; each test below
says which file of theirs asks the same. Where auto-circuit is installed it is asked too, as the control
of the question. What is not part of the drop-in is expected to fail, for the reason given, and in no
other way: one that begins to pass fails here. Not asked is what needs weights or prompts of theirs
(the IOI, docstring and sports circuits of GPT-2 and Pythia, sparse autoencoders, tracr's models).
Answers of every shape (their test_tensor_ops) are asked in test_auto_circuit_answers.
"""

from __future__ import annotations

import copy
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.integrations import auto_circuit
from circuit_trace.integrations.models import load_bundled_model
from tests.anatomy.toy import FACTORS, ToyModel, anatomy
from tests.integrations.auto_circuit_scripts import flagged_copy, write_dataset
from tests.models import CASES, HAS_HOOKED, shared, tokens

THEIR_MODULES = (
    "types",
    "data",
    "prune",
    "utils.graph_utils",
    "utils.ablation_activations",
    "utils.tensor_ops",
    "metrics.prune_metrics.answer_value",
    "metrics.prune_metrics.answer_diff",
    "prune_algos.mask_gradient",
    "prune_algos.edge_attribution_patching",
    "prune_algos.ACDC",
    "model_utils.micro_model_utils",
)


@dataclass(frozen=True)
class Library:
    """One of the two: its names, and models that it can patch."""

    names: Any
    is_ours: bool

    def micro(self, **options: Any) -> Any:
        """The two-layer toy: no transformer, no tokens, no configuration."""
        toy = ToyModel() if self.is_ours else self.names.MicroModel(n_layers=2)
        more = {"anatomy": anatomy(toy)} if self.is_ours else {}
        return self.names.patchable_model(toy, **{"factorized": True, **options}, **more)

    def mini(self, **options: Any) -> Any:
        """A small transformer with random weights."""
        options = {"factorized": True, "separate_qkv": True, **options}
        model = CASES["hooked LN" if HAS_HOOKED else "bridge GPT-2"].build()
        if not self.is_ours:
            set_flags(model, options["separate_qkv"])
        return self.names.patchable_model(model, **options)

    def trained(self) -> Any:
        """The bundled model, as the library's users load one."""
        model = load_bundled_model()
        return model if self.is_ours else flagged_copy(model)


def set_flags(model: Any, separate_qkv: bool) -> None:
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    model.set_use_split_qkv_input(separate_qkv)
    model.set_use_attn_in(not separate_qkv)


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Library:
    if request.param == "ours":
        return Library(auto_circuit, is_ours=True)
    if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
        pytest.importorskip("auto_circuit", reason="runs on TransformerLens 2.16 alone")
    names: dict[str, Any] = {}
    for module in THEIR_MODULES:
        names.update(vars(importlib.import_module(f"auto_circuit.{module}")))
    return Library(SimpleNamespace(**names), is_ours=False)


both = pytest.mark.parametrize("library", ["ours", "auto-circuit"], indirect=True)


def theirs_alone(reason: str) -> pytest.MarkDecorator:
    """A behaviour that the drop-in refuses."""
    refused = pytest.mark.xfail(raises=ct.CircuitTraceError, strict=True, reason=reason)
    ours = pytest.param("ours", marks=refused)
    return pytest.mark.parametrize("library", [ours, "auto-circuit"], indirect=True)


CLEAN = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]])
"""Its output at the last position is [25, 49]; on the corrupt input, its negative, [-25, -49]."""


def loader_of(
    library: Library,
    clean: Tensor,
    corrupt: Tensor,
    answers: list[Tensor] | None = None,
    wrong: list[Tensor] | None = None,
    batch_size: int = 1,
) -> Any:
    zeros = [torch.tensor([0])] * len(clean)
    dataset = library.names.PromptDataset(clean, corrupt, answers or zeros, wrong or zeros)
    return library.names.PromptDataLoader(
        dataset, seq_len=clean.shape[1], diverge_idx=0, batch_size=batch_size, shuffle=False
    )


def scores_of(model: Any, wanted: dict[tuple[int | None, str], float]) -> ct.PruneScores:
    by_name = {(edge.seq_idx, edge.name): edge for edge in model.edges}
    scores = model.new_prune_scores()
    for name, score in wanted.items():
        scores[by_name[name].dest.module_name][by_name[name].patch_idx] = score
    return scores


# test_prune


@both
@pytest.mark.parametrize("seq_len", [None, 3])
def test_circuits_whose_outputs_are_known(library: Library, seq_len: int | None) -> None:
    model = library.micro(slice_output="last_seq", seq_len=seq_len)
    loader = loader_of(library, CLEAN, -CLEAN)
    at = None if seq_len is None else seq_len - 1
    scores = scores_of(
        model,
        {
            (at, "B0.1->Resid End"): 3.0,
            (at, "B0.0->B1.1"): 2.0,
            (at, "Resid Start->B0.0"): 1.0,
        },
    )
    outs = library.names.run_circuits(model, loader, [0, 1, 2, 3], scores)
    (key,) = outs[1]
    expected = [[-25.0, -49.0], [-19.0, -41.0], [-13.0, -25.0], [-9.0, -13.0]]
    assert [outs[n][key][0].tolist() for n in range(4)] == expected


@both
def test_circuits_at_different_positions(library: Library) -> None:
    model = library.micro(separate_qkv=False, seq_len=3)
    loader = loader_of(library, CLEAN, -CLEAN)
    scores = scores_of(
        model,
        {
            (2, "B0.1->Resid End"): 3.0,
            (2, "B0.0->B1.1"): 2.0,
            (0, "Resid Start->Resid End"): 1.0,
        },
    )
    outs = library.names.run_circuits(model, loader, [0, 1, 2, 3], scores)
    rows = [next(iter(outs[n].values()))[0].tolist() for n in range(4)]
    plain = [[-75.0, -147.0], [-50.0, -98.0], [-25.0, -49.0]]
    assert rows[0] == plain
    assert rows[1] == [*plain[:2], [-19.0, -41.0]]
    assert rows[2] == [*plain[:2], [-13.0, -25.0]]
    assert rows[3] == [[-69.0, -141.0], plain[1], [-13.0, -25.0]]


# test_graph_utils


@both
def test_circuit_sizes_by_proportion_and_all(library: Library) -> None:
    model = library.mini(separate_qkv=False)
    sizes = library.names.edge_counts_util(model.edges, [0.0, 0.5, 1.0])
    assert sizes == [0, model.n_edges // 2, model.n_edges]
    every = library.names.edge_counts_util(model.edges, library.names.EdgeCounts.ALL)
    assert every == list(range(model.n_edges + 1))


@both
@pytest.mark.parametrize(
    ("wanted", "ends", "sizes"),
    [
        ({}, True, [0, 13]),
        ({}, False, []),
        ({0: 1.0}, False, [1]),
        ({0: 1.0, 1: 1.0}, False, [2]),
        ({0: 1.0, 1: 1.0, 2: 2.0}, False, [1, 3]),
        ({0: 1.0, 1: 2.0, 2: -2.0}, False, [2, 3]),
    ],
)
def test_circuit_sizes_by_groups_of_equal_scores(
    library: Library, wanted: dict[int, float], ends: bool, sizes: list[int]
) -> None:
    model = library.micro()
    names = [(None, edge.name) for edge in model.edges]
    scores = scores_of(model, {names[number]: score for number, score in wanted.items()})
    groups = library.names.EdgeCounts.GROUPS
    assert library.names.edge_counts_util(model.edges, groups, scores, ends, ends) == sizes


# test_ablation_activations


def written_by_hand(x: Tensor) -> Tensor:
    """What the toy's five sources write, `[source, batch, seq, 2]`."""
    first, second = (torch.tensor(factor) for factor in FACTORS)
    middle = x + first * x + second * x
    return torch.stack([x, first * x, second * x, first * middle, second * middle])


PROMPTS = torch.arange(1.0, 25.0).view(4, 3, 2)


@both
def test_source_outputs_and_zeros(library: Library) -> None:
    model = library.micro(seq_len=3, separate_qkv=False)
    kinds = library.names.AblationType
    resampled = library.names.src_ablations(model, PROMPTS, kinds.RESAMPLE)
    assert_close(resampled.clone(), written_by_hand(PROMPTS))
    assert not library.names.src_ablations(model, PROMPTS, kinds.ZERO).any()


@both
def test_means_over_a_dataset(library: Library) -> None:
    model = library.micro(seq_len=3, separate_qkv=False)
    corrupt = 7 * PROMPTS.cos()
    loader = loader_of(library, PROMPTS, corrupt, batch_size=2)
    clean_mean, corrupt_mean = (
        written_by_hand(one).mean(1, keepdim=True).repeat(1, 2, 1, 1) for one in (PROMPTS, corrupt)
    )
    for kind, expected in (
        ("TOKENWISE_MEAN_CLEAN", clean_mean),
        ("TOKENWISE_MEAN_CORRUPT", corrupt_mean),
        ("TOKENWISE_MEAN_CLEAN_AND_CORRUPT", (clean_mean + corrupt_mean) / 2),
    ):
        found = library.names.src_ablations(model, loader, library.names.AblationType[kind])
        assert_close(found.clone(), expected, msg=kind)


# test_answer_prob


@both
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("n_batches", "batch_size", "seq_len"), [(1, 1, None), (1, 2, 3), (3, 1, None), (4, 3, 3)]
)
def test_the_value_of_answers(
    library: Library, several: bool, n_batches: int, batch_size: int, seq_len: int | None
) -> None:
    n = n_batches * batch_size
    prompts = (torch.arange(6.0 * n) ** 2).sin().view(n, 3, 2)
    answers = [torch.tensor([0, 1][: 1 + several * (row % 2)]) for row in range(n)]
    model = library.micro(slice_output="last_seq", seq_len=seq_len)
    loader = loader_of(library, prompts, -prompts, answers, answers, batch_size)
    outs = {batch.key: model(batch.clean)[model.out_slice] for batch in loader}
    ((size, found),) = library.names.measure_answer_val(model, loader, {7: outs})
    whole = written_by_hand(prompts).sum(0)[:, -1]
    expected = sum(float(row[tokens].mean()) for row, tokens in zip(whole, answers, strict=True))
    assert size == 7
    assert found == pytest.approx(expected / n, rel=1e-4)


@both
@pytest.mark.parametrize("seq_len", [None, 6])
def test_the_value_of_different_numbers_of_answers(library: Library, seq_len: int | None) -> None:
    clean, corrupt = tokens(1, batch=4), tokens(2, batch=4)
    answers = [torch.arange(1, 2 + row) for row in range(4)]
    model = library.mini(slice_output="last_seq", seq_len=seq_len)
    loader = loader_of(library, clean, corrupt, answers, answers, batch_size=4)
    outs = {batch.key: model(batch.clean)[model.out_slice] for batch in loader}
    ((_, found),) = library.names.measure_answer_val(model, loader, {0: outs})
    logits = shared("hooked LN" if HAS_HOOKED else "bridge GPT-2")(clean)[:, -1].tolist()
    means = [sum(row[1 : 2 + n]) / (1 + n) for n, row in enumerate(logits)]
    assert found == pytest.approx(sum(means) / 4, abs=1e-4)


# test_answer_diff, and the second of test_tracr_models


@both
def test_no_edge_and_all_edges_answer_as_the_model_on_either_prompt(library: Library) -> None:
    right = [torch.tensor([n]) for n in range(4)]
    wrong = [torch.tensor([9 - n]) for n in range(4)]
    model = library.mini(slice_output="last_seq")
    loader = loader_of(library, tokens(1, batch=4), tokens(2, batch=4), right, wrong, 2)
    sizes = [0, model.n_edges]
    outs = library.names.run_circuits(model, loader, sizes, model.new_prune_scores())
    plain: dict[int, Any] = {size: {} for size in sizes}
    for batch in loader:
        for size, prompt in zip(sizes, (batch.corrupt, batch.clean), strict=True):
            plain[size][batch.key] = model(prompt)[model.out_slice]
    found = library.names.measure_answer_diff(model, loader, outs)
    expected = library.names.measure_answer_diff(model, loader, plain)
    assert [size for size, _ in found] == sizes
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert abs(found[0][1] - found[1][1]) > 1e-2


@both
def test_all_edges_into_the_end_restore_answers_at_every_position(library: Library) -> None:
    model = library.mini(slice_output="not_first_seq", seq_len=6)
    clean, corrupt = tokens(1), tokens(2)
    with torch.no_grad():
        best, worst = (model(clean)[:, 1:].argsort(-1)[..., [at]] for at in (-1, 0))
    loader = loader_of(library, clean, corrupt, list(best), list(worst), len(clean))
    end = max(model.dests, key=lambda dest: dest.layer).module_name
    scores = model.new_prune_scores()
    scores[end] = torch.ones_like(scores[end])
    outs = library.names.run_circuits(model, loader, [int(scores[end].sum())], scores)
    (batch,) = loader
    ((_, by_key),) = outs.items()
    logits = model(batch.clean)[model.out_slice]
    assert_close(by_key[batch.key], logits, rtol=0, atol=1e-5)
    value = library.names.batch_avg_answer_val(by_key[batch.key], batch)
    assert value.item() == pytest.approx(logits.max(-1).values.mean().item(), abs=1e-5)
    difference = library.names.batch_avg_answer_diff(by_key[batch.key], batch)
    spread = logits.max(-1).values - logits.min(-1).values
    assert difference.item() == pytest.approx(spread.mean().item(), abs=1e-5)


# test_edge_attribution_patching


@both
def test_attribution_patching_is_the_gradient_of_masks_at_zero(library: Library) -> None:
    right = [torch.tensor([n]) for n in range(2)]
    wrong = [torch.tensor([9 - n]) for n in range(2)]
    model = library.mini(slice_output="last_seq")
    loader = loader_of(library, tokens(1, batch=2), tokens(2, batch=2), right, wrong)
    found = library.names.edge_attribution_patching_prune_scores(model, loader, None)
    gradients = library.names.mask_gradient_prune_scores(
        model, loader, None, "logit", "avg_diff", mask_val=0.0
    )
    assert found.keys() == gradients.keys()
    for name, score in found.items():
        assert_close(score, gradients[name], rtol=1e-4, atol=1e-5)
    assert max(float(score.abs().max()) for score in found.values()) > 1e-2


# test_data


@both
@pytest.mark.parametrize(("seeds", "same"), [((0, 0), True), ((0, 1), False)])
def test_the_order_of_prompts_is_the_seeds(
    library: Library, seeds: tuple[int, int], same: bool, tmp_path: Path
) -> None:
    model, dataset = library.trained(), write_dataset(tmp_path / "prompts.json")
    orders = []
    for seed in seeds:
        loaders = library.names.load_datasets_from_json(
            model, dataset, "cpu", batch_size=4, train_test_size=(4, 8), random_seed=seed
        )
        orders.append([[batch.clean, batch.corrupt] for loader in loaders for batch in loader])
    for one, other in zip(*orders, strict=True):
        for mine, yours in zip(one, other, strict=True):
            assert torch.equal(mine, yours) is same


@both
@pytest.mark.skipif(not HAS_HOOKED, reason="a bridge has no cache of a prefix")
def test_a_cached_prefix_changes_no_output(library: Library, tmp_path: Path) -> None:
    model, dataset = library.trained(), write_dataset(tmp_path / "prompts.json")
    cached, whole = (
        library.names.load_datasets_from_json(
            model,
            dataset,
            "cpu",
            batch_size=4,
            train_test_size=(4, 8),
            return_seq_length=True,
            tail_divergence=cut,
            shuffle=False,
        )[1]
        for cut in (True, False)
    )
    n_cut = cached.diverge_idx
    assert n_cut > 0
    for short, long in zip(cached, whole, strict=True):
        assert torch.equal(short.clean, long.clean[:, n_cut:])
        logits = model(short.clean, past_kv_cache=copy.deepcopy(cached.kv_cache))
        assert_close(logits, model(long.clean)[:, n_cut:], rtol=1e-4, atol=1e-4)


# Not part of the drop-in


@theirs_alone("the graph is the factorized one: test_unfactorized_edges")
@pytest.mark.parametrize("kind", ["micro", "mini"])
def test_ablating_a_node_in_the_residual_graph(library: Library, kind: str) -> None:
    options: dict[str, Any] = {"seq_len": 3} if kind == "micro" else {"seq_len": 6}
    node = "B0.1" if kind == "micro" else "A0.1"
    prompts = (PROMPTS, PROMPTS.cos()) if kind == "micro" else (tokens(1), tokens(2))
    outs = []
    for factorized in (True, False):
        model = getattr(library, kind)(factorized=factorized, **options)
        edges = {edge for edge in model.edges if edge.src.name == node}
        outputs = library.names.src_ablations(model, prompts[1])
        with torch.no_grad(), library.names.patch_mode(model, outputs, edges):
            outs.append(model(prompts[0]))
    assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)


@theirs_alone("a pass has the same masks for all its prompts: test_instance_grads")
def test_gradients_of_each_prompts_own_masks(library: Library) -> None:
    names = library.names
    set_mask_batch_size = names.set_mask_batch_size
    model = library.mini(slice_output="last_seq")
    right, wrong = [torch.tensor([0])] * 2, [torch.tensor([5])] * 2
    loader = loader_of(library, tokens(1, batch=2), tokens(2, batch=2), right, wrong, 2)
    outputs = names.src_ablations(model, tokens(3, batch=2), names.AblationType.ZERO)
    with set_mask_batch_size(model, 2), names.train_mask_mode(model):
        names.set_all_masks(model, val=0.0)
        (batch,) = loader
        with names.patch_mode(model, outputs.clone()):
            logits = model(batch.clean)[model.out_slice]
            names.batch_avg_answer_diff(logits, batch).backward()
        gradients = [wrapper.patch_mask.grad for wrapper in model.dest_wrappers]
    assert all(len(gradient) == 2 for gradient in gradients)
    assert not any(torch.allclose(gradient[0], gradient[1]) for gradient in gradients)


@theirs_alone("circuit_trace.acdc is ACDC, with results of its own: test_ACDC")
def test_acdc_with_its_own_check_of_every_step(library: Library) -> None:
    names = library.names
    acdc_prune_scores = names.acdc_prune_scores
    model = library.micro(slice_output="last_seq")
    loader = loader_of(library, CLEAN, -CLEAN)
    scores = acdc_prune_scores(
        model,
        loader,
        None,
        tao_exps=[-3],
        tao_bases=[1],
        test_mode=True,
        run_circuits_ref=names.run_circuits,
    )
    assert scores.keys() == model.new_prune_scores().keys()


THEIRS_BY_TASK = [
    "Task",
    "same_under_knockout",
    "measure_prune_metrics",
    "LOGIT_DIFF_METRIC",
    "CORRECT_ANSWER_PERCENT_METRIC",
    "run_prune_algos",
    "GROUND_TRUTH_PRUNE_ALGO",
    "ioi_node_circuit_single_template_logit_diff_percent",
    "get_tracr_model",
    "tracr_reverse_true_edges",
]


@pytest.mark.parametrize("name", THEIRS_BY_TASK)
def test_names_that_their_other_tests_begin_with_are_refused_with_a_reason(name: str) -> None:
    """test_same_under_knockouts, test_answer_diff_percent, test_correct_answer_percent,
    test_experiment_utils, test_tracr_models."""
    with pytest.raises(auto_circuit.AbsentError, match=f"^'{name}' .*part of the drop-in|anatomy"):
        getattr(auto_circuit, name)
