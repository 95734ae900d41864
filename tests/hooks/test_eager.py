"""What `torch.compile` made of a model is patched and recorded like the model itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import circuit_trace as ct
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.hooks.eager import RunsEagerly
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy

CLEAN_INPUT, CORRUPT_INPUT = torch.arange(8.0).view(1, 4, 2), -torch.ones(1, 4, 2)
EDGES = {"B0.1->B1.0": 1.0, "B1.1->Resid End": 0.5}


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def patched_by_hand(toy: ToyModel) -> Tensor:
    """The toy's output with `EDGES` patched, each layer written out."""
    clean, corrupt = CLEAN_INPUT, CORRUPT_INPUT
    first, second = (layer.factors for layer in toy.layers)
    wrote, wrote_corrupt = ([x * factor for factor in first] for x in (clean, corrupt))  # pyright: ignore[reportGeneralTypeIssues]
    middle, middle_corrupt = clean + sum(wrote), corrupt + sum(wrote_corrupt)
    read = middle - wrote[1] + wrote_corrupt[1]  # by B1.0
    last, last_corrupt = middle * second[1], middle_corrupt * second[1]
    return middle + read * second[0] + 0.5 * last + 0.5 * last_corrupt


@pytest.mark.parametrize("ran_before", [True, False])
@pytest.mark.parametrize("how", ["copy", "in place", "in place, wrapped later", "a layer"])
@torch.no_grad()
def test_a_compiled_model_is_patched(how: str, ran_before: bool) -> None:
    toy = ToyModel()
    runs: Any = toy
    if how == "in place, wrapped later":
        toy.compile(backend="eager")
    model = ct.wrap(toy, anatomy=toy_anatomy(toy))
    if how == "in place":
        toy.compile(backend="eager")
    elif how == "a layer":
        toy.layers[0].compile(backend="eager")
    elif how == "copy":
        runs = torch.compile(toy, backend="eager")
    plain = ToyModel()(CLEAN_INPUT)
    if ran_before:
        assert torch.equal(runs(CLEAN_INPUT), plain)
    expected = patched_by_hand(toy)
    assert not torch.allclose(expected, plain)
    with model.patch(model.source_outputs(CORRUPT_INPUT), edges=EDGES):
        torch.testing.assert_close(runs(CLEAN_INPUT), expected)
    torch.testing.assert_close(model.last_trace.logits, expected)
    assert model.last_trace.reconstruction_error() < 1e-6
    assert torch.equal(runs(CLEAN_INPUT), plain)


def test_compiled_blocks_are_scored_one_edge_at_a_time() -> None:
    """Exact scores go through hooks of their own."""
    data, edges = (CLEAN, CORRUPT, *ANSWERS), ["A1.0->Resid End", "MLP 0->A1.0.V"]
    expected = ct.exact_scores(ct.wrap(ct.load_model("bundled")), data, edges=edges)
    hooked = ct.load_model("bundled")
    model = ct.wrap(hooked)
    hooked.blocks[1].compile(backend="eager")
    with torch.no_grad():
        hooked(model.to_tokens(CLEAN))
    found = ct.exact_scores(model, data, edges=edges)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score)


def test_what_torch_compile_returns_is_refused_by_its_name() -> None:
    compiled = torch.compile(ToyModel(), backend="eager")
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(compiled, anatomy=toy_anatomy(compiled._orig_mod))
    assert str(caught.value) == (
        "This is what torch.compile(model) returns. Wrap the model itself, "
        "ct.wrap(compiled._orig_mod): while a patch is open both of them run patched, not compiled."
    )


@pytest.mark.parametrize("own", ["default", "eager_on_recompile"])
def test_the_compiler_goes_on_when_the_last_lets_go(own: str) -> None:
    calls: list[str] = []

    def backend(module: nn.Module, _inputs: object) -> Any:
        calls.append("compiled")
        return module.forward

    doubled = torch.compile(lambda x: x * 2, backend=backend)
    every = [RunsEagerly() for _ in range(5)]
    with torch.compiler.set_stance(own):
        for seed in range(3):
            for one in every:
                one.begin()
            for one in random.Random(seed).sample(every, 5):
                doubled(torch.ones(2))
                one.end()
                one.end()  # as a session that is detached twice
        assert calls == []
        doubled(torch.ones(2))
        assert calls == (["compiled"] if own == "default" else [])
