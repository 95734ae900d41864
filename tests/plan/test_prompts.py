"""Prompts as they run: texts padded and masked, masks read, and what does not fit said in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests.anatomy.toy import ToyModel, anatomy
from tests.models import HAS_BRIDGE, HAS_HOOKED, TYPICAL, tokens, wrapped

KINDS = [kind for kind, has in (("hooked", HAS_HOOKED), ("bridge", HAS_BRIDGE)) if has]
LONG = "When Mary and John went to the store , John gave a drink to"
SHORT = "When Mary and John went"
OTHER = "John and Mary went"
WORD = "A0.1->Resid End"


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> ct.PatchableModel:
    return ct.wrap(ct.load_model("bundled", kind=request.param))


def test_texts_of_unequal_length_are_padded_at_the_left_and_masked(
    model: ct.PatchableModel,
) -> None:
    texts = [LONG, SHORT, OTHER]
    prompts = model.prompts_of(texts)
    rows = [model.to_tokens(text)[0] for text in texts]
    assert prompts.real is not None
    for tokens_of_row, real, row in zip(prompts.tokens, prompts.real, rows, strict=True):
        assert tokens_of_row[real].tolist() == row.tolist()
        assert real.tolist() == [False] * (len(real) - len(row)) + [True] * len(row)
    assert prompts.forward["attention_mask"].tolist() == prompts.real.long().tolist()
    with torch.no_grad():
        logits = model(prompts.tokens, **prompts.forward)
        for got, row in zip(logits, rows, strict=True):
            assert_close(got[-len(row) :], model(row[None])[0], rtol=1e-4, atol=1e-5)


def test_texts_of_one_length_run_without_a_mask(model: ct.PatchableModel) -> None:
    prompts = model.prompts_of([SHORT, SHORT.replace("Mary", "John")])
    assert prompts.real is None
    assert prompts.forward == {}


def test_what_is_recorded_of_texts_of_unequal_length(model: ct.PatchableModel) -> None:
    outputs = model.source_outputs([LONG, OTHER])
    for row, text in enumerate((LONG, OTHER)):
        alone = model.source_outputs(text)
        assert_close(outputs["A1.2"][row, -alone.seq :], alone["A1.2"][0], rtol=1e-4, atol=1e-5)


def test_a_trace_of_texts_of_unequal_length(model: ct.PatchableModel) -> None:
    clean, corrupt = [LONG, SHORT], [LONG.replace("Mary", "John"), OTHER + " to"]
    edges = {WORD: 1.0, "MLP 0->A1.0.K": 0.5}
    trace = model.trace(clean, corrupt=corrupt, edges=edges)
    assert trace.logits is not None
    assert trace.reconstruction_error() < 1e-5
    for row in (0, 1):
        alone = model.trace(clean[row], corrupt=corrupt[row], edges=edges)
        assert_close(trace.logits[row, -alone.seq :], alone.logits[0], rtol=1e-4, atol=1e-5)
        assert (alone.logits - model(clean[row])).abs().max() > 1e-2


@pytest.mark.parametrize(("clean", "corrupt"), [(LONG, SHORT), (SHORT, LONG)])
def test_a_pair_of_unequal_length_is_aligned_at_the_end(
    model: ct.PatchableModel, clean: str, corrupt: str
) -> None:
    """Against a hook in the unpadded clean pass that writes what the corrupt prompt has at the last
    positions, and leaves those alone that only one of the two has."""
    edge = "Resid Start->MLP 1"
    trace = model.trace(clean, corrupt=corrupt, edges=[edge])
    own, other = (model.source_outputs(text)["Resid Start"] for text in (clean, corrupt))
    n = min(own.shape[1], other.shape[1])
    change = other[:, -n:] - own[:, -n:]

    def patch(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        stream = args[0].clone()
        stream[:, -n:] += change
        return (stream, *args[1:])

    handle = model.wrapped_model.blocks[1].ln2.register_forward_pre_hook(patch)  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        expected = model.wrapped_model(model.to_tokens(clean))
    handle.remove()
    assert trace.logits is not None
    assert_close(trace.logits[:, -own.shape[1] :], expected, rtol=1e-4, atol=1e-5)
    delta = trace.edge(edge).delta
    assert_close(delta[:, -n:], change, rtol=1e-4, atol=1e-5)
    assert not delta[:, :-n].any()
    assert trace.reconstruction_error() < 1e-5


MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
REFUSED: dict[str, tuple[Any, str]] = {
    "shape": (
        MASK[:, :5],
        r"^attention_mask must be a tensor \[batch, seq\] = \[2, 6\] .* \(2, 5\)",
    ),
    "rows": (MASK[[0, 1, 1]], r"^attention_mask must be .* got the shape \(3, 6\)\."),
    "list": (MASK.tolist(), r"^attention_mask must be .* got \[\[0, 0"),
    "values": (
        MASK * 2,
        r"^attention_mask must hold 1 for tokens and 0 for padding; got .* 0 to 2",
    ),
    "additive": ((MASK - 1) * 1e9, r"^attention_mask must hold 1 .* got values from -1e\+09 to 0"),
    "nothing": (MASK * torch.tensor([[0], [1]]), r"^By the attention_mask prompt 0 has no token"),
    "holes": (
        torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]]),
        r"^By the attention_mask prompt 1 has padding between its tokens: \[1, 0, 1, 1, 0, 0\]\.",
    ),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_are_none(case: str) -> None:
    mask, message = REFUSED[case]
    patchable = wrapped(TYPICAL[0])
    for call in (patchable.prompts_of, patchable.source_outputs, patchable.trace):
        with pytest.raises(ct.InputError, match=message):
            call(tokens(1), forward={"attention_mask": mask})
    data = {"clean": tokens(1), "corrupt": tokens(2), "attention_mask": mask}
    with pytest.raises(ct.InputError, match=f"^Batch 0: {message[1:]}"):
        ct.score_edges(patchable, data, "loss")


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float(), MASK[:1], MASK[0]])
def test_masks_of_any_kind(mask: Tensor) -> None:
    prompts = wrapped(TYPICAL[0]).prompts_of(tokens(1), {"attention_mask": mask})
    expected = MASK if mask.ndim == 2 and len(mask) == 2 else MASK[:1].expand(2, -1)
    assert prompts.real is not None
    assert prompts.real.tolist() == expected.bool().tolist()


def test_text_that_is_padded_here_takes_no_mask_from_elsewhere(model: ct.PatchableModel) -> None:
    mask = torch.ones(2, 6)
    with pytest.raises(
        ct.InputError, match=r"^The attention mask of these prompts is known already"
    ):
        model.trace([SHORT, OTHER], forward={"attention_mask": mask})
    data = {"clean": SHORT, "corrupt": OTHER, "attention_mask": mask}
    with pytest.raises(ct.InputError, match=r"^Batch 0: An attention_mask belongs to token ids"):
        ct.score_edges(model, data, "loss")


def test_a_model_without_an_attention_mask_says_so() -> None:
    toy = ToyModel()
    patchable = ct.wrap(toy, anatomy=anatomy(toy))
    clean = torch.rand(1, 3, 2)
    message = r"^The forward pass of this ToyModel takes no argument 'attention_mask'; it takes x\."
    mask = {"attention_mask": torch.ones(1, 3)}
    for call in (patchable.trace, patchable.source_outputs):
        with pytest.raises(ct.InputError, match=message):
            call(clean, forward=mask)
    with pytest.raises(ct.InputError, match=message):
        ct.score_edges(patchable, (clean, -clean), lambda out, batch: out[:, -1, 0], forward=mask)


def test_with_positions_the_padded_length_is_that_of_the_wrapper(
    model: ct.PatchableModel,
) -> None:
    n = model.to_tokens(LONG).shape[1]
    apart = ct.wrap(model.wrapped_model, seq_len=n)
    data = ([LONG, SHORT], [LONG.replace("Mary", "John"), SHORT.replace("Mary", "John")])
    scores = ct.score_edges(apart, data, "loss")
    length = model.to_tokens(SHORT).shape[1]
    alone = ct.wrap(model.wrapped_model, seq_len=length)
    both = [
        ct.score_edges(wrapper, (data[0][row], data[1][row]), "loss")
        for row, wrapper in enumerate((apart, alone))
    ]
    for key, score in scores.items():
        expected = both[0][key].clone()
        expected[-length:] += both[1][key]
        assert_close(score, expected / 2, rtol=1e-4, atol=1e-6)
    with pytest.raises(ct.InputError, match=r"^The model was wrapped with seq_len="):
        apart.trace([SHORT, OTHER], corrupt=[OTHER, SHORT], edges=[WORD])
