"""Ctrl-C between any two lines leaves a model that computes what it did, and nothing else."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import circuit_trace as ct
from circuit_trace.integrations import auto_circuit as ac
from tests.anatomy.toy import ToyModel, anatomy
from tests.footprint import hooks_of
from tests.interrupts import Interrupt, n_lines
from tests.models import CASES, TYPICAL, tokens

X, Y = torch.arange(6.0).view(1, 3, 2), torch.arange(6.0).view(1, 3, 2).flip(1) - 1
EDGES = ["Resid Start->B1.0", "B1.0->Resid End"]


class Toy:
    """A wrapped toy, what it computes without and with a patch, and what is done to it."""

    def __init__(self) -> None:
        self.bare = ToyModel()
        self.model = ct.wrap(self.bare, anatomy=anatomy(self.bare))
        self.patched = self.model.source_outputs(Y)
        self.hooks = hooks_of(self.bare)
        self.plain = self.bare(X).detach()
        self.expected = _by_hand(self.bare)

    def patch(self) -> None:
        with self.model.patch(self.patched, edges=EDGES):
            self.bare(X)

    def nested(self) -> None:
        patch = self.model.patch
        with patch(self.patched, edges=EDGES[:1]), patch(self.patched, edges=EDGES[1:]):
            self.bare(X)

    def outputs_in_a_patch(self) -> None:
        with self.model.patch(self.patched, edges=EDGES):
            self.model.source_outputs(Y)

    def trace(self) -> None:
        self.model.trace(X, corrupt=Y, edges=EDGES)

    def a_pass_that_fails(self) -> None:
        with pytest.raises(ct.InputError), self.model.patch(self.patched, edges=EDGES):
            self.bare(X[:, :2])

    def wrap(self) -> None:
        ct.wrap(self.bare, anatomy=anatomy(self.bare))

    def check_left(self, where: str) -> None:
        """It is as it was."""
        assert torch.equal(self.bare(X), self.plain), where
        assert hooks_of(self.bare) == self.hooks, where
        assert not self.model.has_open_patch, where

    def check_patch(self, where: str) -> None:
        """The next patch is right."""
        with self.model.patch(self.patched, edges=EDGES):
            assert torch.equal(self.bare(X), self.expected), where


def _by_hand(toy: ToyModel) -> Tensor:
    """The toy's arithmetic with the two edges patched."""
    (first, second), end = (layer.factors.detach() for layer in toy.layers), X  # pyright: ignore[reportCallIssue]
    heads = [X * first[head] for head in (0, 1)]
    stream = X + heads[0] + heads[1]
    written = [(stream + (Y - X)) * second[0], stream * second[1]]
    other = (Y + Y * first[0] + Y * first[1]) * second[0]
    end = stream + other + written[1]
    return end


N_SAMPLED = 60

WHAT = ("patch", "nested", "a_pass_that_fails", "outputs_in_a_patch", "trace", "wrap")


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.usefixtures("as_a_user")
def test_ctrl_c_at_any_line(what: str) -> None:
    """Every line of a patch and its pass; of all else as many as a seed chooses."""
    toy = Toy()
    do: Callable[[], None] = getattr(toy, what)
    n = n_lines(do)
    toy.check_left("no interrupt")
    places = range(n) if what == "patch" else random.Random(0).sample(range(n), N_SAMPLED)
    for number, at in enumerate(places):
        interrupt = Interrupt(at)
        assert interrupt.run(do), f"the interrupt was swallowed at {interrupt.where}"
        toy.check_left(interrupt.where)
        if number % 10 == 0:
            toy.check_patch(interrupt.where)


def test_a_patch_whose_exit_never_began_closes_with_what_held_it() -> None:
    """Ctrl-C before the first line of `__exit__`, which nothing in it can catch."""
    toy = Toy()
    context = toy.model.patch(toy.patched, edges=EDGES[:1])
    with toy.model.patch(toy.patched, edges=EDGES[1:]):
        alone = toy.bare(X).detach()
        context.__enter__()
        both = toy.bare(X).detach()
        del context
        gc.collect()
        assert torch.equal(toy.bare(X), alone), "the outer one goes on by itself"
    assert torch.equal(both, toy.expected)
    toy.check_left("abandoned")
    toy.check_patch("abandoned")


SCORES: dict[str, Callable[..., object]] = {
    "eap": lambda m, pair: ct.score_edges(m, pair, "kl", method="eap-ig", steps=1, bar=False),
    "mask-gradient": lambda m, pair: ct.score_edges(
        m, pair, "loss", method="mask-gradient", bar=False
    ),
    "exact": lambda m, pair: ct.exact_scores(m, pair, "kl", edges="*->Resid End", bar=False),
    "acdc": lambda m, pair: ct.acdc(m, pair, "kl", threshold=100.0, bar=False),
    "drop-in": lambda m, pair: _drop_in(m, pair),
}


def _drop_in(model: ct.PatchableModel, pair: tuple[Tensor, Tensor]) -> None:
    """A patch of auto-circuit's form, whose masks change between passes."""
    ours = ac.patchable_model(model.wrapped_model, True, separate_qkv=True)
    with torch.no_grad(), ac.patch_mode(ours, ac.src_ablations(ours, pair[1])):
        ours(pair[0])
        ac.set_all_masks(ours, 1.0)
        ours(pair[0])


@pytest.mark.parametrize("what", SCORES)
@pytest.mark.usefixtures("as_a_user")
def test_ctrl_c_while_scoring(what: str) -> None:
    """At ten lines of each that a seed chooses, and at the first and the last five."""
    bare: Any = CASES[TYPICAL[0]].build()
    pair = tokens(1), tokens(2)
    with torch.no_grad():
        plain = bare(pair[0])
    model = ct.wrap(bare)
    expected = model.trace(pair[0], corrupt=pair[1], edges=["A0.1->A1.2.Q"]).logits
    hooks = hooks_of(bare)
    n = n_lines(lambda: SCORES[what](model, pair))
    places = [*random.Random(0).sample(range(n), 10), *range(5), *range(n - 5, n)]
    for at in places:
        interrupt = Interrupt(at)
        assert interrupt.run(lambda: SCORES[what](model, pair)), interrupt.where
        assert hooks_of(bare) == hooks, interrupt.where
        assert not model.has_open_patch, interrupt.where
        with torch.no_grad():
            assert torch.equal(bare(pair[0]), plain), interrupt.where
    again = model.trace(pair[0], corrupt=pair[1], edges=["A0.1->A1.2.Q"]).logits
    assert torch.equal(again, expected)
