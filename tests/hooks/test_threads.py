"""Threads that share a model: each has its own patches, and none feels another's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread, current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.engine import Patching
from tests.footprint import hooks_of
from tests.models import CASES, TYPICAL, oracle, tokens
from tests.oracle import Ask

CLEAN, CORRUPT = tokens(1), tokens(2)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
ASKS = [
    [Ask("A0.1", "A1.2.Q", None, 1.0)],
    [Ask("MLP 0", "Resid End", None, 0.5), Ask("A0.0", "A1.0.V", None, 1.0)],
    [Ask("Resid Start", "A1.1.V", None, 1.0)],
]
N_ROUNDS = 12


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Threads take turns a hundred times as often, between almost any two lines."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=TYPICAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def hooked(name: str) -> Any:
    model = CASES[name].build()
    with torch.no_grad():
        model(CLEAN)
    return model


def edges_of(asks: list[Ask]) -> dict[str, float]:
    return {ask.name: ask.mask for ask in asks}


def test_threads_that_patch_one_model_at_once(name: str, hooked: Any) -> None:
    """Three patch other edges by one wrapper or their own, a fourth runs the model as it is."""
    second = oracle(name)
    corrupt = second.run(CORRUPT).wrote
    expected = [second.run(CLEAN, corrupt, asks).logits for asks in ASKS]
    with torch.no_grad():
        plain = hooked(CLEAN)
    before = hooks_of(hooked)
    model, together = ct.wrap(hooked), Barrier(4)

    def patch_and_trace(number: int) -> None:
        mine = ct.wrap(hooked, verify=False) if number == 2 else model
        edges = edges_of(ASKS[number])
        together.wait()
        for _ in range(N_ROUNDS):
            trace = mine.trace(CLEAN, corrupt=CORRUPT, edges=edges)
            torch.testing.assert_close(trace.logits, expected[number], **CLOSE)
            assert {edge.name for edge in trace.edges} == set(edges)
            assert trace.reconstruction_error() < 1e-5
            patched = mine.source_outputs(CORRUPT)
            with torch.no_grad(), mine.patch(patched, edges=edges):
                assert mine.has_open_patch
                torch.testing.assert_close(hooked(CLEAN), expected[number], **CLOSE)

    def run_plainly() -> None:
        together.wait()
        for _ in range(4 * N_ROUNDS):
            assert not model.has_open_patch
            with torch.no_grad():
                assert torch.equal(hooked(CLEAN), plain)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(patch_and_trace, number) for number in range(3)]
        running.append(pool.submit(run_plainly))
        for one in running:
            one.result()
    assert hooks_of(hooked) == before
    assert not model.has_open_patch
    with torch.no_grad():
        assert torch.equal(hooked(CLEAN), plain)


SCORES: list[Callable[[ct.PatchableModel], ct.PruneScores]] = [
    lambda model: ct.score_edges(model, (CLEAN, CORRUPT), "loss", bar=False),
    lambda model: ct.score_edges(
        model, (CLEAN, CORRUPT), "loss", method="mask-gradient", bar=False
    ),
    lambda model: ct.exact_scores(model, (CLEAN, CORRUPT), "loss", edges="*->Resid End", bar=False),
]


def test_threads_that_score_one_model_at_once() -> None:
    model = ct.wrap(CASES[TYPICAL[0]].build())
    before = hooks_of(model.wrapped_model)
    alone = [score(model) for score in SCORES]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            running = [pool.submit(score, model) for score in SCORES]
            for one, expected in zip(running, alone, strict=True):
                found = one.result()
                assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert hooks_of(model.wrapped_model) == before


def during(inside: Callable[[], object]) -> None:
    """Do something in another thread, and wait until it is done."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            inside()
        except BaseException as error:
            failed.append(error)

    other = Thread(target=run)
    other.start()
    other.join(20)
    assert not other.is_alive()
    if failed:
        raise failed[0]


def test_a_pass_begun_in_the_middle_of_a_patched_one(hooked: Any) -> None:
    """Both are right, though they run through the same layers in turns."""
    model = ct.wrap(hooked)
    patched, edges = model.source_outputs(CORRUPT), edges_of(ASKS[1])
    with torch.no_grad():
        plain = hooked(CORRUPT)
        with model.patch(patched, edges=edges):
            expected = hooked(CLEAN)
    seen: list[Tensor] = []
    once = [True]

    def in_the_middle(*_: Any) -> None:
        if once:
            once.clear()
            during(lambda: seen.append(hooked(CORRUPT).detach()))

    handle = hooked.blocks[0].register_forward_hook(in_the_middle)
    with torch.no_grad(), model.patch(patched, edges=edges):
        logits = hooked(CLEAN)
    handle.remove()
    assert torch.equal(logits, expected)
    assert torch.equal(seen[0], plain)
    assert torch.equal(model.last_trace.tokens, CLEAN)


def test_what_another_thread_may_do_while_a_patch_is_open(hooked: Any) -> None:
    """All that needs an unpatched model: there it is one."""
    model = ct.wrap(hooked)
    edges = edges_of(ASKS[0])
    expected = model.trace(CLEAN, corrupt=CORRUPT, edges=edges_of(ASKS[2])).logits
    traces: list[ct.Trace] = []

    def work() -> None:
        assert not model.has_open_patch
        ct.wrap(hooked)
        ct.score_edges(model, (CLEAN, CORRUPT), "loss", bar=False)
        traces.append(model.trace(CLEAN, corrupt=CORRUPT, edges=edges_of(ASKS[2])))
        assert model.last_trace is traces[0]

    with model.patch(model.source_outputs(CORRUPT), edges=edges):
        during(work)
        logits = hooked(CLEAN).detach()
    assert torch.equal(traces[0].logits, expected)
    assert torch.equal(logits, model.trace(CLEAN, corrupt=CORRUPT, edges=edges).logits)


def test_a_trace_is_that_of_its_own_pass(hooked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another thread's pass ends between the end of this one and its return."""
    ended, go_on = Event(), Event()

    class Waits(Patching):
        """Another thread than the main one waits where its context has closed."""

        def __exit__(self, *error: object) -> None:
            super().__exit__(*error)
            if current_thread() is not main_thread():
                ended.set()
                assert go_on.wait(20)

    monkeypatch.setattr("circuit_trace.engine.Patching", Waits)
    model = ct.wrap(hooked)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model.trace, CLEAN)
        assert ended.wait(20)
        with model.patch():
            hooked(CORRUPT)
        go_on.set()
        trace = running.result()
    assert torch.equal(trace.tokens, CLEAN)
    assert torch.equal(model.last_trace.tokens, CORRUPT)


def test_a_patch_may_be_closed_by_another_thread(hooked: Any) -> None:
    model = ct.wrap(hooked)
    before, plain = hooks_of(hooked), hooked(CLEAN).detach()
    alone = model.trace(CLEAN, corrupt=CORRUPT, edges=edges_of(ASKS[0])).logits
    patched = model.source_outputs(CORRUPT)
    outer, inner = (model.patch(patched, edges=edges_of(asks)) for asks in ASKS[:2])
    outer.__enter__()
    inner.__enter__()
    during(lambda: inner.__exit__(None, None, None))
    assert torch.equal(hooked(CLEAN), alone), "the outer one goes on, in the thread that opened it"
    during(lambda: outer.__exit__(None, None, None))
    assert torch.equal(hooked(CLEAN), plain)
    assert hooks_of(hooked) == before
