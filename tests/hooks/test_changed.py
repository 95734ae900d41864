"""A model that is changed after it was wrapped is traced as it then is, or refused in words.

Every change meets every way in. What is not refused must agree with plain TransformerLens hooks on a
twin that was changed in the same way, and with a wrapper made after the change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests import changes
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.changes import Do
from tests.footprint import n_hooks
from tests.models import CASES, TWO, shape_of, tokens
from tests.oracle import Ask, Oracle
from tests.score.naive import attribution

SEQ = 5
CLEAN, CORRUPT = tokens(1, seq=SEQ), tokens(2, seq=SEQ)
DATA = (CLEAN, CORRUPT)
CLOSE = {"rtol": 1e-3, "atol": 2e-4}

ASKS = [
    Ask("A0.1", "A1.2.Q", None, 1.0),
    Ask("Resid Start", "A1.1.K", None, 0.5),
    Ask("MLP 0", "A1.1.V", None, 1.0),
    Ask("A0.3", "MLP 1", None, -0.5),
    Ask("A1.2", "Resid End", None, 1.0),
]
EDGES = {ask.name: ask.mask for ask in ASKS}


def metric(logits: Tensor, batch: Any = None) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


# --- ways in: each gives tensors ------------------------------------------------------------------


def outputs(model: ct.PatchableModel) -> Tensor:
    return model.source_outputs(CORRUPT).stack()


def record(model: ct.PatchableModel) -> Tensor:
    return model.trace(CLEAN).logits


def trace(model: ct.PatchableModel) -> Tensor:
    found = model.trace(CLEAN, corrupt=CORRUPT, edges=EDGES)
    assert found.reconstruction_error() < 1e-5
    return found.logits


def patch(model: ct.PatchableModel) -> Tensor:
    with torch.no_grad(), model.patch(model.source_outputs(CORRUPT), edges=EDGES):
        return model(CLEAN)


def values(scores: ct.PruneScores) -> Tensor:
    return torch.cat([score.detach().flatten() for score in scores.values()])


def by_method(method: str, **options: Any) -> Callable[[ct.PatchableModel], Tensor]:
    return lambda model: values(
        ct.score_edges(model, DATA, metric, method=method, bar=False, **options)
    )


def exact(model: ct.PatchableModel) -> Tensor:
    return values(ct.exact_scores(model, DATA, metric, edges=list(EDGES), bar=False))


def acdc(model: ct.PatchableModel) -> Tensor:
    found = ct.acdc(model, DATA, threshold=1e-5, bar=False)  # nearly all edges stay: few passes
    return torch.tensor([found.metric, found.clean])


def faithfulness(model: ct.PatchableModel) -> Tensor:
    scores = {module.name: torch.ones(module.shape) for module in model.graph.modules}
    sizes = (0, 0.5, 1)
    found = ct.faithfulness(model, DATA, scores, metric, sizes=sizes, prune=False, bar=False)
    return torch.as_tensor(found.values)


WAYS: dict[str, Callable[[ct.PatchableModel], Tensor]] = {
    "outputs": outputs,
    "record": record,
    "trace": trace,
    "patch": patch,
    "eap": by_method("eap"),
    "eap-ig": by_method("eap-ig", steps=2),
    "eap-ig-activations": by_method("eap-ig-activations", steps=1),
    "mask-gradient": by_method("mask-gradient"),
    "exact": exact,
    "faithfulness": faithfulness,
}
HEADS = tuple(way for way in WAYS if way not in ("outputs", "record"))
"""Those that patch or score what heads read."""
ALL = tuple(WAYS)


# --- the changes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A change of some kinds of model, and the ways in that are refused then; with `may_refuse` the
    others may be refused too. A change `of_form` leaves the model's function as it was."""

    do: Do
    models: tuple[str, ...]
    refused: tuple[str, ...] = ()
    may_refuse: bool = False
    of_form: bool = False
    prepare: Callable[[Any], Any] = lambda model: model


