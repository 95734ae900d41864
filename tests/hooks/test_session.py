"""The model is left as it was, and users' own hooks work as ever."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.hooks import session as session_module
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.footprint import footprint, hooks_of, lent, n_hooks
from tests.models import CASES, TWO, oracle, shape_of, shared, tokens, wrapped
from tests.oracle import Ask

CLEAN, CORRUPT = tokens(1), tokens(2)
CLOSE = {"rtol": 1e-5, "atol": 3e-5}

ASKS = [
    Ask("A0.1", "A1.2.Q", None, 1.0),
    Ask("Resid Start", "A1.1.K", None, 0.5),
    Ask("A0.2", "A1.0.V", None, 1.0),
    Ask("A0.3", "MLP 1", None, -0.5),
    Ask("MLP 0", "Resid End", None, 1.0),
]
EDGES = {ask.name: ask.mask for ask in ASKS}
"""Every kind of destination."""


class Stop(Exception):
    """What a user's hook raises."""


@pytest.fixture(params=TWO)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def hooked(name: str) -> Iterator[Any]:
    with lent(shared(name)) as model:
        yield model


@pytest.fixture
def own(name: str) -> Any:
    """A model that a test may change for good."""
    model = CASES[name].build()
    with torch.no_grad():
        model(CLEAN)
    return model


@pytest.fixture
def model(hooked: Any) -> ct.PatchableModel:
    return ct.wrap(hooked, verify=False)


def raising(error: BaseException) -> Callable:
    def hook(tensor: Tensor, hook: Any) -> None:
        raise error

    return hook


# --- nothing is left ----------------------------------------------------------------------------


def trace(model: ct.PatchableModel) -> None:
    model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


def trace_all(model: ct.PatchableModel) -> None:
    masks = {module.name: torch.ones(module.shape) for module in model.graph.modules}
    model.trace(CLEAN, corrupt=CORRUPT, masks=masks)


def patch_by_hand(model: ct.PatchableModel) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model(CLEAN)
        model(CORRUPT)


def patch_without_a_pass(model: ct.PatchableModel) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        pass


def nested(model: ct.PatchableModel) -> None:
    patched = model.source_outputs(CORRUPT)
    with model.patch(patched, edges=EDGES), model.patch(patched, edges=["A0.0->Resid End"]):
        model(CLEAN)
        model.source_outputs(CORRUPT)


def read_in_the_context(model: ct.PatchableModel) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model(CLEAN)
        model.last_trace.table()


def with_cache(model: ct.PatchableModel) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model.run_with_cache(CLEAN)


def all_ablations(model: ct.PatchableModel) -> None:
    for ablation in ct.AblationType:
        model.source_outputs([(CLEAN, CORRUPT)] if ablation.mean_over_dataset else CLEAN, ablation)


SUCCESSES = {
    f.__name__: f
    for f in (
        trace,
        trace_all,
        patch_by_hand,
        patch_without_a_pass,
        nested,
        read_in_the_context,
        with_cache,
        all_ablations,
    )
}


@pytest.mark.parametrize("what", SUCCESSES)
def test_a_model_is_left_as_it_was(model: ct.PatchableModel, hooked: Any, what: str) -> None:
    before = footprint(hooked)
    SUCCESSES[what](model)
    assert footprint(hooked) == before


def test_a_footprint_sees_what_it_must(own: Any) -> None:
    """The check of the checks: each kind of change shows."""
    before = footprint(own)
    handle = own.embed.register_forward_pre_hook(lambda *_: None)
    assert footprint(own) != before
    handle.remove()
    assert footprint(own) == before
    own.train(not own.training)
    assert footprint(own) != before
    own.train(not own.training)
    assert footprint(own) == before
    own.set_use_hook_mlp_in(True)
    assert footprint(own) != before
    own.set_use_hook_mlp_in(False)
    with torch.no_grad():
        next(own.parameters()).add_(0)
    assert footprint(own) != before


