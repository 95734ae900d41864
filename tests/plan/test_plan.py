"""Plans: what is patched, with what, and what one plan leaves of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.plan import make_plan
from tests.models import hooked, oracle, shape_of, shared, tokens
from tests.oracle import Oracle

MODEL = ct.wrap(shared("hooked LN"), verify=False)
AT_3 = ct.wrap(shared("hooked LN"), seq_len=3, verify=False)
EDGE, END = "A0.1->A1.2.Q", "MLP 0->Resid End"


def outputs(model: ct.PatchableModel = MODEL) -> ct.SourceOutputs:
    return model.source_outputs(tokens(2, seq=3))


def names(plan: Any) -> list[str]:
    return [str(edge) for edge in plan.edges()]


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
def test_edges_of_a_plan_are_those_at_a_mask_or_named() -> None:
    assert names(make_plan(MODEL.graph, outputs(), {END: 0.0, EDGE: 0.5}, None)) == [EDGE, END]
    scores = {
        "blocks.1.hook_q_input": torch.zeros(4, 6),
        "blocks.1.hook_resid_post": torch.zeros(11),
    }
    scores["blocks.1.hook_q_input"][2, 2] = -1
    assert names(make_plan(MODEL.graph, outputs(), None, scores)) == [EDGE]
    assert names(make_plan(MODEL.graph, outputs(), None, None)) == []


def test_edges_come_in_the_graphs_order_however_they_are_named() -> None:
    asked = [(2, END), (0, END), (1, EDGE), (2, EDGE)]
    plan = make_plan(AT_3.graph, outputs(AT_3), asked, None)
    assert names(plan) == [f"{END} @0", f"{EDGE} @1", f"{EDGE} @2", f"{END} @2"]


def test_full_masks_hold_every_module() -> None:
    plan = make_plan(AT_3.graph, outputs(AT_3), {(1, EDGE): 0.5}, None)
    masks = plan.full_masks()
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        module.name: (3, *module.shape) for module in AT_3.graph.modules
    }
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == 1


def test_less_the_edges_of_another_plan() -> None:
    outer = make_plan(AT_3.graph, outputs(AT_3), {EDGE: 1.0, (0, END): 0.5}, None)
    inner = make_plan(AT_3.graph, outputs(AT_3), {(1, EDGE): 0.25, (0, END): 0.0}, None)
    assert names(outer.without(inner)) == [f"{EDGE} @0", f"{EDGE} @2"]
    assert names(outer) == [f"{EDGE} @0", f"{END} @0", f"{EDGE} @1", f"{EDGE} @2"]
    assert names(inner.without(outer)) == []


NOTHING_TO_PATCH_IN = (
    "There are edges to patch but nothing to patch in. Pass the outputs of another prompt, "
    "model.source_outputs(corrupt), or call model.trace(tokens, corrupt=..., edges=...)."
)
BOTH = "Give either edges= or masks=, not both: each says what is patched."
OUTPUTS = outputs()
REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "both": (OUTPUTS, [EDGE], {}, BOTH),
    "both, empty": (OUTPUTS, [], {}, BOTH),
    "nothing to patch in": (None, [EDGE], None, NOTHING_TO_PATCH_IN),
    "nothing to patch in, scores": (
        None,
        None,
        {"blocks.0.hook_mlp_in": torch.ones(5)},
        NOTHING_TO_PATCH_IN,
    ),
    "tensors of the user's own": (
        {"A0.1": torch.ones(2, 3, 10)},
        [EDGE],
        None,
        "The patched outputs must come from model.source_outputs(...); got dict.",
    ),
    "tokens": (
        tokens(1),
        [EDGE],
        None,
        "The patched outputs must come from model.source_outputs(...); got Tensor.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.usefixtures("as_a_user")
def test_what_is_refused(what: str) -> None:
    patched, edges, masks, message = REFUSED[what]
    with pytest.raises(ct.InputError) as caught:
        make_plan(MODEL.graph, patched, edges, masks)
    assert str(caught.value) == message


def test_an_edge_at_mask_0_needs_nothing_to_patch_in() -> None:
    assert names(make_plan(MODEL.graph, None, {EDGE: 0.0}, None)) == [EDGE]


def test_outputs_of_a_model_of_another_shape_are_refused() -> None:
    other = ct.wrap(hooked(n_layers=3), verify=False).source_outputs(tokens(2))
    with pytest.raises(ct.InputError) as caught:
        make_plan(MODEL.graph, other, [EDGE], None)
    assert str(caught.value) == (
        "The patched outputs come from another model: they have 16 sources, this model has 11."
    )


@pytest.mark.parametrize("n", [1, 20, None])
def test_outputs_of_a_model_with_other_weights_are_patched_as_they_are(n: int | None) -> None:
    """A fine-tuned model's activations, say: its heads are not projected with this model's weights."""
    other = hooked(spread=0.1)
    foreign = Oracle(hooked(spread=0.1), shape_of("hooked LN")).run(tokens(2)).wrote
    asks = shape_of("hooked LN").asks((0.5, 1.0), n=n)
    masks = shape_of("hooked LN").prune_scores(asks)
    trace = MODEL.trace(tokens(1), patched=ct.wrap(other).source_outputs(tokens(2)), masks=masks)
    expected = oracle("hooked LN").run(tokens(1), foreign, asks)
    assert_close(trace.logits, expected.logits, rtol=1e-5, atol=3e-5)
    assert_close(trace.patched.stack(), torch.stack(list(foreign.values())), rtol=1e-5, atol=3e-5)
    assert trace.reconstruction_error() < 1e-5


def test_outputs_from_before_the_weights_changed_are_refused() -> None:
    model = ct.wrap(hooked())
    before = model.source_outputs(tokens(2))
    with torch.no_grad():
        model.wrapped_model.blocks[0].attn.W_O.mul_(2)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ct.InputError, match="weights were changed in place"):
        model.trace(tokens(1), patched=before, edges=["A0.1->Resid End"])