HOOKED, BRIDGES = ("hooked LN",), ("bridge GPT-2", "bridge Llama")
CHANGES: dict[str, Change] = {
    "weights scaled in place": Change(changes.scaled_in_place, (*HOOKED, *BRIDGES)),
    "weights rounded": Change(changes.in_half_precision, (*HOOKED, "bridge Llama")),
    "an adapter on queries": Change(changes.adapter("attn.q"), BRIDGES),
    "an adapter on keys": Change(changes.adapter("attn.k"), BRIDGES),
    "an adapter on values": Change(changes.adapter("attn.v"), BRIDGES),
    "an adapter on outputs": Change(changes.adapter("attn.o"), BRIDGES[1:]),
    "an adapter on the MLP": Change(changes.adapter("mlp.out"), BRIDGES[1:]),
    "an adapter that learns": Change(
        changes.trained("attn.v"), BRIDGES, prepare=changes.with_adapters
    ),
    "quantised values": Change(changes.quantised("attn.v"), BRIDGES, of_form=True),
    "quantised outputs": Change(changes.quantised("attn.o"), BRIDGES[1:], of_form=True),
    "processed weights": Change(changes.processed, HOOKED),
    "compatibility mode": Change(changes.compatible, BRIDGES),
    "ungrouped keys": Change(changes.ungrouped, ("hooked grouped",), HEADS, of_form=True),
    "a module spliced into the stream": Change(
        changes.spliced("", "hook_resid_pre"), HOOKED, may_refuse=True
    ),
    "a module spliced into z": Change(changes.spliced("attn", "hook_z"), HOOKED, may_refuse=True),
    "a module spliced behind the MLP": Change(
        changes.spliced("", "hook_mlp_out"), HOOKED, may_refuse=True
    ),
    "an equal attention": Change(changes.attention_copied, HOOKED, of_form=True),
    "no weights": Change(changes.on_meta, (*HOOKED, *BRIDGES), ALL),
}
PAIRS = [
    (what, name) for what, change in CHANGES.items() for name in change.models if name in CASES
]
each = pytest.mark.parametrize(("what", "name"), PAIRS)


def fresh(what: str, name: str) -> Any:
    model = CHANGES[what].prepare(CASES[name].build())
    with torch.no_grad():
        model(CLEAN)  # bridges put hooks of their own on in a first pass
    return model


def changed_twin(what: str, name: str) -> Any:
    twin = CHANGES[what].prepare(CASES[name].twin())
    if not CHANGES[what].of_form:
        CHANGES[what].do(twin)
    return twin


TELLS = ("wrap it again", "wrap the model again", "Move it to another")
"""What a refusal tells to do."""


def given_or_refused(run: Callable[..., Tensor], model: ct.PatchableModel) -> Tensor | str:
    """What comes of it: numbers, or one of our refusals."""
    try:
        return run(model)
    except ct.CircuitTraceError as error:
        return str(error)


@cache
def before(name: str) -> dict[str, Tensor]:
    """What each way in gives on a model that nobody has changed."""
    model = ct.wrap(CASES[name].build())
    return {way: run(model) for way, run in WAYS.items()}


@each
def test_what_is_not_refused_is_right(what: str, name: str) -> None:
    change, hooked = CHANGES[what], fresh(what, name)
    model, hooks = ct.wrap(hooked), n_hooks(hooked)
    change.do(hooked)
    found: dict[str, Tensor] = {}
    for way, run in WAYS.items():
        given = given_or_refused(run, model)
        assert n_hooks(hooked) == hooks
        if isinstance(given, Tensor):
            assert way not in change.refused, way
            found[way] = given
        else:
            assert way in change.refused or change.may_refuse, f"{way}: {given}"
            assert any(one in given for one in TELLS), f"{way}: {given}"
    if not found:
        return
    # The oracle's flags pass an adapter by: its weights are added up for it.
    expected_of = unpatched_by_hand(changes.merged(changed_twin(what, name)))
    if "trace" in found and "spliced" not in what:  # what was spliced in has no hook point's name
        second = Oracle(changes.merged(changed_twin(what, name)), shape_of(name))
        expected_of |= patched_by_hand(second)
    for way, expected in expected_of.items():
        assert_close(found[way], expected, **CLOSE, msg=lambda text, way=way: f"{way}: {text}")
    if not change.refused:
        anew = ct.wrap(hooked)
        for way, run in WAYS.items():
            assert_close(found[way], run(anew), **CLOSE)


