"""Random small transformers, as hypothesis draws them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from circuit_trace.graph import Graph, Shape

WIRINGS: tuple[dict[str, Any], ...] = (
    {},
    {"attn_only": True},
    {"parallel": True},
    {"separate_qkv": False},
    {"attn_only": True, "separate_qkv": False},
    {"parallel": True, "separate_qkv": False},
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """One to three layers of one to four heads, wired in any way, sharing keys and values or not."""
    wiring = draw(st.sampled_from(WIRINGS))
    n_heads = draw(st.integers(1, 4))
    n_kv_heads = n_heads
    if wiring.get("separate_qkv", True):
        n_kv_heads = draw(st.sampled_from([n for n in range(1, n_heads + 1) if n_heads % n == 0]))
    return Shape(draw(st.integers(1, 3)), n_heads, n_kv_heads, **wiring)


def graphs(most_edges: int = 400) -> st.SearchStrategy[Graph]:
    """Their graphs, without positions or at one to three of them."""
    made = st.builds(Shape.graph, shapes(), st.sampled_from([None, 1, 2, 3]))
    return made.filter(lambda graph: graph.n_edges <= most_edges)
