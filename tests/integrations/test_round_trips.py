"""Every format over random transformers: what comes back is what was written, or nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import circuit_trace as ct
from circuit_trace.graph import Shape
from tests.integrations.circuits import assert_same, circuit_for, read, scores_for, write
from tests.integrations.test_files import KINDS
from tests.shapes import shapes


def anything(shape: Shape, seq_len: int | None) -> bool:
    return True


def split_alone(shape: Shape, seq_len: int | None) -> bool:
    return seq_len is None and shape.separate_qkv


HOLDS: dict[str, Callable[[Shape, int | None], bool]] = {
    "prune_scores": anything,
    "pickle": anything,
    "graphml": anything,
    "dot": anything,
    "mermaid": anything,
    "eap_ig json": lambda shape, seq: split_alone(shape, seq) and not shape.attn_only,
    "eap_ig pt": lambda shape, seq: split_alone(shape, seq) and not shape.attn_only,
    "acdc": lambda shape, seq: split_alone(shape, seq) and not shape.parallel
    and shape.n_heads == shape.n_kv_heads,
    "edge_pruning": split_alone,
}  # fmt: skip
"""Which transformers a format has words for."""


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=shapes(), seq_len=st.sampled_from([None, 1, 3]), seed=st.integers(0, 2**32 - 1))
def test_round_trip(
    kind: str, shape: Shape, seq_len: int | None, seed: int, tmp_path: Path
) -> None:
    name, asked, is_circuit = KINDS[kind]
    graph = shape.graph(seq_len)
    scores = (circuit_for if is_circuit else scores_for)(graph, seed=seed)
    file = tmp_path / name
    file.unlink(missing_ok=True)
    groups = {"groups": "sum"} if kind.startswith("eap_ig") else {}
    if HOLDS[kind](shape, seq_len):
        write(scores, file, graph, format=asked, **groups)
        assert_same(read(file, graph, **groups), scores)
    else:
        with pytest.raises(ct.FormatError):
            write(scores, file, graph, format=asked, **groups)
        assert not file.exists()


def test_every_format_is_tried() -> None:
    assert set(HOLDS) == set(KINDS)