def unpatched_by_hand(twin: Any) -> dict[str, Tensor]:
    """What needs no patch, from what plain passes show: `z W_O` of each head, and the MLPs' outputs."""
    passed: dict[str, Tensor] = {}
    for name, module in twin.named_modules():
        if isinstance(module, changes.Splice):  # it stands where a hook point was
            module.register_forward_hook(
                lambda _m, _i, out, name=name: passed.update({name: out.detach()})  # pyright: ignore[reportAttributeAccessIssue]
            )
    with torch.no_grad():
        clean, (_, cache) = twin(CLEAN), twin.run_with_cache(CORRUPT)
        cache = {**cache, **passed}
        wrote = [cache["blocks.0.hook_resid_pre"]]
        for layer, block in enumerate(twin.blocks):
            z = cache[f"blocks.{layer}.attn.hook_z"]
            wrote += torch.einsum("bshw,hwd->hbsd", z, block.attn.W_O)
            wrote.append(cache[f"blocks.{layer}.hook_mlp_out"])
    return {"outputs": torch.stack(wrote), "record": clean}


def patched_by_hand(second: Oracle) -> dict[str, Tensor]:
    """Patches and scores by TransformerLens' own flags and hooks."""
    corrupt = second.run(CORRUPT).wrote
    patched, clean = second.run(CLEAN, corrupt, ASKS).logits, second.run(CLEAN).logits
    effects = []
    for ask in ASKS:
        alone = second.run(CLEAN, corrupt, [ask._replace(mask=1.0)]).logits
        effects.append(ask._replace(mask=float(metric(alone - clean).mean())))
    scores = attribution(second, CLEAN, corrupt, lambda logits: metric(logits).sum())
    return {
        "trace": patched,
        "patch": patched,
        "eap": values(scores),
        "exact": values(second.shape.prune_scores(effects)),
    }


@each
def test_taking_it_back_works_again(what: str, name: str) -> None:
    change, hooked = CHANGES[what], fresh(what, name)
    model = ct.wrap(hooked)
    undo = change.do(hooked)
    if undo is None:
        pytest.skip("there is no way back")
    for way in ("outputs", "trace", "eap"):
        given_or_refused(WAYS[way], model)
    undo()
    for way, run in WAYS.items():
        assert_close(run(model), before(name)[way], **CLOSE)


@pytest.mark.parametrize("name", [name for name in BRIDGES[1:] if name in CASES])
def test_acdc_of_a_changed_model(name: str) -> None:
    hooked = CASES[name].build()
    model = ct.wrap(hooked)
    changes.scaled_in_place(hooked)
    assert_close(acdc(model), acdc(ct.wrap(hooked)), **CLOSE)
    changes.bent("attn.v")(hooked)
    with pytest.raises(ct.AnatomyError, match=r"differs by .* from what its weights give"):
        acdc(model)


