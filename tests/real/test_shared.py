"""Nine query heads on three key-value heads: a glob for one head's inputs says what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import circuit_trace as ct
from tests.real.tasks import FACT

LAYER = 23
GLOBS = ("MLP 0->A23.5.*", "MLP 0->A23.[35].?", "MLP 0->a23.h5<*>")


@pytest.fixture(scope="module")
def readers(bridge: Any) -> list[set[int]]:
    """For each key-value head of a layer the heads whose attention changes when its keys do, by
    TransformerLens' own hooks."""
    seen: list[torch.Tensor] = []
    looks: Any = (
        f"blocks.{LAYER}.attn.hook_pattern",
        lambda pattern, hook: seen.append(pattern[0].clone()),
    )

    def run(*hooks: Any) -> torch.Tensor:
        with torch.no_grad():
            bridge.run_with_hooks(bridge.to_tokens(FACT.clean), fwd_hooks=[*hooks, looks])
        return seen.pop()

    def without_keys(kv_head: int) -> Any:
        def change(keys: torch.Tensor, hook: Any) -> torch.Tensor:
            keys = keys.clone()
            keys[:, :, kv_head] = keys[:, :, kv_head].flip(1)
            return keys

        return f"blocks.{LAYER}.attn.hook_k", change

    plain = run()
    gaps = [(run(without_keys(kv)) - plain).abs().amax((1, 2)) for kv in range(3)]
    return [{head for head, gap in enumerate(by_head) if gap > 1e-3} for by_head in gaps]


def test_heads_of_a_group_follow_one_another(readers: list[set[int]]) -> None:
    assert readers == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


@pytest.mark.parametrize("glob", GLOBS)
def test_a_glob_names_what_the_head_reads(
    model: ct.PatchableModel, readers: list[set[int]], glob: str
) -> None:
    (kv_head,) = (kv for kv, heads in enumerate(readers) if 5 in heads)
    keys, values = (
        next(dest.name for dest in model.graph.module_by_name[module].dests if dest.slot == kv_head)
        for module in (f"blocks.{LAYER}.hook_k_input", f"blocks.{LAYER}.hook_v_input")
    )
    with pytest.warns(ct.EdgeWarning, match=f"A23.5: in .* are called {keys}, {values}\\."):
        found = model.graph.numbers(glob)
    assert {model.graph.edge_at(one).dest.name for one in found} <= {"A23.3.Q", "A23.5.Q"}
    with pytest.warns(ct.EdgeWarning, match=f"'A23.5' leaves out .* called {keys}, {values}\\."):
        model.graph.numbers_into("A23.5")


@pytest.mark.filterwarnings("error")
def test_globs_for_all_heads_leave_out_none(model: ct.PatchableModel) -> None:
    for glob in ("*->*", "A22.*->A23.*", "*->A*.*.[KV]", "MLP 0->A23.5.Q"):
        assert len(model.graph.numbers(glob)) > 0
