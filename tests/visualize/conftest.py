"""Fixtures of the drawing tests: golden texts, the diagram behind a figure, and one Kaleido for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import plotly.graph_objects as go
import pytest

from circuit_trace.visualize import sankey
from circuit_trace.visualize.colors import Theme
from circuit_trace.visualize.diagram import Diagram
from tests.browser import browser_or_skip

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--overwrite",
        action="store_true",
        help="write the golden texts of the drawing tests anew (pytest tests/visualize --overwrite)",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name, or write the file with --overwrite."""
    # The option is known only where this folder is named on the command line.
    overwrite = request.config.getoption("--overwrite", default=False)

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if overwrite:
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; pytest tests/visualize --overwrite writes it"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture
def diagrams(monkeypatch: pytest.MonkeyPatch) -> list[Diagram]:
    """The specifications of the figures that `draw_seq_graph` draws during the test."""
    drawn: list[Diagram] = []

    def recording(diagram: Diagram, theme: Theme) -> go.Figure:
        drawn.append(diagram)
        return sankey.figure(diagram, theme)

    monkeypatch.setattr("circuit_trace.visualize.present.figure", recording)
    return drawn


@pytest.fixture(scope="package")
def kaleido_server() -> Iterator[None]:
    """Keep one browser running for all pictures: to start it takes longer than to draw."""
    browser_or_skip()
    import kaleido

    kaleido.start_sync_server(silence_warnings=True)
    yield
    kaleido.stop_sync_server(silence_warnings=True)
