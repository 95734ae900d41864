"""Mermaid and DOT text, read back line by line: nothing missing, nothing that a label could break."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import circuit_trace as ct
from tests.visualize.pictures import NASTY, SEQ, known_trace, random_scores, scores, wrapped

EDGES = {"Resid Start->A0.1.V": 1.0, "A0.1->A1.2.Q": -0.5, "A1.2->Resid End": 0.25}
MERMAID_NODE = re.compile(r'\s+(p\d+n\d+)\["([^"]*)"\]:::(embed|attention|mlp|output)')
MERMAID_EDGE = re.compile(r'\s+(p\d+n\d+) -->(?:\|"([^"]*)"\|)? (p\d+n\d+)')
QUOTED = r'"((?:[^"\\]|\\.)*)"'
DOT_NODE = re.compile(rf"\s+\"(p\d+n\d+)\" \[label={QUOTED}, fillcolor=\"#\w{{6}}\"\];")
DOT_EDGE = re.compile(
    rf"\s+\"(p\d+n\d+)\" -> \"(p\d+n\d+)\" \[label={QUOTED}, penwidth=([\d.]+), color=\"#\w{{6}}\"\];"
)


def text_of(tmp_path: Path, suffix: str, *args: object, **options: object) -> str:
    path = tmp_path / f"circuit{suffix}"
    ct.draw_seq_graph(*args, file_path=path, **options)
    return path.read_text(encoding="utf-8")


def links_of(text: str, suffix: str) -> set[tuple[str, str, str]]:
    """Source, destination node and label of every edge in the text."""
    lines = text.splitlines()
    node, edge = (MERMAID_NODE, MERMAID_EDGE) if suffix == ".mmd" else (DOT_NODE, DOT_EDGE)
    names = {found[1]: found[2] for line in lines if (found := node.fullmatch(line))}
    found_edges = [found for line in lines if (found := edge.fullmatch(line))]
    ends = [(e[1], e[3], e[2]) if suffix == ".mmd" else (e[1], e[2], e[3]) for e in found_edges]
    return {(names[source], names[target], said or "") for source, target, said in ends}


@pytest.mark.parametrize("suffix", [".mmd", ".dot", ".MMD"])
def test_every_edge_is_there(suffix: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, suffix, wrapped(), scores(EDGES))
    assert links_of(text, suffix.lower()) == {
        ("Resid Start", "A0.1", "V 1.00"), ("A0.1", "A1.2", "Q -0.50"), ("A1.2", "Resid End", "0.25")
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".mmd", ".dot"])
@pytest.mark.parametrize("orientation", ["h", "v"])
def test_positions_are_groups(suffix: str, orientation: str, tmp_path: Path) -> None:
    values = random_scores(30, seed=4, positions=(1, 3), seq_len=SEQ)
    text = text_of(tmp_path, suffix, wrapped(SEQ), values, orientation=orientation)
    assert len(re.findall(r"^\s+subgraph ", text, flags=re.MULTILINE)) == 2
    assert all(f'position {at}"' in text for at in (1, 3))
    assert len(links_of(text, suffix)) > 20
    direction = {"h": ("flowchart LR", "rankdir=LR"), "v": ("flowchart TD", "rankdir=TB")}
    assert direction[orientation][suffix == ".dot"] in text


def test_widths_and_colours_follow_the_figure(tmp_path: Path) -> None:
    text = text_of(tmp_path, ".mmd", wrapped(), scores(EDGES))
    styles = re.findall(r"linkStyle (\d+) stroke:(#\w{6}),stroke-width:([\d.]+)px", text)
    assert [(int(at), color) for at, color, _ in styles] == [
        (0, "#005AC8"), (1, "#CC1E1E"), (2, "#005AC8")
    ]  # fmt: skip
    widths = [float(width) for *_, width in styles]
    assert widths == [5, 2.5, 1.25]
    dot = text_of(tmp_path, ".dot", wrapped(), scores(EDGES))
    assert [
        float(found[4]) for line in dot.splitlines() if (found := DOT_EDGE.fullmatch(line))
    ] == widths


@pytest.mark.parametrize("suffix", [".mmd", ".dot"])
def test_nasty_tokens_break_nothing(suffix: str, tmp_path: Path) -> None:
    for batch in range(0, len(NASTY), SEQ):
        labels = ([*NASTY] * 2)[batch : batch + SEQ]
        trace = known_trace({(at, "A0.1->MLP 0"): 1.0 for at in range(SEQ)}, SEQ)
        text = text_of(tmp_path, suffix, trace, seq_labels=labels)
        assert len([line for line in text.splitlines() if "subgraph" in line]) == SEQ
        assert links_of(text, suffix) == {
            ("A0.1", "MLP 0", link) for link in {said for *_, said in links_of(text, suffix)}
        }
        assert "<" not in text or suffix == ".dot"
        for line in text.splitlines():
            bare = re.sub(QUOTED, "", line)
            assert '"' not in bare, line


def test_what_mermaid_would_read_is_written_as_entities(tmp_path: Path) -> None:
    """Mermaid 12 takes `%%{...}%%` for a directive wherever it stands: seen in a browser."""
    labels = ["%%{init: {'theme': 'dark'}}%%", "a `b` c", '"', "end", "#quot;", "</pre>"]
    trace = known_trace({(0, "A0.1->MLP 0"): 1.0}, SEQ)
    text = text_of(tmp_path, ".mmd", trace, seq_labels=labels, show_all_seq_pos=True)
    for bad in ("%%{", "`", '"""', "</"):
        assert bad not in text
    assert 'p4["#35;quot;, position 4"]' in text


@pytest.mark.parametrize("suffix", [".mmd", ".dot"])
def test_a_diagram_without_edges(suffix: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, suffix, wrapped(), scores({}))
    assert links_of(text, suffix) == set()
    assert "No edge has |score| ≥ 0.01." in text.replace("#35;", "#")
