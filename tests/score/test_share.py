"""Several processes score one dataset together, as torchrun starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import circuit_trace as ct
from circuit_trace.score.share import Share
from tests.models import TYPICAL, tokens, wrapped

PAIRS = [
    (tokens(seed, batch=1 + seed % 2), tokens(seed + 10, batch=1 + seed % 2)) for seed in range(5)
]
WORLD = 2


def metric(logits: Tensor, batch: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def scored(n_batches: int, resume: Path) -> Any:
    return ct.score_edges(wrapped(TYPICAL[0]), PAIRS[:n_batches], metric, resume=resume)


def one_fails() -> None:
    rank = Share.here().rank

    def fails(logits: Tensor, batch: Any) -> Tensor:
        if rank == 1:
            raise ZeroDivisionError("mine")
        return metric(logits, batch)

    ct.score_edges(wrapped(TYPICAL[0]), PAIRS, fails)


def divided_twice() -> None:
    data = TensorDataset(tokens(1), tokens(2))
    loader = DataLoader(data, sampler=DistributedSampler(data))
    ct.score_edges(wrapped(TYPICAL[0]), loader, metric)


def one_has_other_batches() -> None:
    rank = Share.here().rank
    loader = PAIRS if rank == 0 else [*PAIRS[:4], PAIRS[0]]  # the last one differs
    ct.score_edges(wrapped(TYPICAL[0]), loader, metric)


def one_has_more_batches() -> None:
    ct.score_edges(wrapped(TYPICAL[0]), PAIRS[: 2 + 2 * Share.here().rank], metric)


def one_has_another_model() -> None:
    name = TYPICAL[0] if Share.here().rank == 0 else TYPICAL[-1]
    ct.score_edges(wrapped(name), PAIRS, metric)


def one_fails_beforehand() -> None:
    def data() -> Iterator[Any]:
        yield PAIRS[0]
        if Share.here().rank == 0:
            raise OSError("the disk")
        yield from PAIRS[1:]

    ct.exact_scores(wrapped(TYPICAL[0]), data(), metric, edges="*->Resid End")


def divided_elsewhere() -> None:
    sampler = torch.utils.data.DistributedSampler(PAIRS, num_replicas=WORLD, rank=0)
    loader = torch.utils.data.DataLoader(PAIRS, batch_size=None, sampler=sampler)
    model = wrapped(TYPICAL[0])
    scores = {name: torch.ones(module.shape) for name, module in model.graph.module_by_name.items()}
    both = [
        said(lambda: ct.faithfulness(model, loader, scores, metric)),
        said(lambda: ct.acdc(model, loader, metric, threshold=1.0, better="lower")),
    ]
    raise RuntimeError(" | ".join(both))


def said(run: Callable[[], None]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    found = {
        "all": scored(len(PAIRS), folder / "all"),
        "one batch": scored(1, folder / "one"),
        "exact": ct.exact_scores(
            wrapped(TYPICAL[0]), PAIRS, metric, edges="*->MLP 1", resume=folder / "exact"
        ),
        "again": ct.score_edges(wrapped(TYPICAL[0]), PAIRS, metric, resume=folder / "all"),
        "one fails": said(one_fails),
        "other batches": said(one_has_other_batches),
        "more batches": said(one_has_more_batches),
        "another model": said(one_has_another_model),
        "fails beforehand": said(one_fails_beforehand),
        "divided twice": said(divided_twice),
        "divided elsewhere": said(divided_elsewhere),
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left their files, and what each returned or said."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    multiprocessing.spawn(_process, (port, folder), nprocs=WORLD)  # pyright: ignore[reportPrivateImportUsage]
    return folder


def found_by(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


ranks = pytest.mark.parametrize("rank", range(WORLD))


@ranks
@pytest.mark.parametrize(("what", "n_batches"), [("all", len(PAIRS)), ("one batch", 1)])
def test_all_return_what_one_process_would(
    folder: Path, rank: int, what: str, n_batches: int
) -> None:
    expected = ct.score_edges(wrapped(TYPICAL[0]), PAIRS[:n_batches], metric)
    found = found_by(folder, rank)[what]
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-5, atol=1e-6)


@ranks
def test_exact_scores_are_shared_too(folder: Path, rank: int) -> None:
    expected = ct.exact_scores(wrapped(TYPICAL[0]), PAIRS, metric, edges="*->MLP 1")
    found = found_by(folder, rank)["exact"]
    for key, score in expected.items():
        assert_close(found[key], score, rtol=1e-5, atol=1e-6)
    assert (folder / f"exact.{rank}-of-{WORLD}").exists()


@ranks
def test_what_is_not_shared_refuses_divided_data_too(folder: Path, rank: int) -> None:
    message = found_by(folder, rank)["divided elsewhere"]
    assert message.count("InputError: These batches are divided among 2 processes already") == 2


@ranks
def test_a_finished_run_is_not_run_again(folder: Path, rank: int) -> None:
    found = found_by(folder, rank)
    assert all(torch.equal(found["again"][key], score) for key, score in found["all"].items())


@ranks
@pytest.mark.parametrize("what", ["other batches", "more batches", "another model"])
def test_processes_that_do_not_fit_each_other_are_stopped(
    folder: Path, rank: int, what: str
) -> None:
    if what == "another model" and len(TYPICAL) < 2:
        pytest.skip("this TransformerLens has one typical model")
    message = found_by(folder, rank)[what]
    assert message.startswith("OthersStopped: The processes were given different data, models")


def test_an_error_in_the_data_of_one_stops_all(folder: Path) -> None:
    assert found_by(folder, 0)["fails beforehand"] == "OSError: the disk"
    assert found_by(folder, 1)["fails beforehand"].startswith("OthersStopped: Another process")


def test_a_launcher_without_torch_distributed_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="torch.distributed is not initialised, so each of them"):
        assert Share.here() == Share(0, 1)


def test_an_own_error_is_not_lost_where_the_others_do_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: Any) -> Tensor:
        raise RuntimeError("timed out")

    monkeypatch.setattr(Share, "_reduced", lost)
    with pytest.raises(ZeroDivisionError, match="mine"), Share(0, 2).together():
        raise ZeroDivisionError("mine")
    with pytest.raises(ct.InputError, match=r"no longer answer \(RuntimeError\)"):
        Share(0, 2).meet(1, torch.zeros(8))


@ranks
def test_each_has_a_file_of_its_own(folder: Path, rank: int) -> None:
    assert (folder / f"all.{rank}-of-{WORLD}").exists()


def test_an_error_in_one_stops_all(folder: Path) -> None:
    assert found_by(folder, 1)["one fails"] == "ZeroDivisionError: mine"
    other = found_by(folder, 0)["one fails"]
    assert other.startswith(
        "OthersStopped: Another process failed to score its share of the batches"
    )


@ranks
def test_data_is_not_divided_twice(folder: Path, rank: int) -> None:
    message = found_by(folder, rank)["divided twice"]
    assert message.startswith("InputError: These batches are divided among 2 processes already")


def test_alone_everything_is_ones_own() -> None:
    share = Share.here()
    assert [number in share for number in range(3)] == [True] * 3
    sums = torch.tensor([1.0, 2.0])
    assert torch.equal(share.total(sums), sums)
    with pytest.raises(KeyError, match="mine"), share.together():
        raise KeyError("mine")
