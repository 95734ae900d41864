"""What a pass leaves behind is small, detached and the same from run to run."""

from __future__ import annotations

import torch
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.hooks import directions
from circuit_trace.hooks.record import N_DIRECTIONS, sketch
from tests.models import shared, tokens


def test_directions_are_fixed_and_draw_no_random_numbers() -> None:
    state = torch.get_rng_state()
    cpu = torch.device("cpu")
    first = directions(48, cpu)
    directions.cache_clear()
    assert torch.equal(directions(48, cpu), first)
    assert first.shape == (48, N_DIRECTIONS)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sketch_is_linear() -> None:
    a, b = torch.randn(2, 3, 48), torch.randn(2, 3, 48)
    assert sketch(a).shape == (2, 3, N_DIRECTIONS)
    assert_close(sketch(a) + 2 * sketch(b), sketch(a + 2 * b), rtol=1e-4, atol=1e-4)
    assert sketch(a.bfloat16()).dtype == torch.float32


def test_every_destination_is_in_the_record() -> None:
    model = ct.wrap(shared("hooked LN"))
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=["A0.1->A1.2.Q", "A0.3->MLP 1"])
    read = {number for one in trace.reads for number in one.dests}
    assert read == set(range(len(model.graph.modules)))
    of_heads = [one for one in trace.reads if one.heads is not None]
    assert [(model.graph.modules[one.dests[0]].name, one.heads) for one in of_heads] == [
        ("blocks.1.hook_q_input", (2,))
    ]
    assert [one.patched for one in of_heads] == [True]


def test_a_record_is_smaller_than_what_the_pass_computed() -> None:
    """No tensor of a record has both a head axis and the stream's width."""
    model = ct.wrap(shared("hooked LN"))
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=["A0.1->A1.2.Q"])
    d_model, d_head = model.cfg.d_model, model.cfg.d_head
    for site in trace.current.sites:
        assert site.code.shape[-1] == (d_model if site.code.shape[2] == 1 else d_head)
    assert {one.seen.shape[-1] for one in trace.reads} == {N_DIRECTIONS}
