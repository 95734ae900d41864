"""What `rich.print(trace)` and a notebook show."""

from __future__ import annotations

import plotly.io as pio
import pytest
from rich.console import Console

from circuit_trace.visualize.terminal import MOST_ROWS
from tests.visualize.pictures import NASTY, SEQ, graph, known_trace


def printed(trace: object, width: int = 100) -> str:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(trace)
    return captured.get()


def test_each_edge_has_a_row_with_its_numbers() -> None:
    """The source writes 3, 4; 0, −6, 8 is patched in."""
    shown = printed(known_trace({(0, "Resid Start->A0.1.Q"): 0.5}, SEQ))
    (row,) = [line for line in shown.splitlines() if "->" in line]
    assert row.split()[:6] == ["0", "Resid", "Start->A0.1.Q", "0.50", "5", "10"]
    assert f"{173**0.5:.3g}" in row


def test_without_a_patch_there_is_only_what_was_written() -> None:
    shown = printed(known_trace({}, patched=None))
    assert "patched " not in shown.splitlines()[2]
    assert "current" in shown


def test_beyond_some_edges_the_others_are_counted() -> None:
    edges = {edge.name: 1.0 for edge in graph().edges}
    shown = printed(known_trace(edges))
    assert sum("->" in line for line in shown.splitlines()) == MOST_ROWS
    assert f"and {len(edges) - MOST_ROWS} edges that rank lower" in " ".join(shown.split())


@pytest.mark.parametrize("token", ["[bold red]", "</script>", "a\nb", "\x1b[31m"])
def test_tokens_are_shown_as_they_are(token: str) -> None:
    shown = printed(
        known_trace({(0, "A0.1->A1.2.Q"): 1.0}, SEQ, to_strings=lambda _: [token] * SEQ)
    )
    assert token.replace("\n", "↵").replace("\x1b", "�") in shown


def test_every_nasty_token_can_be_printed() -> None:
    for token in NASTY:
        trace = known_trace(
            {(0, "A0.1->A1.2.Q"): 1.0}, SEQ, to_strings=lambda _, t=token: [t] * SEQ
        )
        assert "A0.1->A1.2.Q" in printed(trace)


def test_a_notebook_gets_the_picture_and_anything_else_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = known_trace({"A0.1->A1.2.Q": 1.0})
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    shown = trace._repr_mimebundle_()
    assert shown["text/plain"] == repr(trace)
    picture = shown["application/vnd.plotly.v1+json"]
    assert picture["data"][0]["link"]["label"][0].startswith("A0.1->A1.2.Q")
    monkeypatch.setattr(pio.renderers, "default", "")
    assert trace._repr_mimebundle_() == {"text/plain": repr(trace)}
