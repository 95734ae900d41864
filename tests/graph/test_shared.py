"""Globs for one head's inputs where heads share keys and values: what they leave out is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph.shared import shared_inputs
from tests.models import CASES, shared, tokens

GROUPED = next(name for name in ("hooked grouped", "bridge Llama") if name in CASES)
GRAPH = ct.wrap(shared(GROUPED), verify=False).graph
PLAIN = ct.wrap(shared(next(iter(CASES))), verify=False).graph

K3, V3 = "A1.1.K", "A1.1.V"
"""Where head 3 of 4 reads its keys and values when there are two key-value heads."""

MISSED: dict[str, tuple[str, list[str]]] = {
    "MLP 0->A1.3.*": ("A1.3", [K3, V3]),
    "MLP 0->A1.3*": ("A1.3", [K3, V3]),
    "MLP 0 -> a1.h3<*> ": ("A1.3", [K3, V3]),
    "*->A1.3.[QK]": ("A1.3", [K3]),
    "*->A1.[23].?": ("A1.2, A1.3", [K3, V3]),
    "*->A*.3.*": ("A0.3, A1.3", ["A0.1.K", "A0.1.V", K3, V3]),
    "*->A1.1.*": ("A1.1", ["A1.0.K", "A1.0.V"]),  # A1.1.K is what heads 2 and 3 read
}

COMPLETE = [
    "*->*",
    "A0.*->A1.*",
    "*->A*.*",
    "*->A*.*.*",
    "*->A1.*.[KV]",
    "*->*.Q",
    "MLP 0->A1.3.Q*",
    "*->A1.3.Q",
    "A0.*->A1.3.Q",
    "*->A1.0.*",
    "*->MLP *",
]


def message(text: str, heads: str, names: list[str], queries: str) -> str:
    return (
        f"{text!r} leaves out keys and values of {heads}: in this model several heads share them, and "
        f"they are called {', '.join(names)}. Name these too; or, if the queries alone are meant, "
        f"write {queries}."
    )


def warned(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(issubclass(one.category, ct.EdgeWarning) for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("glob", MISSED)
def test_a_glob_that_leaves_out_shared_inputs(glob: str) -> None:
    heads, names = MISSED[glob]
    text = glob.strip().replace(" -> ", "->")
    queries = ", ".join(f"{head}.Q" for head in heads.split(", "))
    assert warned(lambda: GRAPH.numbers(glob)) == [message(text, heads, names, queries)]


@pytest.mark.parametrize("glob", COMPLETE)
def test_a_glob_that_leaves_out_none(glob: str) -> None:
    assert warned(lambda: GRAPH.numbers(glob)) == []


@pytest.mark.parametrize("glob", [*MISSED, *COMPLETE])
def test_where_nothing_is_shared_nothing_is_said(glob: str) -> None:
    assert warned(lambda: PLAIN.numbers(glob)) == []


@pytest.mark.parametrize(
    ("node", "missed"),
    [
        ("A1.3", [K3, V3]),
        ("a1.h3", [K3, V3]),
        ("A1.3.*", [K3, V3]),
        ("A1.1", ["A1.0.K", "A1.0.V"]),
        ("A1.0", []),
        ("A1.*", []),
        ("A1.3.Q", []),
        ("MLP 1", []),
    ],
)
def test_edges_into_a_head(node: str, missed: list[str]) -> None:
    head = node.replace("a1.h3", "A1.3").removesuffix(".*")
    expected = [message(node, head, missed, f"{head}.Q")] if missed else []
    assert warned(lambda: GRAPH.numbers_into(node)) == expected


def test_all_ways_to_ask_say_it() -> None:
    model = ct.wrap(shared(GROUPED))
    clean, corrupt = tokens(1), tokens(2)
    outputs = model.source_outputs(corrupt)
    for call in (
        lambda: model.trace(clean, corrupt=corrupt, edges=["MLP 0->A1.3.*"]),
        lambda: model.trace(clean, corrupt=corrupt, edges={"MLP 0->A1.3.*": 0.5}),
        lambda: model.patch(outputs, edges=[("MLP 0", "A1.3.*")]),
        lambda: model.trace(clean).edges_into("A1.3"),
        lambda: model.trace(clean).table(["MLP 0->A1.3.*"]),
    ):
        (text,) = warned(call)
        assert f"{K3}, {V3}" in text


def test_many_are_counted() -> None:
    (text,) = warned(lambda: GRAPH.numbers("*->A*.[23].*"))
    assert "of A0.2, A0.3, A1.2, A1.3: " in text
    (text,) = warned(lambda: GRAPH.numbers("*->A*.[123].*"))
    assert "of A0.1, A1.1: " in text, "heads 2 and 3 read A0.1.K, which that glob finds"


def test_an_unknown_key_says_where_the_head_reads_it() -> None:
    with pytest.raises(ct.EdgeError) as caught:
        GRAPH.edge("MLP 0->A1.3.K")
    assert str(caught.value) == (
        "Unknown destination 'A1.3.K' in the edge 'MLP 0->A1.3.K'. Several heads of this model share "
        "it: its name is 'A1.1.K'. The destinations run from 'A0.0.Q' to 'Resid End'."
    )


@pytest.mark.parametrize(
    "name", [name for name in ("hooked grouped", "bridge Llama") if name in CASES]
)
def test_a_head_reads_what_it_is_said_to_share(name: str) -> None:
    """Whose attention changes when one key-value head's keys do, by TransformerLens' own hooks."""
    tl_model: Any = shared(name)
    graph = ct.wrap(tl_model, verify=False).graph
    layer, n_heads = 1, tl_model.cfg.n_heads
    said = {
        (dest.head, shared_.slot)
        for dest, shared_, own_name in shared_inputs(graph.modules, graph.dests)
        if dest.layer == layer and own_name.endswith(".K")
    }

    def pattern(of_keys: Callable[..., Any] | None) -> torch.Tensor:
        seen = []
        hooks: list[Any] = [
            (f"blocks.{layer}.attn.hook_pattern", lambda x, hook: seen.append(x.clone()))
        ]
        if of_keys is not None:
            hooks.append((f"blocks.{layer}.attn.hook_k", of_keys))
        with torch.no_grad():
            tl_model.run_with_hooks(tokens(1), fwd_hooks=hooks)
        return seen[0]

    plain, changed = pattern(None), set()
    for kv_head in range(tl_model.cfg.n_key_value_heads):

        def of_keys(keys: torch.Tensor, hook: Any, kv_head: int = kv_head) -> torch.Tensor:
            keys = keys.clone()
            keys[:, :, kv_head, 0] += 3 * torch.arange(keys.shape[1])
            return keys

        now = pattern(of_keys)
        changed |= {
            (head, kv_head)
            for head in range(n_heads)
            if not torch.allclose(now[:, head], plain[:, head], atol=1e-4)
        }
    assert len(changed) == n_heads
    assert said == changed
