"""Mermaid: what is written is read back, with hand-made lines of the same kinds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from circuit_trace.integrations.mermaid import read_mermaid, write_mermaid
from tests.anatomy.toy import ToyModel, anatomy
from tests.integrations.circuits import (
    AT_2,
    ATTENTION,
    GROUPED,
    PARALLEL,
    PLAIN,
    UNSPLIT,
    assert_same,
    edge_scores,
    read,
    refused,
    scores_for,
    write,
)

GRAPHS = {
    "plain": PLAIN,
    "positions": AT_2,
    "grouped": GROUPED,
    "parallel": PARALLEL,
    "attention only": ATTENTION,
    "unsplit": UNSPLIT,
}
graphs = pytest.mark.parametrize("kind", GRAPHS)


@graphs
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_round_trip(kind: str, dtype: torch.dtype, share: float, tmp_path: Path) -> None:
    graph = GRAPHS[kind]
    scores = {n: s.clamp(-9, 9).to(dtype) for n, s in scores_for(graph, share=share).items()}
    file = write(scores, tmp_path / "c.mmd")
    for model in (None, graph):
        assert_same(read(file, model), scores)
    assert_same(read(file, in_graph=True), {n: (s != 0).float() for n, s in scores.items()})


def test_what_is_written() -> None:
    scores = scores_for(AT_2, share=0.0)
    scores["blocks.1.hook_q_input"][1, 2, 4] = 0.1
    scores["blocks.1.hook_resid_post"][0, 7] = -2
    assert write_mermaid(scores, AT_2).decode() == (
        "flowchart LR\n"
        "  %% circuit_trace n_layers=2 n_heads=3 n_kv_heads=3 attn_only=False parallel=False "
        "separate_qkv=True seq_len=2 dtype=float32\n"
        '  n0["MLP 0"]\n'
        '  n1["A1.2.Q"]\n'
        '  n2["A1.2"]\n'
        '  n3["Resid End"]\n'
        '  n2 -->|"-2.0 @0"| n3\n'
        '  n0 -->|"0.1 @1"| n1\n'
        "  n1 -.-> n2\n"
    )


HAND = """
graph TD
    a["A0.1"]
    b["MLP #quot;1#quot;"]
    c["Resid End"]
    %% a remark
    a -->|0.25| c
    classDef mlp fill:#f96
    linkStyle 0 stroke:red
"""


def test_a_flowchart_of_another_hand() -> None:
    found = edge_scores(PLAIN, read_mermaid(HAND, PLAIN))
    assert {ends[:2]: score for ends, score in found.items() if score} == {
        ("A0.1", "Resid End"): 0.25
    }
    with pytest.raises(ct.FormatError, match="does not say what model it is for"):
        read_mermaid(HAND, None)
    with pytest.raises(ct.FormatError, match=re.escape("""'MLP "1"' is not a source""")):
        read_mermaid(HAND + 'b -->|"1"| c', PLAIN)


def test_a_model_that_is_no_transformer() -> None:
    model = ct.wrap(ToyModel(), anatomy=anatomy(ToyModel()), verify=False, seq_len=3)
    scores = scores_for(model.graph)
    assert_same(read_mermaid(write_mermaid(scores, model.graph).decode(), model.graph), scores)


NODES = 'flowchart LR\n  a["MLP 0"]\n  b["MLP 1"]\n'
BAD: dict[str, tuple[str, str]] = {
    "another line": (
        NODES + "a ==> b",
        r"cannot be read at line 4: 'a ==> b'\. Expected lines such as",
    ),
    "no such node": (NODES + 'a -->|"1"| c', r"has no line for the node 'c'"),
    "no score": (NODES + "a --> b", r"has no score\. in_graph=True"),
    "score as text": (NODES + 'a -->|"x"| b', r"'x': expected a finite number"),
    "not finite": (NODES + 'a -->|"nan"| b', r"is nan: expected a finite number"),
    "backwards": (NODES + 'b -->|"1"| a', r"no edge from 'MLP 1' to 'MLP 0'"),
    "a position": (NODES + 'a -->|"1 @0"| b', r"has the position 0: expected none"),
    "a long position": (NODES + f'a -->|"1 @{"9" * 5000}"| b', r"cannot be read at line 4"),
    "twice": (NODES + 'a -->|"1"| b\n' * 2, r"is listed twice"),
    "a billion heads": (
        f"flowchart LR\n%% circuit_trace n_layers=2 n_heads={10**8} n_kv_heads=1\n",
        r"n_heads must be a whole number",
    ),
    "a long number": (
        f"flowchart LR\n%% circuit_trace n_layers=2 n_heads={'9' * 5000} n_kv_heads=1\n",
        r"n_heads must be a whole number",
    ),
    "half the facts": (
        "flowchart LR\n%% circuit_trace n_layers=2\n",
        r"n_heads must be .* got None",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    text, message = BAD[kind]
    (tmp_path / "c.mmd").write_text(text)
    with pytest.raises(ct.FormatError, match=message):
        ct.load_scores(tmp_path / "c.mmd", PLAIN)


def test_edges_without_scores_are_a_circuit() -> None:
    found = edge_scores(PLAIN, read_mermaid(NODES + "a --> b", PLAIN, in_graph=True))
    assert [ends[:2] for ends, score in found.items() if score == 1] == [("MLP 0", "MLP 1")]


def test_another_model(tmp_path: Path) -> None:
    file = write(scores_for(PLAIN), tmp_path / "c.mermaid")
    assert "This Mermaid file is for a model of 2 layers of 3 heads" in refused(file, GROUPED)
