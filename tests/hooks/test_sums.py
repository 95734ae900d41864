"""A record that does not add up warns of it, and says where; one that does never warns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import circuit_trace as ct
from circuit_trace.hooks.sums import first_gap
from tests.models import CASES, TWO, shape_of, shared, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
EDGES = ["A0.1->A1.2.Q", "A0.3->MLP 1", "A1.1->Resid End"]


def metric(logits: Tensor, batch: Any = None) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ct.RecordWarning)
        yield


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", CASES)
def test_true_records_are_silent(name: str, seq_len: int | None, no_warning: None) -> None:
    model, shape = wrapped(name, seq_len), shape_of(name, seq_len)
    masks = shape.prune_scores(shape.asks((-1.0, 0.0, 0.3, 1.0), seed=5))
    model.trace(CLEAN)
    model.trace(CLEAN, corrupt=CORRUPT, masks=masks)
    ct.score_edges(model, (CLEAN, CORRUPT), metric)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", TWO)
def test_rounding_is_silent(name: str, dtype: torch.dtype, no_warning: None) -> None:
    model = ct.wrap(CASES[name].build().to(dtype))
    model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


def test_under_autocast(no_warning: None) -> None:
    model = wrapped(TWO[-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


class Features(nn.Module):
    """What a vision-language model adds to early layers where an image's tokens stand (Qwen3-VL)."""

    def __init__(self, n: float) -> None:
        super().__init__()
        self.n = n

    def add_to(self, stream: Tensor) -> Tensor:
        stream = stream.clone()
        stream[:1, 1:3] += self.n * torch.linspace(-1, 1, stream.shape[-1])
        return stream


def on_stream(hooked: Any, layer: int, features: Features) -> Any:
    """Between two layers, by a plain torch hook on the block."""
    return hooked.blocks[layer].register_forward_hook(
        lambda module, args, output: (
            (features.add_to(output[0]), *output[1:])
            if isinstance(output, tuple)
            else features.add_to(output)
        )
    )


def trace(model: ct.PatchableModel) -> None:
    model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


def patch_and_read(model: ct.PatchableModel) -> None:
    with model.patch():
        model(CLEAN)
    _ = model.last_trace


WAYS: dict[str, Callable[[ct.PatchableModel], object]] = {
    "trace": trace,
    "patch": patch_and_read,
    "outputs": lambda model: model.source_outputs(CLEAN),
    "eap": lambda model: ct.score_edges(model, (CLEAN, CORRUPT), metric),
    "exact": lambda model: ct.exact_scores(model, (CLEAN, CORRUPT), metric, edges=EDGES),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TWO)
def test_what_belongs_to_no_source_is_told_with_its_place(name: str, way: str) -> None:
    hooked = shared(name)
    model = ct.wrap(hooked)
    handle = on_stream(hooked, 0, Features(3.0))
    try:
        with pytest.warns(ct.RecordWarning, match=r"does not add up: A1\.0\.Q read"):
            WAYS[way](model)
    finally:
        handle.remove()


@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("name", TWO)
def test_by_how_much(name: str, size: float) -> None:
    """Against what plain hooks see there; the record holds it in eight directions only."""
    hooked = shared(name)
    model, features = ct.wrap(hooked), Features(size)
    seen: list[Tensor] = []
    handle = on_stream(hooked, 0, features)
    try:
        with model.patch(), torch.no_grad():
            hooked.run_with_hooks(
                CLEAN,
                fwd_hooks=[("blocks.1.hook_resid_pre", lambda tensor, hook: seen.append(tensor))],
            )
    finally:
        handle.remove()
    assert model._last is not None
    gap = first_gap(model.graph, model._last.taken)
    assert gap is not None
    added = features.add_to(torch.zeros_like(seen[0]))
    expected = (added.norm(dim=-1) / seen[0].norm(dim=-1)).max()
    assert gap.dest == "A1.0.Q"
    assert 0.4 * expected < gap.relative < 2.5 * expected


def test_a_forgotten_bias_shows_where_it_is_missing() -> None:
    name = next(name for name in ("bridge GPT-2", "hooked LN") if name in CASES)
    model = ct.wrap(CASES[name].build())
    with model.patch():
        model(CLEAN)
    record = model._last.taken
    assert record is not None
    assert first_gap(model.graph, record) is None
    record.biases[1] = None
    found = first_gap(model.graph, record)
    assert found is not None
    assert found.dest == "MLP 0"


def test_a_stream_that_is_no_number_is_left_to_speak_for_itself(no_warning: None) -> None:
    hooked = CASES[TWO[-1]].build()
    model = ct.wrap(hooked)
    with torch.no_grad():
        next(hooked.blocks[0].mlp.parameters()).fill_(float("nan"))
    assert model.trace(CLEAN).logits.isnan().any()


def test_a_record_whose_weights_were_changed_since_speaks_when_it_is_asked() -> None:
    hooked = CASES[TWO[0]].build()
    model = ct.wrap(hooked)
    with model.patch():
        model(CLEAN)
    with torch.no_grad():
        for parameter in hooked.blocks[0].attn.parameters():
            parameter.mul_(2)
    with pytest.raises(ct.InputError, match="weights were changed in place"):
        _ = model.last_trace.current["A0.1"]
