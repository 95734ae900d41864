"""Shares of the logits against the model's own scale, and against its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import circuit_trace as ct
from circuit_trace.anatomy import Unembed
from circuit_trace.record import Direction, edge_numbers, lens_of, top_tokens
from circuit_trace.record.inputs import stream_at
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.models import CASES, TYPICAL, shared, tokens, wrapped

SEQ = 6
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
EDGES = {"A0.1->A1.2.Q": 1.0, "A0.1->Resid End": -0.5, "MLP 0->Resid End": 0.3}
FIRST, SECOND = 3, 7
HOOKED = [name for name in TYPICAL if name.startswith("hooked")]


def edges_of(name: str) -> dict[str, float]:
    return {
        edge: mask for edge, mask in EDGES.items() if "MLP" not in edge or not CASES[name].attn_only
    }


@pytest.mark.parametrize("name", CASES)
def test_the_shares_of_all_outputs_and_biases_add_up_to_the_logits(name: str) -> None:
    """Also of a patched pass: what Resid End received is what has shares."""
    trace = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=edges_of(name))
    received = trace.dest("Resid End").received.sum(0)[1]
    for bias in trace.biases:
        if bias is not None:  # behind a norm it is another at each position
            received = received + bias.detach().expand(trace.batch, SEQ, -1)[1]
    shares = lens_of(trace, 1).logits(received, range(SEQ))
    assert isinstance(trace.unembed, ct.Unembed)
    assert trace.logits is not None
    with torch.no_grad():
        rest = trace.unembed.norm(torch.zeros(1, 1, received.shape[-1]))[0] @ trace.unembed.weight()
        bias = trace.unembed.bias()
        rest = rest if bias is None else rest + bias
        logits = trace.unembed.finish(shares + rest)
    torch.testing.assert_close(logits, trace.logits[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", HOOKED)
def test_projections_on_two_tokens_use_the_scale_that_the_model_computed(name: str) -> None:
    """Against `ln_final.hook_scale` and the norm's own weights."""
    bare = CASES[name].build()
    model = ct.wrap(bare, seq_len=SEQ)
    seen: dict[str, Tensor] = {}
    for hook in ("hook_scale",):
        bare.hook_dict[f"ln_final.{hook}"].register_forward_hook(
            lambda _m, _i, out, hook=hook: seen.update({hook: out.detach()})
        )
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[(4, "A0.1->Resid End")])
    outputs = torch.stack([trace.current["A0.1"], trace.edge("A0.1->Resid End", 4).patched])[
        :, 1, 4
    ]
    if "LayerNorm" in type(bare.ln_final).__name__:
        outputs = outputs - outputs.mean(-1, keepdim=True)
    weight = getattr(bare.ln_final, "w", torch.ones(()))
    along = bare.W_U[:, FIRST] - bare.W_U[:, SECOND]
    expected = (outputs / seen["hook_scale"][1, 4] * weight) @ along
    row = trace.table(batch_idx=1, direction=(FIRST, SECOND)).iloc[0]
    got = torch.tensor([row["clean_projection"], row["received_projection"]])
    torch.testing.assert_close(got, expected.detach().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TYPICAL)
