"""What cells show: each figure once, and nothing that nobody asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from circuit_trace.visualize.notebook import PLOTLY
from tests.notebooks.conftest import CELLS, FIGURES


@pytest.mark.parametrize("cell", CELLS)
def test_how_many_figures_a_cell_shows(cell: str, outputs: dict[str, list[Any]]) -> None:
    found = [one for one in outputs[cell] if PLOTLY in one.get("data", {})]
    assert len(found) == FIGURES[cell]
    if cell not in ("scores", "bar", "explorer"):
        assert len(outputs[cell]) == FIGURES[cell]
    for one in found:
        assert one["data"]["image/svg+xml"].startswith("<svg ")
        assert len(one["data"]["text/plain"]) < 200
        assert len(json.dumps(one)) < 60_000


def test_a_changed_figure_is_shown_as_it_is(outputs: dict[str, list[Any]]) -> None:
    before, after = (one["data"] for one in outputs["changed"])
    assert before[PLOTLY]["layout"]["paper_bgcolor"] == "white"
    assert after[PLOTLY]["layout"]["paper_bgcolor"] == "ivory"
    assert 'fill="ivory"' in after["image/svg+xml"]
    assert 'fill="ivory"' not in before["image/svg+xml"]


def test_records_show_their_names_beside_their_pictures(outputs: dict[str, list[Any]]) -> None:
    for cell, name in {
        "trace": "<Trace: ",
        "diff": "<TraceDiff: ",
        "curve": "<Faithfulness: ",
    }.items():
        assert outputs[cell][0]["data"]["text/plain"].startswith(name)


def test_scores_show_a_line(outputs: dict[str, list[Any]]) -> None:
    (one,) = outputs["scores"]
    assert re.fullmatch(r"<\w+: 110 edges, [\d,]+ not zero, .*>", one["data"]["text/plain"])


def test_a_bar_without_widgets_is_text_and_no_complaint(outputs: dict[str, list[Any]]) -> None:
    assert outputs["import"] == []
    assert "2/2" in "".join(one["text"] for one in outputs["bar"])
    assert not any("IProgress" in one["text"] for one in outputs["bar"])


def test_an_explorer_is_packed_and_says_what_it_is(outputs: dict[str, list[Any]]) -> None:
    (one,) = outputs["explorer"]
    assert set(one["data"]) == {"text/html", "text/plain"}
    assert len(one["data"]["text/html"]) < 2_200_000
    assert ".save('explorer.html')" in one["data"]["text/plain"]
