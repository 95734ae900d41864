"""Scores by TransformerLens' own `attribution_patch`, which it has from version 4.3 on.

Its score estimates the change when an edge is patched from the corrupt run to the clean one, by the
gradient of the corrupt run: what we score when the two change places. Its embedding has no positions,
which makes no difference, since both prompts have the same ones.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests.models import CASES, tokens, wrapped

VERSION = tuple(int(part) for part in version("transformer-lens").split(".")[:2])
if VERSION < (4, 3):
    pytest.skip("scores of edges came with TransformerLens 4.3", allow_module_level=True)

from transformer_lens.tools.analysis import attribution_patching as attribution  # noqa: E402

SEQ, BATCH = 5, 3
CLEAN, CORRUPT = tokens(1, batch=BATCH, seq=SEQ), tokens(2, batch=BATCH, seq=SEQ)
LETTERS = {"q_input": "Q", "k_input": "K", "v_input": "V"}


def metric(logits: Tensor, batch: Any = None) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def name_of(node: Any) -> str:
    """Our name of one of its nodes."""
    if node.kind in LETTERS:
        return f"A{node.layer}.{node.head}.{LETTERS[node.kind]}"
    if node.kind == "attn_head_out":
        return f"A{node.layer}.{node.head}"
    return {"embed": "Resid Start", "logits": "Resid End"}.get(node.kind, f"MLP {node.layer}")


@pytest.mark.parametrize("name", [n for n in ("bridge GPT-2", "bridge native") if n in CASES])
def test_the_same_scores_of_every_edge(name: str) -> None:
    model = wrapped(name, SEQ)
    config = attribution.EdgeAttributionConfig(granularity="edge")
    theirs = attribution.attribution_patch(
        model.wrapped_model.eval(), CLEAN, CORRUPT, lambda logits: metric(logits).sum(), config
    ).edge_scores
    scores = ct.score_edges(model, (CORRUPT, CLEAN), metric)
    expected = {
        (source.position, f"{name_of(source)}->{name_of(dest)}"): score
        for (source, dest), score in theirs.items()
    }
    assert expected.keys() == {(edge.seq_idx, edge.name) for edge in model.edges}
    found = []
    for seq_idx, name_ in expected:
        edge = model.edge(name_, seq_idx)
        row = scores[edge.dest.module_name][seq_idx]
        found.append(row[edge.dest.slot, edge.src.idx] if row.ndim == 2 else row[edge.src.idx])
    values = torch.tensor(list(expected.values()))
    assert_close(torch.stack(found), values, rtol=1e-4, atol=1e-4)
    assert values.abs().max() > 1e-2