def test_hooks_are_there_only_while_a_context_is_open(
    model: ct.PatchableModel, hooked: Any
) -> None:
    patched, before = model.source_outputs(CORRUPT), n_hooks(hooked)
    context = model.patch(patched, edges=EDGES)
    assert n_hooks(hooked) == before, "none before it is entered"
    with context:
        during = n_hooks(hooked)
        assert during > before
        model(CLEAN)
        assert n_hooks(hooked) == during, "a pass leaves none behind"
        with model.patch(patched, edges=["A0.0->Resid End"]):
            assert n_hooks(hooked) == during, "the inner one takes the outer one's place"
            model(CLEAN)
        assert n_hooks(hooked) == during
    assert n_hooks(hooked) == before


def test_a_hundred_contexts_leave_no_more_than_one(model: ct.PatchableModel, hooked: Any) -> None:
    patched, before = model.source_outputs(CORRUPT), footprint(hooked)
    logits = []
    for _ in range(100):
        with model.patch(patched, edges=["A0.1->Resid End"]):
            pass
    for _ in range(3):
        with model.patch(patched, edges=EDGES):
            logits.append(model(CLEAN).detach())
    assert footprint(hooked) == before
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_wrapping_changes_nothing(hooked: Any) -> None:
    before, random_state = footprint(hooked), torch.get_rng_state()
    for options in ({}, {"seq_len": 6}, {"verify": False}, {"slice_output": "last_seq"}):
        ct.wrap(hooked, **options)
    assert footprint(hooked) == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_wrapping_a_model_in_training_mode_does_not_draw_random_numbers() -> None:
    hooked = CASES["bridge GPT-2"].build()
    hooked.train()
    hooked(CLEAN)  # with dropout, which draws
    before, random_state = footprint(hooked), torch.get_rng_state()
    ct.wrap(hooked)
    assert footprint(hooked) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert hooked.training


FAILING_PLACES = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.attn.hook_q",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_resid_post",
    "ln_final.hook_scale",
]
ERRORS = {"an error": Stop("a user's own"), "Ctrl-C": KeyboardInterrupt()}


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest) -> BaseException:
    return ERRORS[request.param]


@pytest.mark.parametrize("place", FAILING_PLACES)
def test_a_pass_that_fails_leaves_nothing(
    model: ct.PatchableModel, hooked: Any, place: str, error: BaseException
) -> None:
    patched = model.source_outputs(CORRUPT)
    expected = model.trace(CLEAN, patched=patched, edges=EDGES)
    before = footprint(hooked)
    with pytest.raises(type(error)) as caught, model.patch(patched, edges=EDGES):
        hooked.run_with_hooks(CLEAN, fwd_hooks=[(place, raising(error))])
    assert caught.value is error
    assert footprint(hooked) == before
    again = model.trace(CLEAN, patched=patched, edges=EDGES)
    assert torch.equal(again.logits, expected.logits)


@pytest.mark.parametrize("place", FAILING_PLACES)
def test_a_pass_that_fails_leaves_no_trace(
    model: ct.PatchableModel, hooked: Any, place: str, error: BaseException
) -> None:
    """`last_trace` is the record of the last pass that ran to its end."""
    patched = model.source_outputs(CORRUPT)
    expected = model.trace(CLEAN, patched=patched, edges=EDGES)
    with pytest.raises(type(error)), model.patch(patched, edges=EDGES):
        hooked.run_with_hooks(CORRUPT, fwd_hooks=[(place, raising(error))])
    assert model.last_trace is expected


def test_a_failed_pass_is_not_recorded_later_either(
    model: ct.PatchableModel, hooked: Any, error: BaseException
) -> None:
    """Nor when a pass that is no whole one comes after it."""
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        model(CLEAN)
        with pytest.raises(type(error)):
            hooked.run_with_hooks(CORRUPT, fwd_hooks=[("ln_final.hook_scale", raising(error))])
        with pytest.raises(ct.InputError, match="did not run"):
            hooked(CORRUPT, stop_at_layer=1)
        assert torch.equal(model.last_trace.tokens, CLEAN)
    assert torch.equal(model.last_trace.tokens, CLEAN)