def test_the_end_of_the_stream_is_what_resid_end_read(name: str) -> None:
    bare = CASES[name].build()
    model = ct.wrap(bare)
    last = dict(bare.hook_dict)[f"blocks.{len(bare.blocks) - 1}.hook_resid_post"]
    seen: list[Tensor] = []
    last.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))
    outer, inner = model.source_outputs(CORRUPT), model.source_outputs(tokens(3, seq=SEQ))
    seen.clear()
    with (
        model.patch(outer, edges={"A0.0->A1.1.V": 1.0, "A0.1->A1.2.Q": 0.5}),
        model.patch(inner, edges={"A0.3->Resid End": 0.7}),
        torch.no_grad(),
    ):
        model(CLEAN)
    torch.testing.assert_close(
        stream_at(model.last_trace, model.dests[-1], 1), seen[-1][1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", TYPICAL)
def test_top_tokens_are_those_of_the_logits_of_the_change(name: str) -> None:
    trace = wrapped(name, SEQ).trace(
        CLEAN, corrupt=CORRUPT, edges={(2, "A0.1->A1.2.Q"): 1.0, (5, "A0.3->Resid End"): 0.0}
    )
    listed = list(trace.edges)
    at = torch.tensor([edge.seq_idx for edge in listed])
    found = top_tokens(trace, listed, 1, 3, ("current", "patched"), at)
    for edge, (raised, lowered) in zip(listed, found, strict=True):
        delta = trace.edge(edge.name, edge.seq_idx).delta
        assert delta is not None
        shares = lens_of(trace, 1).logits(delta[1, edge.seq_idx][None], [edge.seq_idx])[0]
        order = shares.argsort(descending=True).tolist()
        assert [token for token, _ in raised] == [str(one) for one in order[:3]]
        assert [token for token, _ in lowered] == [str(one) for one in order[::-1][:3]]
        assert raised[0][1] == pytest.approx(float(shares.max()), rel=1e-4)


def test_top_tokens_without_a_patch_are_those_of_the_output() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    edge = trace.graph.edge("A0.1->Resid End")
    ((raised, _),) = top_tokens(trace, [edge], 0, 1, None, torch.tensor([-1]))
    shares = lens_of(trace, 0).logits(trace.current["A0.1"][0, -1][None], [SEQ - 1])[0]
    assert raised[0][0] == str(int(shares.argmax()))


def test_means_over_the_batch() -> None:
    trace = wrapped("hooked LN").trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    listed = list(trace.edges)
    ask: dict[str, Any] = {"direction": (FIRST, SECOND), "at": "last"}
    every = [edge_numbers(trace, listed, b, **ask) for b in range(trace.batch)]
    mean = edge_numbers(trace, listed, "mean", **ask)
    for field in ("before_projection", "after_projection"):
        expected = torch.stack([getattr(one, field) for one in every]).mean(0)
        torch.testing.assert_close(getattr(mean, field), expected)
    deltas = [trace.edge(listed[0].name).effect[b, -1] for b in range(trace.batch)]
    shares = [lens_of(trace, b).logits(d[None], [SEQ - 1])[0] for b, d in enumerate(deltas)]
    ((raised, _), *_) = top_tokens(trace, listed, "mean", 1, mean.pair, mean.at)
    assert raised[0][0] == str(int(torch.stack(shares).mean(0).argmax()))


def test_the_table_names_tokens_as_text_where_there_is_a_tokenizer() -> None:
    from circuit_trace.demo.prompts import ANSWERS
    from circuit_trace.demo.prompts import CLEAN as TEXT
    from circuit_trace.demo.prompts import CORRUPT as OTHER

    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(TEXT, corrupt=OTHER, edges=["A1.0->Resid End"])
    by_text = trace.table(direction=ANSWERS, n_tokens=2)
    ids = tuple(int(model.to_tokens(name)[0, -1]) for name in ANSWERS)
    by_id = trace.table(direction=ids)
    assert by_text["clean_projection"].tolist() == by_id["clean_projection"].tolist()
    assert all(isinstance(token, str) and token for token in by_text["promotes"][0])
    assert ANSWERS[0].strip() in Direction.read(trace, ANSWERS).name


WRONG: list[tuple[Any, str]] = [
    ((" Mary", " John"), "the model has no tokenizer: give its id"),
    ((3, 23), "There is no token 23; this model knows 0 to 22."),
    ((-1, 2), "There is no token -1"),
    ([1.0, 2.0], "direction must be a vector of 10 finite numbers"),
    ("Mary", "direction must be a vector of numbers or a pair of tokens; got 'Mary'."),
    (torch.full((10,), float("nan")), "got one with NaN or infinity in it"),
    ((3, 3), "The two tokens of direction=(3, 3) are the same."),
]


@pytest.mark.parametrize(("direction", "message"), WRONG, ids=str)
def test_wrong_directions(direction: Any, message: str) -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    with pytest.raises(ct.InputError) as caught:
        trace.table(direction=direction)
    assert message in str(caught.value)


def test_a_word_of_several_tokens_is_refused_with_its_pieces() -> None:
    from circuit_trace.demo.prompts import CLEAN as TEXT

    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(TEXT)
    with pytest.raises(ct.InputError, match=r"'Mary and' is 2 of them: \['Mary', 'and'\]"):
        trace.table(direction=("Mary and", "John"))


def test_weights_changed_since_the_pass_are_noticed() -> None:
    bare = CASES["hooked LN"].build()
    trace = ct.wrap(bare).trace(CLEAN)
    lens_of(trace, 0)
    with torch.no_grad():
        bare.ln_final.w.mul_(torch.linspace(0.5, 2, len(bare.ln_final.w)))
    with pytest.raises(ct.InputError, match="if weights were changed since"):
        lens_of(trace, 0)


class Squashing(nn.Module):
    """Not linear for any scale."""

    def forward(self, stream: Tensor) -> Tensor:
        return torch.tanh(stream)


def test_a_norm_that_is_not_linear_is_refused() -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    assert trace.unembed is not None
    odd = ct.Trace(
        trace.graph,
        trace.current,
        biases=trace.biases,
        unembed=Unembed(norm=Squashing(), weight=trace.unembed.weight),
    )
    with pytest.raises(ct.InputError, match="not a LayerNorm or RMSNorm"):
        lens_of(odd, 0)


def test_a_model_without_unembedding_says_so() -> None:
    toy = ToyModel()
    trace = ct.wrap(toy, anatomy=toy_anatomy(toy)).trace(torch.ones(1, 4, 2))
    with pytest.raises(ct.InputError, match="does not say how its residual stream becomes logits"):
        trace.table(n_tokens=1)


def test_the_lens_does_not_keep_the_model() -> None:
    import gc
    import weakref

    bare = CASES["hooked LN"].build()
    trace = ct.wrap(bare).trace(CLEAN)
    gone = weakref.ref(bare)
    del bare
    gc.collect()
    assert gone() is None
    lens_of(trace, 0)


def test_shared_models_are_left_alone() -> None:
    """The lens runs the final norm: no hook on it may fire."""
    bare = shared("hooked LN")
    trace = wrapped("hooked LN").trace(CLEAN)
    fired: list[str] = []
    handle = bare.ln_final.register_forward_hook(lambda *_: fired.append("norm"))
    try:
        lens_of(trace, 0)
    finally:
        handle.remove()
    assert not fired


PAIRS = ([3, 7], tuple(np.array([3, 7])), torch.tensor([3, 7]), torch.tensor([3, 7]).unbind())


@pytest.mark.parametrize("pair", PAIRS)
def test_ids_of_any_kind_of_whole_number(pair: Any) -> None:
    trace = wrapped("hooked LN").trace(CLEAN)
    expected = Direction.read(trace, (3, 7)).tokens
    assert Direction.read(trace, pair).tokens == expected == (3, 7)


def test_a_word_that_the_tokenizer_does_not_know() -> None:
    from circuit_trace.demo.prompts import CLEAN as TEXT

    trace = ct.wrap(ct.load_model("bundled")).trace(TEXT)
    with pytest.raises(ct.InputError, match="The tokenizer does not know 'Zebra'"):
        trace.table(direction=("Zebra", "John"))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("n_tokens", [-1, 1.5, "a", True])
def test_numbers_of_tokens_that_are_none(n_tokens: Any) -> None:
    with pytest.raises(ct.InputError, match="n_tokens must be a whole number"):
        wrapped("hooked LN").trace(CLEAN).table(n_tokens=n_tokens)


def test_a_stream_that_a_hook_changes_is_noticed_at_any_position() -> None:
    bare = CASES["hooked LN"].build()

    noise = torch.randn(bare.cfg.d_model, generator=torch.Generator().manual_seed(0)) * 50

    def push(_module: Any, _args: Any, out: Tensor) -> Tensor:
        changed = out.clone()
        changed[:, 2] += noise
        return changed

    model = ct.wrap(bare, seq_len=SEQ)
    handle = bare.blocks[-1].hook_resid_post.register_forward_hook(push)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[(2, "A0.1->Resid End")])
    handle.remove()
    with pytest.raises(ct.InputError, match="other logits at position 2"):
        trace.table(direction=(FIRST, SECOND))


def test_a_position_without_numbers_leaves_the_others_theirs() -> None:
    bare = CASES["hooked LN"].build()

    def spoil(_module: Any, _args: Any, out: Tensor) -> Tensor:
        changed = out.clone()
        changed[:, SEQ - 1] = float("nan")
        return changed

    model = ct.wrap(bare, seq_len=SEQ)
    request: dict[str, Any] = {"corrupt": CORRUPT, "edges": [(2, "A0.1->Resid End")]}
    expected = model.trace(CLEAN, **request).table(direction=(FIRST, SECOND))
    handle = bare.blocks[-1].hook_resid_post.register_forward_hook(spoil)
    found = model.trace(CLEAN, **request).table(direction=(FIRST, SECOND))
    handle.remove()
    pd.testing.assert_frame_equal(found, expected)