@pytest.mark.parametrize("name", [name for name in BRIDGES if name in CASES])
def test_a_refusal_says_which_head_and_by_how_much(name: str) -> None:
    hooked = CASES[name].build()
    model = ct.wrap(hooked)
    changes.bent("attn.v")(hooked)
    patched = model.source_outputs(CORRUPT)
    with pytest.raises(ct.AnatomyError) as caught:
        model.trace(CLEAN, patched=patched, edges=["MLP 0->A1.1.V"])
    said = re.fullmatch(
        r"In this pass what A1\.1\.V computes from the residual stream differs by (\S+) \(relative to "
        r"its size; allowed for torch\.float32: 0\.0001\) from what its weights give: the model was "
        r"changed after it was wrapped .* Take the change back, or wrap the model again\.",
        str(caught.value),
    )
    assert said is not None, str(caught.value)
    assert float(said[1]) > 0.01
    trace = model.trace(CLEAN, patched=patched, edges=["MLP 0->A1.1.Q", "A0.1->MLP 1"])
    assert trace.reconstruction_error() < 1e-5, "what the adapter does not touch is traced"


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("place", ["blocks.1.ln1.hook_normalized", "blocks.1.attn.hook_q_input"])
def test_a_hook_between_the_stream_and_a_patched_head_is_refused(name: str, place: str) -> None:
    """A patched query is computed from the stream, so such a hook would not reach it."""
    hooked = CASES[name].build()
    if place.endswith("input"):
        hooked.set_use_split_qkv_input(True)
        place = place if place in hooked.hook_dict else "blocks.1.hook_q_input"
    model = ct.wrap(hooked)
    hook = (place, lambda tensor, hook: tensor.flip(-1))
    patched = model.source_outputs(CORRUPT)
    with hooked.hooks(fwd_hooks=[hook]):
        with pytest.raises(ct.AnatomyError, match=r"what A1\.2\.Q computes .* or a hook changes"):
            model.trace(CLEAN, patched=patched, edges=["A0.1->A1.2.Q"])
        with pytest.raises(ct.AnatomyError, match=r"what A1\.0\.Q … A1\.3\.Q computes"):
            ct.score_edges(model, DATA, metric)
        elsewhere = model.trace(CLEAN, patched=patched, edges=["A0.1->MLP 1"])
    assert elsewhere.reconstruction_error() < 1e-5
    assert model.trace(CLEAN, patched=patched, edges=["A0.1->A1.2.Q"]).logits is not None


@pytest.mark.parametrize("name", TWO)
def test_modules_replaced_while_a_patch_is_open(name: str) -> None:
    hooked = CASES[name].build()
    model = ct.wrap(hooked)
    patched = model.source_outputs(CORRUPT)
    block = hooked.blocks[1]
    before, other, hooks = block.ln2, copy.deepcopy(block.ln2), n_hooks(hooked)
    with model.patch(patched, edges=["A0.1->MLP 1"]):
        changes.put(block, "ln2", other)
        with pytest.raises(ct.InputError, match="that part of the model did not run"):
            model(CLEAN)
        with pytest.raises(ct.InputError, match="while a patch is open"):
            model.source_outputs(CORRUPT)
        changes.put(block, "ln2", before)
        model(CLEAN)
    assert n_hooks(hooked) == hooks
    assert torch.equal(model.last_trace.tokens, CLEAN)


def test_an_anatomy_of_ones_own_is_not_made_again() -> None:
    toy = ToyModel()
    model = ct.wrap(toy, anatomy=toy_anatomy(toy))
    inputs = torch.ones(1, 3, 2)
    model.trace(inputs)
    name, before = next((n, m) for n, m in toy.named_children() if n != "start")
    setattr(toy, name, copy.deepcopy(before))
    with pytest.raises(ct.AnatomyError, match="with an anatomy of your own"):
        model.trace(inputs)
    setattr(toy, name, before)
    model.trace(inputs)


def test_a_model_with_other_heads_has_other_edges() -> None:
    """Grouped heads instead: the layers were replaced by those of another model."""
    names = [name for name in ("hooked LN", "hooked grouped") if name in CASES]
    if len(names) < 2:
        pytest.skip("needs HookedTransformer")
    hooked, other = (CASES[name].build() for name in names)
    model = ct.wrap(hooked)
    hooked.blocks, hooked.cfg = other.blocks, other.cfg
    hooked.setup()
    with pytest.raises(ct.AnatomyError, match="it has other nodes now"):
        model.trace(CLEAN)


def test_unverified_models_are_not_compared() -> None:
    """`verify=False` is the user's word that the anatomy fits."""
    name = TWO[-1]
    model = ct.wrap(CASES[name].build(), verify=False)
    hook = ("blocks.1.ln1.hook_normalized", lambda tensor, hook: tensor * 1.5)
    with model.wrapped_model.hooks(fwd_hooks=[hook]):  # pyright: ignore[reportCallIssue]
        assert model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"]).logits is not None