def test_a_failed_pass_may_be_repeated_in_its_context(
    model: ct.PatchableModel, hooked: Any, error: BaseException
) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        whole = model(CLEAN).detach()
        with pytest.raises(type(error)):
            hooked.run_with_hooks(CLEAN, fwd_hooks=[("blocks.1.attn.hook_z", raising(error))])
        assert torch.equal(model(CLEAN), whole)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_error_between_passes_closes_every_context(
    model: ct.PatchableModel, hooked: Any, depth: int, error: BaseException
) -> None:
    patched, before = model.source_outputs(CORRUPT), footprint(hooked)

    def nest(levels: int) -> None:
        with model.patch(patched, edges=[f"A0.{levels}->Resid End"]):
            model(CLEAN)
            if levels == 1:
                raise error
            nest(levels - 1)

    with pytest.raises(type(error)):
        nest(depth)
    assert footprint(hooked) == before
    plain = model.trace(CLEAN)
    assert len(plain.plans) == 1, "the next context is not inside another"
    assert_close(plain.logits, hooked(CLEAN).detach())


def test_source_outputs_that_fail_leave_nothing(
    model: ct.PatchableModel, hooked: Any, error: BaseException
) -> None:
    patched = model.source_outputs(CORRUPT)
    before = footprint(hooked)
    hooked.add_hook("blocks.1.attn.hook_z", raising(error))
    with pytest.raises(type(error)):
        model.source_outputs(CORRUPT)
    with pytest.raises(type(error)), model.patch(patched, edges=EDGES):
        model.source_outputs(CORRUPT)
    with pytest.raises(ct.AnatomyError if isinstance(error, Exception) else type(error)):
        ct.wrap(hooked)
    hooked.reset_hooks()
    assert hooks_of(hooked) == before.hooks


@pytest.mark.parametrize("after", [0, 1, 5, 10])
def test_attaching_that_fails_half_way_leaves_nothing(
    model: ct.PatchableModel,
    hooked: Any,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    error: BaseException,
) -> None:
    patched, before = model.source_outputs(CORRUPT), footprint(hooked)
    attach, calls = session_module.attach, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == after + 1:
            raise error
        return attach(*args, **kwargs)

    monkeypatch.setattr(session_module, "attach", failing)
    with pytest.raises(type(error)), model.patch(patched, edges=EDGES):
        pytest.fail("the context was entered")
    assert footprint(hooked) == before


