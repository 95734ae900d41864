"""The call: data in batches, errors that teach, runs that are killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import circuit_trace as ct
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.score.edges import read_path
from circuit_trace.score.methods import METHODS
from tests.anatomy.toy import ToyModel, anatomy
from tests.models import CASES, TYPICAL, tokens, wrapped

SEQ = 6
PAIR = (tokens(1, seq=SEQ), tokens(2, seq=SEQ))
SOME = ["Resid Start->A1.2.Q", "A0.1->MLP 1", "MLP 0->Resid End"]
PAIRS = [(tokens(seed, seq=SEQ), tokens(seed + 10, seq=SEQ)) for seed in range(4)]


def metric(logits: Tensor, batch: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


@pytest.fixture
def model() -> ct.PatchableModel:
    return wrapped(TYPICAL[0])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-5, atol=1e-6)


def test_the_sign_is_that_of_the_change() -> None:
    """On a model that is linear in its stream an estimate is exact: the two-layer toy of its docs."""
    toy = ToyModel()
    model = ct.wrap(toy, anatomy=anatomy(toy))
    clean = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]])

    def last(logits: Tensor, batch: Any) -> Tensor:
        return logits[:, -1, 0]

    scores = ct.score_edges(model, {"clean": clean, "corrupt": -clean}, last)
    with torch.no_grad():
        for edge in model.edges:
            trace = model.trace(clean, corrupt=-clean, edges=[edge])
            change = float(trace.logits[0, -1, 0] - toy(clean)[0, -1, 0])
            row = scores[edge.dest.module_name]
            row = row[edge.dest.slot] if row.ndim == 2 else row
            assert float(row[edge.src.idx]) == pytest.approx(change, abs=1e-4)
    assert float(scores["end"][model.graph.src_by_name["B0.1"].idx]) == pytest.approx(-6.0)


@pytest.mark.parametrize("method", METHODS)
def test_each_prompt_counts_alike(model: ct.PatchableModel, method: str) -> None:
    clean, corrupt = (torch.cat(rows) for rows in zip(*PAIRS, strict=True))
    uneven = [(clean[a:b], corrupt[a:b]) for a, b in ((0, 5), (5, 6), (6, 8))]
    options: dict[str, Any] = {"method": method, "steps": 2}
    whole = ct.score_edges(model, (clean, corrupt), metric, **options)
    assert_same(ct.score_edges(model, uneven, metric, **options), whole)
    assert_same(ct.score_edges(model, iter(uneven), metric, **options), whole)
    alone = [
        ct.score_edges(model, one, metric, **options)
        for one in zip(clean[:, None], corrupt[:, None], strict=True)
    ]
    means = {key: torch.stack([one[key] for one in alone]).mean(0) for key in whole}
    assert_same(whole, means)


@pytest.mark.parametrize("method", [*METHODS, "exact"])
def test_the_order_of_prompts_is_nothing(model: ct.PatchableModel, method: str) -> None:
    """Nor which of them share a batch: each goes with its own corrupt prompt and answers."""
    clean, corrupt = (torch.cat(rows) for rows in zip(*PAIRS, strict=True))
    columns = (clean, corrupt, torch.arange(8), torch.arange(8).roll(3) + 1)

    def scored(order: list[int], sizes: list[int]) -> dict[str, Tensor]:
        parts = list(zip(*(rows[order].split(sizes) for rows in columns), strict=True))
        if method == "exact":
            return ct.exact_scores(model, parts, edges=SOME)
        options: dict[str, Any] = {"method": method, "steps": 2}
        return ct.score_edges(model, parts, **options)

    assert_same(scored([3, 0, 6, 1, 7, 5, 2, 4], [5, 2, 1]), scored(list(range(8)), [4, 4]))


def test_one_number_for_a_batch_is_its_mean(model: ct.PatchableModel) -> None:
    mean = ct.score_edges(model, PAIRS, lambda logits, batch: metric(logits, batch).mean())
    assert_same(mean, ct.score_edges(model, PAIRS, metric))


def test_a_data_loader_and_texts() -> None:
    model = wrapped(TYPICAL[0])
    loader = DataLoader(
        TensorDataset(*(torch.cat(r) for r in zip(*PAIRS, strict=True))), batch_size=3
    )
    assert_same(ct.score_edges(model, loader, metric), ct.score_edges(model, PAIRS, metric))
    bundled = ct.wrap(ct.load_model("bundled"))
    one = ct.score_edges(bundled, (CLEAN, CORRUPT, *ANSWERS))
    two = ct.score_edges(
        bundled,
        [
            {
                "clean": [CLEAN] * 2,
                "corrupt": [CORRUPT] * 2,
                "answers": [ANSWERS[0]] * 2,
                "wrong_answers": [ANSWERS[1]] * 2,
            }
        ],
    )
    assert_same(one, two)


def test_prompts_of_unequal_lengths_share_scores_without_positions(
    model: ct.PatchableModel,
) -> None:
    short = (tokens(3, seq=4), tokens(4, seq=4))
    both = ct.score_edges(model, [PAIR, short], metric)
    found = [ct.score_edges(model, one, metric) for one in (PAIR, short)]
    assert_same(both, {key: (found[0][key] + found[1][key]) / 2 for key in both})


def test_padding_is_left_out_by_the_attention_mask() -> None:
    name = next((name for name in TYPICAL if name.startswith("bridge")), TYPICAL[0])
    model = wrapped(name)
    pad = torch.zeros_like(PAIR[0][:, :2])
    padded = tuple(torch.cat([one, pad], 1) for one in PAIR)

    def before_padding(logits: Tensor, batch: Any) -> Tensor:
        return logits[:, SEQ - 1, 3] - logits[:, SEQ - 1, 5]

    def forward(batch: Any) -> dict[str, Tensor]:
        return {"attention_mask": (torch.arange(SEQ + 2) < SEQ).long().expand(len(batch), -1)}

    found = ct.score_edges(model, padded, before_padding, forward=forward)
    expected = ct.score_edges(model, PAIR, metric)
    given = ct.score_edges(model, padded, before_padding, forward=forward(PAIR[0]))
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-4, atol=1e-5)
        assert_close(given[key], found[key])


@pytest.mark.parametrize(
    ("steps", "points"),
    [(1, (0.5,)), (2, (0.25, 0.75)), ([0, 1], (0.0, 1.0)), ((0.5,), (0.5,))],
)
def test_steps_are_points_between_clean_and_patched(steps: Any, points: tuple) -> None:
    assert read_path(steps) == points


def nan_at_3(logits: Tensor, batch: Any) -> Tensor:
    return (logits[:, -1, 3] * 0).sqrt()  # 0, with the slope 0 · ∞


ALL_MEANS = "TOKENWISE_MEAN_CLEAN"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "eep"}, r"^method must be one of eap, eap-ig, .*, exact; got 'eep'\."),
    "steps": (
        {"steps": 0},
        r"^steps must be a whole number of points, 1 or more, or a list .* got 0",
    ),
    "steps 2": ({"steps": [0.5, 2]}, r"^steps must be .* got \[0\.5, 2\]\."),
    "steps 3": ({"steps": []}, r"^steps must be .* got \[\]\."),
    "mask": ({"mask_value": float("nan")}, r"^mask_value must be a finite number .* got nan\."),
    "forward": ({"forward": 3}, r"^forward must map names .* or be a function of the batch"),
    "ablation": ({"ablation": "zero"}, r"^ablation must be an AblationType"),
    "means": (
        {"ablation": ct.AblationType[ALL_MEANS]},
        r"^TOKENWISE_MEAN_CLEAN is a mean over a whole",
    ),
    "metric": ({"metric": "accuracy"}, r"^metric must be one of"),
    "kl": (
        {"metric": "kl"},
        r"^KL is 0 and has no slope where nothing is patched, so method='eap'",
    ),
    "kl ig": ({"metric": "kl", "method": "eap-ig", "steps": [0]}, r"^KL is 0 and has no slope"),
    "no corrupt": ({"data": {"clean": PAIR[0]}}, r"^Batch 0: There is nothing to patch in"),
    "empty": ({"data": []}, r"^The data is empty"),
    "second": ({"data": [PAIR, 3]}, r"^Batch 1 is no pair of prompts but a int"),
    "answers": ({"metric": "logit_diff"}, r"^Batch 0: This metric needs answers"),
    "shape": (
        {"metric": lambda logits, batch: logits},
        r"^Batch 0: The metric must return one number",
    ),
    "nan": (
        {"metric": nan_at_3},
        r"^Batch 0: the score of 'Resid Start->A0.0.Q' is nan, and \d+ others",
    ),
    "value": (
        {"metric": lambda logits, batch: logits[:, 0, 0] / 0},
        r"^Batch 0: The metric of prompt 0 is -?inf: expected a finite number",
    ),
    "return type": (
        {"forward": {"return_type": None}},
        r"^Batch 0: A metric needs the model's logits",
    ),
    "no gradient": (
        {"metric": lambda logits, batch: torch.ones(2, requires_grad=True).sum()},
        r"^Batch 0: The metric has no gradient: it does not depend on what the model computed",
    ),
    "no gradient 2": (
        {
            "metric": lambda logits, batch: torch.ones(2, requires_grad=True).sum(),
            "method": "mask-gradient",
        },
        r"^Batch 0: The metric has no gradient: it does not depend",
    ),
    "forward 2": ({"forward": lambda batch: None}, r"^Batch 0: The function given as forward="),
    "boolean answers": (
        {"data": (*PAIR, torch.tensor([True, False])), "metric": "answer_logprob"},
        r"^Batch 0: answers must be token ids",
    ),
    "no answers": (
        {"data": (*PAIR, torch.zeros(0, dtype=torch.long)), "metric": "answer_logprob"},
        r"^Batch 0: answers must have a row for each of the 2 prompts",
    ),
    "huge mask": ({"mask_value": 10**400}, r"^mask_value must be a finite number"),
    "resume": ({"resume": 3}, r"^resume must be a path such as 'run.part'; got 3\."),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_refused(model: ct.PatchableModel, case: str) -> None:
    options, message = REFUSED[case]
    data, measure = options.get("data", PAIR), options.get("metric", metric)
    options = {key: value for key, value in options.items() if key not in ("data", "metric")}
    with pytest.raises(ct.InputError, match=message):
        ct.score_edges(model, data, measure, **options)


def test_positions_must_be_those_of_the_wrapper() -> None:
    model = wrapped(TYPICAL[0], SEQ)
    short = (tokens(3, seq=4), tokens(4, seq=4))
    with pytest.raises(ct.InputError, match=r"^Batch 1: the model was wrapped with seq_len=6, but"):
        ct.score_edges(model, [PAIR, short], metric)


def test_a_model_must_be_wrapped_and_unpatched(model: ct.PatchableModel) -> None:
    with pytest.raises(ct.InputError, match=r"^Expected a wrapped model, ct\.wrap\(model\); got"):
        ct.score_edges(model.wrapped_model, PAIR, metric)
    other = ct.wrap(model.wrapped_model)
    with model.patch(), pytest.raises(ct.InputError, match=r"^A patch is open on this model"):
        ct.score_edges(model, PAIR, metric)
    with model.patch(), pytest.raises(ct.InputError, match=r"^A patch is open on this model"):
        ct.score_edges(other, PAIR, metric)
    assert not model.has_open_patch


def test_dropout_is_refused() -> None:
    hooked = CASES[TYPICAL[0]].build()
    model = ct.wrap(hooked.eval())
    expected = ct.score_edges(model, PAIR, metric)
    drop = nn.Dropout(0.1)
    handle = hooked.blocks[1].register_forward_hook(lambda module, args, output: drop(output))
    for method in METHODS:
        with pytest.raises(
            ct.InputError, match=r"^Batch 0: The model draws random numbers as it runs"
        ):
            ct.score_edges(model, PAIR, metric, method=method)
    drop.eval()
    assert_same(ct.score_edges(model, PAIR, metric), expected)
    handle.remove()


def test_layers_that_run_again_are_refused() -> None:
    hooked = CASES[TYPICAL[0]].build()
    [*hooked.modules()][-1].gradient_checkpointing = True
    model = ct.wrap(hooked.train())
    with pytest.raises(
        ct.InputError, match=r"^The model runs its layers again in the backward pass"
    ):
        ct.score_edges(model, PAIR, metric)
    hooked.eval()
    assert_same(ct.score_edges(model, PAIR, metric), ct.score_edges(ct.wrap(hooked), PAIR, metric))


class Stopped(Exception):
    """As a killed run ends."""


def until(n: int) -> Any:
    for number, pair in enumerate(PAIRS):
        if number == n:
            raise Stopped
        yield pair


@pytest.mark.parametrize("method", ["eap", "mask-gradient", "magnitude"])
def test_a_run_that_stopped_goes_on(model: ct.PatchableModel, method: str, tmp_path: Path) -> None:
    file = tmp_path / "scores" / "run.safetensors"
    expected = ct.score_edges(model, PAIRS, metric, method=method)
    with pytest.raises(Stopped):
        ct.score_edges(model, until(2), metric, method=method, resume=file)
    n_scored = 0

    def counted(logits: Tensor, batch: Any) -> Tensor:
        nonlocal n_scored
        n_scored += 1
        return metric(logits, batch)

    counted.__module__, counted.__qualname__ = metric.__module__, metric.__qualname__
    found = ct.score_edges(model, PAIRS, counted, method=method, resume=file)
    assert_same(found, expected)
    assert n_scored == (0 if method == "magnitude" else 2 + 1), "two batches, and one to compare"
    again = ct.score_edges(model, PAIRS, counted, method=method, resume=file)
    assert_same(again, expected)
    assert n_scored == (0 if method == "magnitude" else 3 + 1), "a finished run is only checked"


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "eap-ig"}, r"another method, 'eap'; this one has 'eap-ig'"),
    "steps": ({"steps": 3}, r"another steps, .*0\.1.*; this one has .*0\.16"),
    "ablation": ({"ablation": ct.AblationType.ZERO}, r"another ablation, 'RESAMPLE'; .* 'ZERO'"),
    "metric": ({"metric": "loss"}, r"another metric, '.*\.metric'; this one has 'loss'"),
    "model": (
        {"model": TYPICAL[-1] if len(TYPICAL) > 1 else "hooked RMS"},
        r"another (configuration|state) of",
    ),
    "positions": ({"seq_len": SEQ}, r"another choice of edges"),
    "data": ({"data": PAIRS[::-1]}, r"^The first 2 batches are not those of the run to resume"),
    "less data": (
        {"data": PAIRS[:1]},
        r"^The run to resume had scored 2 batches, but this data has 1",
    ),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_is_not_resumed(case: str, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        ct.score_edges(wrapped(TYPICAL[0]), until(2), metric, resume=file)  # pyright: ignore[reportGeneralTypeIssues]
    before = file.read_bytes()
    options, message = OTHER_RUNS[case]
    options = dict(options)
    model = wrapped(options.pop("model", TYPICAL[0]), options.pop("seq_len", None))  # pyright: ignore[reportGeneralTypeIssues]
    data, measure = options.pop("data", PAIRS), options.pop("metric", metric)
    with pytest.raises(ct.InputError, match=message):
        ct.score_edges(model, data, measure, resume=file, **options)
    assert file.read_bytes() == before


def test_another_function_of_the_same_name_is_not_resumed(
    model: ct.PatchableModel, tmp_path: Path
) -> None:
    def tenfold(logits: Tensor, batch: Any) -> Tensor:
        return 10 * metric(logits, batch)

    tenfold.__module__, tenfold.__qualname__ = metric.__module__, metric.__qualname__
    file = tmp_path / "run.safetensors"
    ct.score_edges(model, PAIRS, metric, resume=file)
    with pytest.raises(ct.InputError, match=r"^The metric of the first clean prompts is not what"):
        ct.score_edges(model, PAIRS, tenfold, resume=file)


def test_a_damaged_file_is_not_resumed(model: ct.PatchableModel, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    ct.score_edges(model, PAIRS, metric, resume=file)
    whole = bytearray(file.read_bytes())
    for place in range(len(whole) - 8, len(whole) - 40, -3):
        damaged = whole.copy()
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ct.FormatError, match="is damaged: its numbers are not those"):
            ct.score_edges(model, PAIRS, metric, resume=file)


def test_another_forward_pass_is_not_resumed(model: ct.PatchableModel, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    ct.score_edges(model, PAIRS, "kl", method="eap-ig", resume=file)
    mask = torch.ones_like(PAIR[0])
    mask[:, 0] = 0
    with pytest.raises(ct.InputError, match=r"^The first 4 batches are not those of the run to"):
        ct.score_edges(
            model,
            PAIRS,
            "kl",
            method="eap-ig",
            resume=file,
            forward={"attention_mask": mask},
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_answers_of_any_whole_number(model: ct.PatchableModel, dtype: torch.dtype) -> None:
    right, wrong = torch.tensor([1, 2]), torch.tensor([3, 4])
    expected = ct.score_edges(model, (*PAIR, right, wrong))
    assert_same(ct.score_edges(model, (*PAIR, right.to(dtype), wrong.to(dtype))), expected)


def test_without_corrupt_prompts(model: ct.PatchableModel) -> None:
    zero = {"ablation": ct.AblationType.ZERO}
    expected = ct.score_edges(model, {"clean": PAIR[0]}, metric, **zero)
    assert_same(ct.score_edges(model, (PAIR[0], None), metric, **zero), expected)


KILLED = """
import sys, os, signal
import torch
torch.set_num_threads(1)
import circuit_trace as ct
from circuit_trace.score import unfinished
unfinished.SAVE_EVERY = 0.0
from tests.score.test_edges import PAIRS, metric
from tests.models import TYPICAL, wrapped
metric.__module__ = "tests.score.test_edges"
def data():
    yield from PAIRS[:3]
    os.kill(os.getpid(), signal.SIGKILL)
ct.score_edges(wrapped(TYPICAL[0]), data(), metric, resume=sys.argv[1])
"""


def test_a_run_that_was_killed_goes_on(model: ct.PatchableModel, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(file)], env={**os.environ}, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert_same(
        ct.score_edges(model, PAIRS, metric, resume=file), ct.score_edges(model, PAIRS, metric)
    )
    with pytest.raises(ct.InputError, match=r"^The run to resume had scored 4 batches"):
        ct.score_edges(model, PAIRS[:3], metric, resume=file)
