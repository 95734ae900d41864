"""The record of a head: frozen, its own, and clear about what it does not hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import OlmoConfig

import circuit_trace as ct
from circuit_trace.record import HeadRecord
from tests.families.models import D_VOCAB, bridge, hugging_face
from tests.models import HAS_BRIDGE, TYPICAL, tokens, wrapped

TRACE = wrapped(TYPICAL[0]).trace(tokens(1), heads=["A0.1", "A1.2"])


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRACE.head("A0.1").name = "A0.2"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("what", ["pattern", "q", "k", "v"])
def test_writing_to_a_tensor_leaves_the_record(what: str) -> None:
    head = TRACE.head("A0.1")
    before = getattr(head, what).clone()
    getattr(head, what).zero_()
    assert before.abs().max() > 0
    assert torch.equal(getattr(TRACE.head("A0.1"), what), before)


def test_it_shows_its_shapes() -> None:
    assert repr(TRACE.head("A1.2")) == (
        "<HeadRecord A1.2: q [2, 6, 4], k [2, 6, 4], v [2, 6, 4], pattern [2, 6, 6]>"
    )


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "not recorded": (
        "A1.1",
        ct.NoTraceError,
        "This pass did not record the head 'A1.1'; it recorded A0.1, A1.2. Ask for it: "
        "model.trace(..., heads=['A1.1']).",
    ),
    "several": ("A0.*", ct.NoTraceError, "This pass did not record the head 'A0.*'; it recorded"),
    "no head": ("A9.9", ct.EdgeError, "No head is called 'A9.9'. "),
    "another node": ("MLP 0", ct.EdgeError, "No head is called 'MLP 0'. The heads run from"),
    "no name": (3, ct.EdgeError, "Expected the name of a head, such as 'A0.1'; got 3."),
    "a list": (["A0.1"], ct.EdgeError, "Expected the name of a head, such as 'A0.1'; got ['A0.1']"),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("what", WRONG)
def test_a_head_that_is_not_there(what: str) -> None:
    name, error, message = WRONG[what]
    with pytest.raises(error) as caught:
        TRACE.head(name)
    assert str(caught.value).startswith(message)


def test_where_none_was_asked_for() -> None:
    trace = wrapped(TYPICAL[0]).trace(tokens(1))
    assert trace.heads == ()
    with pytest.raises(ct.NoTraceError, match="it recorded none"):
        trace.head("A0.1")


def test_what_the_pass_did_not_show() -> None:
    head = HeadRecord("A0.1", {"q": torch.ones(1, 2, 3)})
    assert head.rot_q is head.rot_k is None
    with pytest.raises(ct.InputError) as caught:
        _ = head.pattern
    assert str(caught.value) == (
        "This pass did not show the 'pattern' of A0.1: a fused kernel (sdpa or flash attention) "
        "computes no pattern. Run the model with eager attention (attn_implementation='eager' when "
        "it is loaded, or model.original_model.set_attn_implementation('eager') on a "
        "TransformerBridge) and trace again. Recorded are: q."
    )


@pytest.mark.skipif(not HAS_BRIDGE, reason="no TransformerBridge in this TransformerLens")
@torch.no_grad()
def test_values_are_shown_before_a_clip() -> None:
    """As the projection of Hugging Face's own model gives them; attention reads them clipped."""
    clip = 0.2
    config = OlmoConfig(
        vocab_size=D_VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, clip_qkv=clip,
    )  # fmt: skip
    head = ct.wrap(bridge("OlmoForCausalLM", config)).trace(tokens(1), heads="*").head("A1.2")
    model = hugging_face("OlmoForCausalLM", config)
    attention = model.model.layers[1].self_attn
    read: list[torch.Tensor] = []
    attention.v_proj.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
    wrote: list[torch.Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _module, args: wrote.append(args[0]))
    model(tokens(1))
    values = (read[0] @ attention.v_proj.weight.T).unflatten(-1, (4, -1))[:, :, 2]
    assert values.abs().max() > 2 * clip
    torch.testing.assert_close(head.v, values)
    z = wrote[0].unflatten(-1, (4, -1))[:, :, 2]
    torch.testing.assert_close(head.pattern @ head.v.clamp(-clip, clip), z)