def test_attaching_that_fails_leaves_the_outer_context_at_work(
    model: ct.PatchableModel, hooked: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    patched, before = model.source_outputs(CORRUPT), footprint(hooked)
    attach, failures = session_module.attach, [error]

    def failing_once(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return attach(*args, **kwargs)

    with model.patch(patched, edges=EDGES):
        expected = model(CLEAN).detach()
        monkeypatch.setattr(session_module, "attach", failing_once)
        with pytest.raises(type(error)), model.patch(patched, edges=["A0.0->Resid End"]):
            pytest.fail("the context was entered")
        assert torch.equal(model(CLEAN), expected)
    assert footprint(hooked) == before


# --- users' own hooks ---------------------------------------------------------------------------

PLACES = [
    "blocks.0.hook_resid_pre",
    "blocks.0.attn.hook_z",
    "blocks.0.hook_mlp_out",
    "blocks.1.attn.hook_q",
    "blocks.1.attn.hook_k",
    "blocks.1.attn.hook_pattern",
    "blocks.1.hook_resid_post",
]

EVERY_NORM = [
    f"blocks.{n}.{norm}.{hook}"
    for n in (0, 1)
    for norm in ("ln1", "ln2")
    for hook in ("hook_scale", "hook_normalized")
]


def test_users_hooks_fire_once_and_in_order(model: ct.PatchableModel, hooked: Any) -> None:
    """Hooks put on before the context, in it, by TransformerLens and by torch."""
    log: list[tuple[str, str]] = []

    def note(when: str, place: str) -> Callable:
        return lambda *_, **__: log.append((when, place))

    def run() -> list[tuple[str, str]]:
        log.clear()
        during = [(place, note("during", place)) for place in PLACES]
        hooked.run_with_hooks(CLEAN, fwd_hooks=during)
        return list(log)

    for place in PLACES:
        hooked.add_hook(place, note("before", place))
        hooked.hook_dict[place].register_forward_hook(note("torch", place))
    expected = [(when, place) for place in PLACES for when in ("before", "torch", "during")]
    assert run() == expected
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        assert run() == expected
        assert run() == expected
    assert run() == expected


def test_norms_fire_their_hooks_no_more_than_without_a_patch(
    model: ct.PatchableModel, hooked: Any
) -> None:
    log: list[str] = []

    def run() -> list[str]:
        log.clear()
        hooks = [(place, lambda *_, place=place, **__: log.append(place)) for place in EVERY_NORM]
        hooked.run_with_hooks(CLEAN, fwd_hooks=hooks)
        return list(log)

    expected = run()
    assert set(expected) == set(EVERY_NORM)
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        assert run() == expected


def test_users_hooks_see_the_patched_values(
    name: str, model: ct.PatchableModel, hooked: Any
) -> None:
    def watch(run: Callable) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(place: str) -> Callable:
            return lambda tensor, hook: seen.update({place: tensor.detach().clone()})

        run([(place, keep(place)) for place in PLACES])
        return seen

    second = oracle(name)
    corrupt = second.run(CORRUPT).wrote
    # Where the oracle edits at the very place, at the end of the stream, it tells what was read there.
    end = second.run(CLEAN, corrupt, ASKS).read["Resid End"]
    expected = watch(lambda hooks: second.run(CLEAN, corrupt, ASKS, users_hooks=hooks))
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        got = watch(lambda hooks: hooked.run_with_hooks(CLEAN, fwd_hooks=hooks))
    assert_close(got.pop("blocks.1.hook_resid_post"), end, **CLOSE)
    for place, tensor in got.items():
        assert_close(tensor, expected[place], **CLOSE)
    plain = watch(lambda hooks: hooked.run_with_hooks(CLEAN, fwd_hooks=hooks))
    for place in ("blocks.1.attn.hook_q", "blocks.1.attn.hook_k", "blocks.1.attn.hook_pattern"):
        assert (plain[place] - got[place]).abs().max() > 1e-2


def scale(factor: float, *, head: int | None = None, position: int | None = None) -> Callable:
    """A hook that multiplies a tensor, or one head or position of it, by a factor."""

    def hook(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor.clone()
        at = [slice(None)] * 3
        if position is not None:
            at[1] = position  # pyright: ignore[reportCallIssue]
        if head is not None:
            at[2] = head  # pyright: ignore[reportCallIssue]
        tensor[tuple(at)] *= factor
        return tensor

    return hook


def in_place(tensor: Tensor, hook: Any) -> Tensor:
    with torch.no_grad():
        return tensor.mul_(0.5)


USERS_EDITS: dict[str, tuple[str, Callable]] = {
    "a head's z": ("blocks.0.attn.hook_z", scale(2.0, head=1)),
    "z at a position": ("blocks.1.attn.hook_z", scale(0.0, position=3)),
    "z in place": ("blocks.0.attn.hook_z", in_place),
    "an MLP's output": ("blocks.0.hook_mlp_out", scale(-1.0)),
    "the embedding": ("blocks.0.hook_resid_pre", scale(1.5, position=2)),
    "token embeddings": ("hook_embed", scale(0.5)),
    "patched queries": ("blocks.1.attn.hook_q", scale(0.0, head=2)),
    "other queries": ("blocks.1.attn.hook_q", scale(3.0, head=0)),
    "patched values": ("blocks.1.attn.hook_v", scale(2.0)),
    "attention": ("blocks.1.attn.hook_pattern", scale(0.5)),
    "attention scores": ("blocks.0.attn.hook_attn_scores", scale(2.0)),
}


@pytest.mark.parametrize("what", USERS_EDITS)
def test_what_users_hooks_edit_counts_and_is_recorded(
    name: str, model: ct.PatchableModel, hooked: Any, what: str
) -> None:
    hooks = [USERS_EDITS[what]]
    second = oracle(name)
    corrupt = second.run(CORRUPT).wrote
    expected = second.run(CLEAN, corrupt, ASKS, users_hooks=hooks)
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        logits = hooked.run_with_hooks(CLEAN, fwd_hooks=hooks)
        unedited = hooked(CLEAN)
        logits_again = hooked.run_with_hooks(CLEAN, fwd_hooks=hooks)
    assert_close(logits, expected.logits, **CLOSE)
    assert torch.equal(logits_again, logits)
    assert (unedited - logits).abs().max() > 1e-2
    trace = model.last_trace
    for source, wrote in expected.wrote.items():
        assert_close(trace.current[source], wrote, **CLOSE)
    assert trace.reconstruction_error() < 1e-5


BEFORE = ("a head's z", "patched queries", "patched values", "an MLP's output", "attention")


@pytest.mark.parametrize("what", BEFORE)
def test_hooks_put_on_before_the_context_count_too(
    name: str, model: ct.PatchableModel, hooked: Any, what: str
) -> None:
    """They see, and may change, what is really used, as those put on later do."""
    place, hook = USERS_EDITS[what]
    second, patched = oracle(name), model.source_outputs(CORRUPT)
    corrupt = second.run(CORRUPT).wrote
    expected = second.run(CLEAN, corrupt, ASKS, users_hooks=[(place, hook)])
    unhooked = model.trace(CLEAN, patched=patched, edges=EDGES).logits
    hooked.add_hook(place, hook)
    trace = model.trace(CLEAN, patched=patched, edges=EDGES)
    assert_close(trace.logits, expected.logits, **CLOSE)
    assert_close(trace.current.stack(), torch.stack(list(expected.wrote.values())), **CLOSE)
    assert (trace.logits - unhooked).abs().max() > 1e-2
    hooked.reset_hooks()
    assert torch.equal(model.trace(CLEAN, patched=patched, edges=EDGES).logits, unhooked)


def test_a_hook_put_on_before_sees_the_patched_end_of_the_stream(
    name: str, model: ct.PatchableModel, hooked: Any
) -> None:
    seen: list[Tensor] = []
    hooked.add_hook("blocks.1.hook_resid_post", lambda tensor, hook: seen.append(tensor.clone()))
    trace = model.trace(CLEAN, patched=model.source_outputs(CORRUPT), edges=EDGES)
    end = trace.dest("Resid End").received.sum(0) + oracle(name).bias_before("Resid End")
    assert_close(seen[-1], end, **CLOSE)


def test_a_hook_put_on_in_the_context_counts(
    name: str, model: ct.PatchableModel, hooked: Any
) -> None:
    place, hook = USERS_EDITS["an MLP's output"]
    second = oracle(name)
    expected = second.run(CLEAN, second.run(CORRUPT).wrote, ASKS, users_hooks=[(place, hook)])
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        hooked.add_hook(place, hook)
        logits = hooked(CLEAN)
    assert_close(logits, expected.logits, **CLOSE)
    assert_close(model.last_trace.current["MLP 0"], expected.wrote["MLP 0"], **CLOSE)


def test_a_users_change_of_the_stream_itself_shows_as_what_no_source_wrote(
    name: str, model: ct.PatchableModel, hooked: Any
) -> None:
    """`hook_attn_out` is no source: the record cannot add up, and says so."""
    with model.patch():
        hooked.run_with_hooks(CLEAN, fwd_hooks=[("blocks.0.hook_attn_out", scale(2.0))])
    assert model.last_trace.reconstruction_error() > 1e-2


def test_reset_hooks_takes_the_users_hooks_and_leaves_ours(
    model: ct.PatchableModel, hooked: Any
) -> None:
    patched = model.source_outputs(CORRUPT)
    expected = model.trace(CLEAN, patched=patched, edges=EDGES).logits
    fired = []
    with torch.no_grad(), model.patch(patched, edges=EDGES):
        hooked.add_hook("blocks.0.attn.hook_z", lambda tensor, hook: fired.append(hook.name))
        hooked.reset_hooks()
        logits = hooked(CLEAN)
        hooked.reset_hooks(including_permanent=True)
        logits_after = hooked(CLEAN)
    assert torch.equal(logits, expected)
    assert torch.equal(logits_after, expected)
    assert fired == []


def test_run_with_cache_in_a_patch(name: str, model: ct.PatchableModel, hooked: Any) -> None:
    patched = model.source_outputs(CORRUPT)
    with torch.no_grad(), model.patch(patched, edges=EDGES):
        plainly = model(CLEAN)
        logits, cache = model.run_with_cache(CLEAN)
        after = model(CLEAN)
        trace = model.last_trace
    assert torch.equal(logits, plainly)
    assert torch.equal(after, plainly)
    assert torch.equal(trace.logits, plainly)
    for layer in range(2):
        assert_close(cache[f"blocks.{layer}.hook_mlp_out"], trace.current[f"MLP {layer}"])
    assert_close(cache["blocks.0.hook_resid_pre"], trace.current["Resid Start"])
    assert torch.equal(trace.tokens, CLEAN)
    end = trace.dest("Resid End").received.sum(0) + oracle(name).bias_before("Resid End")
    assert_close(cache["blocks.1.hook_resid_post"], end, **CLOSE)


@pytest.mark.parametrize(
    "flag",
    ["set_use_attn_result", "set_use_split_qkv_input", "set_use_attn_in", "set_use_hook_mlp_in"],
)
def test_a_users_own_flags_are_respected(name: str, own: Any, flag: str) -> None:
    expected = wrapped(name).trace(CLEAN, corrupt=CORRUPT, edges=EDGES).logits
    getattr(own, flag)(True)
    before = footprint(own)
    trace = ct.wrap(own).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert_close(trace.logits, expected, **CLOSE)
    assert trace.reconstruction_error() < 1e-5
    assert footprint(own) == before


# --- passes that cannot be traced, or only in part ----------------------------------------------


def test_a_pass_that_starts_in_the_middle_is_refused() -> None:
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    middle = hooked(CLEAN, stop_at_layer=1)
    before = footprint(hooked)
    patched = model.source_outputs(CORRUPT)
    with pytest.raises(ct.InputError) as caught, model.patch(patched, edges=EDGES):
        hooked(middle, start_at_layer=1)
    assert str(caught.value) == (
        "This pass reached 'A1.0' without running every layer before it in order, so it cannot be "
        "traced. Run the whole model: no start_at_layer, no second pass inside a hook, and no "
        "backward pass that runs layers again (gradient checkpointing) while the context is open."
    )
    assert footprint(hooked) == before


def test_a_pass_that_stops_early_leaves_no_trace(model: ct.PatchableModel, hooked: Any) -> None:
    first = model.trace(CLEAN)
    with model.patch(model.source_outputs(CORRUPT), edges=["A0.1->MLP 0"]):
        hooked(CORRUPT, stop_at_layer=1)
        assert model.last_trace is first
    assert model.last_trace is first


def test_an_edge_beyond_the_end_of_a_pass_is_no_silence(
    model: ct.PatchableModel, hooked: Any
) -> None:
    with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        with pytest.raises(ct.InputError, match="If the pass stopped early"):
            hooked(CORRUPT, stop_at_layer=1)
        hooked(CLEAN)
        assert torch.equal(model.last_trace.tokens, CLEAN)


def test_a_pass_resumed_from_another_is_refused() -> None:
    hooked = CASES["hooked LN"].build()  # a bridge knows no start_at_layer
    model = ct.wrap(hooked)
    stream = torch.zeros(*CLEAN.shape, hooked.cfg.d_model)
    with model.patch():
        hooked(CORRUPT, stop_at_layer=1)
        with pytest.raises(ct.InputError, match="no start_at_layer"):
            hooked(stream, start_at_layer=1)


def test_contexts_may_close_in_any_order(model: ct.PatchableModel, hooked: Any) -> None:
    patched, before, plain = model.source_outputs(CORRUPT), footprint(hooked), model(CLEAN)
    alone = model.trace(CLEAN, patched=patched, edges=["MLP 0->Resid End"]).logits
    outer = model.patch(patched, edges=["A0.1->Resid End"])
    inner = model.patch(patched, edges=["MLP 0->Resid End"])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(model(CLEAN), alone), "the inner one alone is open"
    inner.__exit__(None, None, None)
    assert footprint(hooked) == before
    assert torch.equal(model(CLEAN), plain)


def test_a_copy_made_inside_a_patch_is_not_patched(model: ct.PatchableModel, hooked: Any) -> None:
    with torch.no_grad():
        plain = hooked(CLEAN)
        with model.patch(model.source_outputs(CORRUPT), edges=EDGES):
            twin = copy.deepcopy(hooked)
            model(CLEAN)
            mine = model.last_trace
            assert torch.equal(twin(CLEAN), plain)
            assert model.last_trace is mine


@pytest.mark.parametrize("edges", [EDGES, ["A0.1->A1.2.Q", "A0.1->Resid End"]])
def test_under_autocast_the_patch_is_as_precise_as_the_pass(
    model: ct.PatchableModel, edges: list[str]
) -> None:
    exact = model.trace(CLEAN, corrupt=CORRUPT, edges=edges).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.trace(CLEAN, corrupt=CORRUPT, edges=edges)
    assert (found.logits.float() - exact).norm() < 0.05 * exact.norm()
    assert found.reconstruction_error() < 0.05


def test_source_outputs_of_a_model_that_stops_early_say_so() -> None:
    toy = ToyModel()
    model = ct.wrap(toy, anatomy=toy_anatomy(toy))
    toy.forward = lambda x: toy.start(x)
    with pytest.raises(ct.InputError) as caught:
        model.source_outputs(torch.ones(1, 3, 2))
    assert str(caught.value) == (
        "The pass did not reach the end of the residual stream; nothing to record."
    )


@pytest.mark.parametrize("seq", [4, 9])
def test_token_edges_need_passes_of_their_length(seq: int) -> None:
    model = ct.wrap(CASES["hooked LN"].build(), seq_len=6)
    before = footprint(model.wrapped_model)
    with pytest.raises(ct.InputError) as caught:
        model.trace(tokens(1, seq=seq), corrupt=tokens(2, seq=seq), edges=["A0.1->Resid End"])
    assert str(caught.value) == (
        f"The model was wrapped with seq_len=6, but this pass has {seq} positions. Wrap the model again "
        f"with seq_len={seq}, or without positions."
    )
    assert footprint(model.wrapped_model) == before


def test_a_loss_or_nothing_may_be_asked_for_instead_of_logits() -> None:
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    expected = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES).logits
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        loss = hooked(CLEAN, return_type="loss")
        assert torch.equal(model.last_trace.logits, expected)
        assert hooked(CLEAN, return_type=None) is None
    assert_close(loss, hooked.loss_fn(expected, CLEAN))
    assert model.last_trace.logits is None


def test_padding_masks_reach_the_model() -> None:
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    padding = torch.ones_like(CLEAN)
    padding[0, :2] = 0
    with torch.no_grad():
        own = hooked(CLEAN, attention_mask=padding)
        with model.patch():
            assert torch.equal(model(CLEAN, attention_mask=padding), own)
    assert (own - hooked(CLEAN)).abs().max() > 1e-2
    assert model.last_trace.reconstruction_error() < 1e-5


def rebuilt() -> ct.PatchableModel:
    """A model wrapped and then folded: `process_weights_` puts other norms in the blocks."""
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    hooked.process_weights_()
    return model


def test_a_patch_that_the_rebuilt_model_does_not_run_is_no_silence() -> None:
    """Rebuilt while the patch is open; before it opens, the model is seen as it then is."""
    hooked = CASES["hooked LN"].build()
    model, hooks = ct.wrap(hooked), n_hooks(hooked)
    patched, other = model.source_outputs(CORRUPT), copy.deepcopy(hooked.blocks[1].ln2)
    with model.patch(patched, edges=["A0.1->MLP 1"]):
        hooked.blocks[1].ln2 = other
        with pytest.raises(ct.InputError) as caught:
            model(CLEAN)
    assert str(caught.value) == (
        "The input of 'MLP 1' was to be patched, but that part of the model did not run. If the pass "
        "stopped early (stop_at_layer), run the whole model; if the model was rebuilt after it was "
        "wrapped (weights folded, modules replaced), wrap it again."
    )
    assert n_hooks(hooked) == hooks
    assert model.trace(CLEAN, patched=patched, edges=["A0.1->MLP 1"]).reconstruction_error() < 1e-5


@pytest.mark.parametrize(
    "edge", ["A0.1->A1.2.Q", "A0.2->A1.0.V", "A0.1->MLP 1", "MLP 0->Resid End"]
)
def test_a_rebuilt_model_is_patched_right(edge: str) -> None:
    model = rebuilt()
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[edge])
    expected = ct.wrap(model.wrapped_model).trace(CLEAN, corrupt=CORRUPT, edges=[edge])
    assert_close(trace.logits, expected.logits, **CLOSE)
    assert (trace.logits - model.trace(CLEAN).logits).abs().max() > 1e-2


def test_shapes_named_by_the_tests_are_the_models(name: str) -> None:
    """The asks above exist in every model they are put to."""
    edges = {f"{src}->{dest}" for _, src, dest in shape_of(name).edges()}
    assert set(EDGES) <= edges


# Ways in which a pass may go on differently than it began


@pytest.mark.parametrize("first", [False, True])
def test_grad_may_be_switched_within_a_pass(first: bool) -> None:
    """As when the lower layers are frozen, or checkpointed."""
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    patched = model.source_outputs(CORRUPT)
    with model.patch(patched, edges=EDGES), torch.no_grad():
        expected = hooked(CLEAN)
    handle = hooked.blocks[0].hook_resid_mid.register_forward_hook(
        lambda *_: torch.set_grad_enabled(not first) and None
    )
    try:
        with model.patch(patched, edges=EDGES), torch.set_grad_enabled(first):
            logits = hooked(CLEAN)
    finally:
        handle.remove()
    torch.testing.assert_close(logits.detach(), expected)
    assert model.last_trace.reconstruction_error() < 1e-5


def test_masks_that_learn_are_read_anew_in_each_pass_of_a_context() -> None:
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    patched = model.source_outputs(CORRUPT)
    mask = torch.tensor(1.0, requires_grad=True)
    by_name = {"A0.1->Resid End": mask, "A0.2->Resid End": 0.5}
    half = {"A0.1->Resid End": 0.0, "A0.2->Resid End": 0.5}
    expected = model.trace(CLEAN, patched=patched, edges=half).logits
    whole = {m.name: torch.ones(m.shape, requires_grad=True) for m in model.graph.modules}
    plain = hooked(CLEAN).detach()
    with model.patch(patched, edges=by_name):
        hooked(CLEAN).sum().backward()
        with torch.no_grad():
            mask.fill_(0)
        logits = hooked(CLEAN)
        logits.sum().backward()  # a second backward pass has a graph of its own
    torch.testing.assert_close(logits.detach(), expected)
    assert model.last_trace.edge("A0.1->Resid End").mask == 0
    with model.patch(patched, masks=whole), model.patch(patched, edges={"A0.0->MLP 1": 0.0}):
        with torch.no_grad():
            for one in whole.values():
                one.fill_(0)
        logits = hooked(CLEAN)
    torch.testing.assert_close(logits.detach(), plain)


def test_a_patch_is_checked_when_it_is_made_and_used_once() -> None:
    model = ct.wrap(CASES["hooked LN"].build())
    patched = model.source_outputs(CORRUPT)
    with pytest.raises(ct.EdgeError):
        model.patch(patched, edges=["nonsense->A0.0.Q"])
    patch = model.patch(patched, edges=EDGES)
    with patch as inside:
        assert inside is model
    with pytest.raises(ct.InputError, match="This patch has been used"), patch:
        pass


def test_padded_prompts_with_their_attention_mask() -> None:
    """As if each prompt ran alone: the padding of the corrupt one must not be attended to either."""
    hooked = CASES["hooked LN"].build()
    model = ct.wrap(hooked)
    n_pad, pad = 2, 0
    padded = [torch.cat([torch.full((2, n_pad), pad), one], dim=1) for one in (CLEAN, CORRUPT)]
    mask = torch.ones_like(padded[0])
    mask[:, :n_pad] = 0
    forward = {"attention_mask": mask}
    trace = model.trace(padded[0], corrupt=padded[1], edges=EDGES, forward=forward)
    outputs = model.source_outputs(padded[1], forward=forward)
    alone = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert trace.logits is not None
    torch.testing.assert_close(trace.logits[:, n_pad:], alone.logits, rtol=1e-4, atol=1e-4)
    expected = alone.patched["A0.1"]
    torch.testing.assert_close(outputs["A0.1"][:, n_pad:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("as_a_user")
def test_wrong_forward_arguments() -> None:
    model = ct.wrap(CASES["hooked LN"].build())
    with pytest.raises(ct.InputError, match="forward must map names"):
        model.trace(CLEAN, forward=[1])
