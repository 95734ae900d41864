"""Reading what a user asks to patch, and refusing what does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph
from circuit_trace.plan import check_scores, make_plan, score_shape
from circuit_trace.plan.masks import mask_makers
from tests.models import shared, tokens

PLAIN = ct.wrap(shared("hooked LN"), verify=False)
AT_3 = ct.wrap(shared("hooked LN"), seq_len=3, verify=False)
EDGE = "A0.1->A1.2.Q"


def masks_from_edges(graph: Graph, edges: Any) -> tuple[ct.PruneScores, list[int]]:
    makers, named = mask_makers(graph, edges)
    return {name: make() for name, make in makers.items()}, named


def test_only_modules_that_an_edge_ends_in_get_a_mask() -> None:
    masks, named = masks_from_edges(PLAIN.graph, [EDGE, "MLP 0->Resid End"])
    assert list(masks) == ["blocks.1.hook_q_input", "blocks.1.hook_resid_post"]
    assert masks["blocks.1.hook_q_input"].nonzero().tolist() == [[2, 2]]
    assert masks["blocks.1.hook_resid_post"].nonzero().tolist() == [[5]]
    assert [str(PLAIN.graph.edge_at(number)) for number in named] == [EDGE, "MLP 0->Resid End"]


def test_positions() -> None:
    masks, _ = masks_from_edges(AT_3.graph, {(1, EDGE): 0.5, "MLP 0->Resid End": -2})
    q, end = masks["blocks.1.hook_q_input"], masks["blocks.1.hook_resid_post"]
    assert q.nonzero().tolist() == [[1, 2, 2]]
    assert q[1, 2, 2] == 0.5
    assert end[:, 5].tolist() == [-2, -2, -2]
    assert end.count_nonzero() == 3


@pytest.mark.parametrize("edges", [{EDGE: 0.5, (1, EDGE): 0.0}, {(1, EDGE): 0.0, EDGE: 0.5}])
def test_one_position_counts_over_all_of_them(edges: dict) -> None:
    masks, named = masks_from_edges(AT_3.graph, edges)
    assert masks["blocks.1.hook_q_input"][:, 2, 2].tolist() == [0.5, 0.0, 0.5]
    assert len(named) == 3, "an edge at mask 0 is named too"


def test_an_edge_named_twice_with_two_masks() -> None:
    spelt_otherwise = EDGE.replace("->", " -> ")
    with pytest.raises(ct.MaskError, match=r"named twice, with the masks 0\.5 and 0\.25"):
        masks_from_edges(AT_3.graph, {EDGE: 0.5, spelt_otherwise: 0.25})
    masks, _ = masks_from_edges(AT_3.graph, [EDGE, spelt_otherwise])
    assert masks["blocks.1.hook_q_input"][:, 2, 2].tolist() == [1, 1, 1]


MASK_VALUES: dict[str, tuple[Any, float]] = {
    "int": (1, 1.0),
    "bool": (True, 1.0),
    "negative": (-0.25, -0.25),
    "0-d tensor": (torch.tensor(0.25), 0.25),
    "tensor of one": (torch.tensor([0.25]), 0.25),
    "integer tensor": (torch.tensor(2), 2.0),
    "double tensor": (torch.tensor(0.5, dtype=torch.float64), 0.5),
    "parameter": (torch.nn.Parameter(torch.tensor(0.25)), 0.25),
}


@pytest.mark.parametrize("kind", MASK_VALUES)
def test_mask_values(kind: str) -> None:
    given, expected = MASK_VALUES[kind]
    masks, _ = masks_from_edges(PLAIN.graph, {EDGE: given})
    assert masks["blocks.1.hook_q_input"][2, 2].item() == expected


FINITE = "expected a finite number"
BAD_VALUES: dict[str, tuple[Any, str]] = {
    "nan": (float("nan"), f"The mask of the edge '{EDGE}' is nan: {FINITE}"),
    "inf": (float("inf"), f"The mask of the edge '{EDGE}' is inf: {FINITE}"),
    "nan tensor": (torch.tensor(float("nan")), f"The mask of the edge '{EDGE}' is nan: {FINITE}"),
    "too large for float32": (1e300, f"The mask of the edge '{EDGE}' is 1e+300: {FINITE}"),
    "text": ("1", f"The mask of the edge '{EDGE}' is '1': {FINITE}"),
    "None": (None, f"The mask of the edge '{EDGE}' is None: {FINITE}"),
    "two numbers": (torch.ones(2), f"The mask of the edge '{EDGE}' is tensor([1., 1.]): {FINITE}"),
    "complex": (1j, f"The mask of the edge '{EDGE}' is 1j: {FINITE}"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.usefixtures("as_a_user")
def test_mask_values_that_are_refused(kind: str) -> None:
    given, message = BAD_VALUES[kind]
    with pytest.raises(ct.MaskError) as caught:
        masks_from_edges(PLAIN.graph, {EDGE: given})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("edges", [5, 1.5, object(), [5], [None], {5: 1.0}, {None: 1.0}])
@pytest.mark.usefixtures("as_a_user")
def test_edges_that_cannot_be_read(edges: Any) -> None:
    with pytest.raises(ct.EdgeError, match=r"Cannot read .* expected"):
        masks_from_edges(PLAIN.graph, edges)


def full(value: float = 1.0, *, model: ct.PatchableModel = PLAIN) -> dict[str, torch.Tensor]:
    return {
        module.name: torch.full(score_shape(module, model.seq_len), value)
        for module in model.graph.modules
    }


def test_scores_are_taken_as_they_are() -> None:
    scores = full(0.5)
    checked = check_scores(PLAIN.graph, scores, "The masks")
    assert list(checked) == list(scores)
    assert all(torch.equal(checked[name], scores[name]) for name in scores)
    assert check_scores(PLAIN.graph, {}, "The masks") == {}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_scores_of_any_real_type_are_floats(dtype: torch.dtype) -> None:
    scores = {"blocks.0.hook_mlp_in": torch.tensor([1, 0, 1, 0, 1]).to(dtype)}
    checked = check_scores(PLAIN.graph, scores, "The masks")["blocks.0.hook_mlp_in"]
    assert checked.is_floating_point()
    assert checked.tolist() == [1, 0, 1, 0, 1]


Q, SHAPE_HINT = "blocks.1.hook_q_input", "([seq, head, source], each where it applies)"


def unknown(module: str) -> str:
    return (
        f"The masks name the module {module!r}, which this model's graph does not have. Expected some "
        "of: blocks.0.hook_q_input, blocks.0.hook_k_input, blocks.0.hook_v_input, "
        "blocks.0.hook_mlp_in, blocks.1.hook_q_input, blocks.1.hook_k_input, … (9 in all)."
    )


def with_nan() -> torch.Tensor:
    scores = torch.zeros(4, 6)
    scores[2, 2] = float("nan")
    return scores


def with_inf_at_1() -> torch.Tensor:
    scores = torch.zeros(3, 4, 6)
    scores[1, 2, 2] = float("-inf")
    return scores


BAD_SCORES: dict[str, tuple[ct.PatchableModel, Callable[[], Any], str]] = {
    "a list": (
        PLAIN,
        lambda: [torch.ones(1)],
        "The masks must be PruneScores, a dict from a module's name (such as "
        "'blocks.0.hook_q_input') to a tensor; got list.",
    ),
    "a tensor": (
        PLAIN,
        lambda: torch.ones(1),
        "The masks must be PruneScores, a dict from a module's name (such as "
        "'blocks.0.hook_q_input') to a tensor; got Tensor.",
    ),
    "an unknown module": (
        PLAIN,
        lambda: {"blocks.9.hook_q_input": torch.ones(4, 1)},
        unknown("blocks.9.hook_q_input"),
    ),
    "an edge's name": (
        PLAIN,
        lambda: {EDGE: torch.ones(1)},
        unknown(EDGE),
    ),
    "a module of the unsplit graph": (
        PLAIN,
        lambda: {"blocks.0.hook_attn_in": torch.ones(4, 1)},
        unknown("blocks.0.hook_attn_in"),
    ),
    "too many sources": (
        PLAIN,
        lambda: {Q: torch.ones(4, 7)},
        f"The masks of '{Q}' have the wrong shape: expected (4, 6) {SHAPE_HINT}, got (4, 7).",
    ),
    "transposed": (
        PLAIN,
        lambda: {Q: torch.ones(6, 4)},
        f"The masks of '{Q}' have the wrong shape: expected (4, 6) {SHAPE_HINT}, got (6, 4).",
    ),
    "no tensor": (
        PLAIN,
        lambda: {Q: 1.0},
        f"The masks of '{Q}' have the wrong shape: expected (4, 6) {SHAPE_HINT}, got float.",
    ),
    "positions that the graph has not": (
        PLAIN,
        lambda: {Q: torch.ones(3, 4, 6)},
        f"The masks of '{Q}' have the wrong shape: expected (4, 6) {SHAPE_HINT}, got (3, 4, 6). They "
        "have token positions: wrap the model with seq_len=3.",
    ),
    "no positions where the graph has them": (
        AT_3,
        lambda: {Q: torch.ones(4, 6)},
        f"The masks of '{Q}' have the wrong shape: expected (3, 4, 6) {SHAPE_HINT}, got (4, 6). They "
        "have no token positions: wrap the model without seq_len.",
    ),
    "other positions": (
        AT_3,
        lambda: {Q: torch.ones(5, 4, 6)},
        f"The masks of '{Q}' have the wrong shape: expected (3, 4, 6) {SHAPE_HINT}, got (5, 4, 6).",
    ),
    "a NaN": (
        PLAIN,
        lambda: {Q: with_nan()},
        f"The masks of '{Q}' hold {EDGE} = nan: expected finite numbers.",
    ),
    "an infinity at a position": (
        AT_3,
        lambda: {Q: with_inf_at_1()},
        f"The masks of '{Q}' hold {EDGE} @1 = -inf: expected finite numbers.",
    ),
}


@pytest.mark.parametrize("kind", BAD_SCORES)
@pytest.mark.usefixtures("as_a_user")
def test_scores_that_are_refused(kind: str) -> None:
    model, make, message = BAD_SCORES[kind]
    with pytest.raises(ct.MaskError) as caught:
        make_plan(model.graph, None, None, make())
    assert str(caught.value) == message


def test_a_score_of_the_wrong_shape_names_the_module_that_has_it() -> None:
    scores = {**full(), "blocks.1.hook_mlp_in": torch.ones(3)}
    with pytest.raises(
        ct.MaskError, match=r"of 'blocks\.1\.hook_mlp_in' .* expected \(10,\) .* got \(3,\)"
    ):
        check_scores(PLAIN.graph, scores, "The scores")


def said(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(one.category is ct.MaskWarning for one in caught)
    return [str(one.message) for one in caught]


WHAT_TO_DO = (
    ". A mask says how far an edge is patched, from 0 (current) to 1 (patched); beyond, the change is "
    "exaggerated. Scores are no masks: ct.circuit(scores, n_edges=...) makes masks of them. Where this "
    "is meant, ignore ct.MaskWarning."
)


def scores_at(*values: float) -> ct.PruneScores:
    """Scores of the edges into the last MLP, the others 0."""
    scores = full(0.0)
    scores["blocks.1.hook_mlp_in"][: len(values)] = torch.tensor(values)
    return scores


OUTSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "raw scores": (
        {"masks": scores_at(0.5, 3.2, -0.01, 1.0)},
        "2 of 4 masks are outside 0 to 1, first A0.0->MLP 1 = 3.2",
    ),
    "all of them": (
        {"masks": full(-1.0)},
        f"{PLAIN.n_edges} of {PLAIN.n_edges} masks are outside 0 to 1, first Resid Start->A0.0.Q = -1",
    ),
    "half precision": (
        {"masks": {"blocks.0.hook_mlp_in": torch.tensor([0, 2, 0, 0, 0]).half()}},
        "1 of 1 masks are outside 0 to 1, first A0.0->MLP 0 = 2",
    ),
    "whole numbers": (
        {"masks": {"blocks.0.hook_mlp_in": torch.tensor([0, 0, 7, 0, 1])}},
        "1 of 2 masks are outside 0 to 1, first A0.1->MLP 0 = 7",
    ),
    "by name": (
        {"edges": {EDGE: 1.5, "MLP 0->Resid End": 0.5}},
        "1 of 2 masks are outside 0 to 1, first A0.1->A1.2.Q = 1.5",
    ),
    "by node": (
        {"nodes": {"MLP 1": -0.25}},
        "1 of 1 masks are outside 0 to 1, first MLP 1->Resid End = -0.25",
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_masks_outside_0_to_1_are_said(kind: str) -> None:
    given, start = OUTSIDE[kind]
    model = ct.wrap(shared("hooked LN"))
    outputs = model.source_outputs(tokens(2))
    for call in (
        lambda: model.patch(outputs, **given),
        lambda: model.trace(tokens(1), corrupt=tokens(2), **given),
    ):
        assert said(call) == [start + WHAT_TO_DO]


def test_the_position_is_said() -> None:
    masks = full(0.0, model=AT_3)
    masks[Q][1, 2, 2] = 4.0
    outputs = AT_3.source_outputs(tokens(2)[:, :3])
    (text,) = said(lambda: AT_3.patch(outputs, masks=masks))
    assert text == f"1 of 1 masks are outside 0 to 1, first {EDGE} @1 = 4" + WHAT_TO_DO


@pytest.mark.parametrize(
    "given",
    [
        {"masks": full(1.0)},
        {"masks": full(0.0)},
        {"masks": scores_at(1 + 1e-7, -1e-8, 0.3)},
        {"masks": {name: mask.requires_grad_() for name, mask in full(1.2).items()}},
        {"edges": {EDGE: torch.nn.Parameter(torch.tensor(-0.1))}},
        {"edges": [EDGE]},
    ],
    ids=["ones", "zeros", "but for rounding", "that learn", "one that learns", "an edge"],
)
def test_other_masks_are_taken_without_a_word(given: dict[str, Any]) -> None:
    outputs = PLAIN.source_outputs(tokens(2))
    assert said(lambda: PLAIN.patch(outputs, **given)) == []


def test_masks_that_learn_are_said_where_they_do_not() -> None:
    outputs = PLAIN.source_outputs(tokens(2))
    learning = torch.nn.Parameter(torch.tensor(1.2))
    masks = {name: mask.requires_grad_() for name, mask in full(1.2).items()}
    for given in ({"edges": {EDGE: learning, "MLP 0->Resid End": 5.0}}, {"masks": masks}):
        with torch.no_grad():
            (text,) = said(lambda given=given: PLAIN.patch(outputs, **given))
        assert text.endswith(WHAT_TO_DO)
    (text,) = said(lambda: PLAIN.patch(outputs, edges={EDGE: learning, "MLP 0->Resid End": 5.0}))
    assert text == "1 of 1 masks are outside 0 to 1, first MLP 0->Resid End = 5" + WHAT_TO_DO


def test_a_circuit_of_the_scores_is_what_was_meant() -> None:
    scores = scores_at(0.5, 3.2, -0.01, 1.0)
    outputs = PLAIN.source_outputs(tokens(2))
    chosen = ct.circuit(scores, n_edges=2, prune=False)
    assert said(lambda: PLAIN.patch(outputs, masks=chosen)) == []
    assert [str(edge) for edge in make_plan(PLAIN.graph, outputs, None, chosen).edges()] == [
        "A0.0->MLP 1",
        "A0.2->MLP 1",
    ]
