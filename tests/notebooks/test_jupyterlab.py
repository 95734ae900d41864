"""JupyterLab itself: a notebook from elsewhere, which it does not trust, and the same one trusted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from circuit_trace.visualize.explorer.explorer import WITHOUT_FRAMES
from tests.browser import chromium
from tests.notebooks.conftest import CELLS, FIGURES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

TOKEN = "for-this-test-alone"
PATIENCE = 120

READ_CELLS = """() => [...document.querySelectorAll('.jp-CodeCell')].map(cell => ({
  outputs: cell.querySelectorAll('.jp-OutputArea-output').length,
  plots: cell.querySelectorAll('.js-plotly-plot').length,
  diagrams: cell.querySelectorAll('g.sankey').length,
  stills: cell.querySelectorAll('.jp-RenderedSVG, .jp-RenderedImage').length,
  frames: cell.querySelectorAll('iframe').length,
  text: [...cell.querySelectorAll('.jp-OutputArea-output')].map(one => one.innerText).join('\\n'),
}))"""


@pytest.fixture(scope="module")
def notebook(ran: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook in a file."""
    import nbformat

    path = tmp_path_factory.mktemp("lab") / "notebook.ipynb"
    nbformat.write(ran, path)
    return path


@pytest.fixture(scope="module")
def lab(notebook: Path, jupyters_folders: Mapping[str, str]) -> Iterator[str]:
    """The address of a JupyterLab that serves the notebook's folder on this machine alone."""
    # Every cell is in the page, not those in view alone.
    settings = Path(jupyters_folders["JUPYTER_CONFIG_DIR"]) / "labconfig"
    settings.mkdir(parents=True)
    (settings / "default_setting_overrides.json").write_text(
        '{"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--ServerApp.ip": "127.0.0.1",
        "--ServerApp.port": port,
        "--ServerApp.root_dir": notebook.parent,
        "--IdentityProvider.token": TOKEN,
        "--LabApp.news_url": "None",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"{name}={value}" for name, value in options.items()]
    with open(notebook.parent / "lab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token={TOKEN}", server)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"JupyterLab did not start within {PATIENCE} seconds (exit: {server.poll()})")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def look(browser: Browser, lab: str, notebook: Path) -> tuple[Page, dict[str, Any]]:
    """Open the notebook; what is seen below each cell, by its name."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    # Lab would ask its own site for news.
    page.route(lambda url: not url.startswith(lab), lambda route: route.abort())
    page.goto(f"{lab}/doc/tree/{notebook.name}?token={TOKEN}&reset")
    wanted = sum(FIGURES.values())
    page.wait_for_function(
        f"() => document.querySelectorAll('.js-plotly-plot .main-svg .infolayer').length >= {wanted}",
        timeout=PATIENCE * 1000,
    )
    return page, dict(zip(CELLS, page.evaluate(READ_CELLS), strict=True))


@pytest.fixture(scope="module")
def untrusted(browser: Browser, lab: str, notebook: Path) -> dict[str, Any]:
    """What is seen of a notebook from elsewhere."""
    page, cells = look(browser, lab, notebook)
    page.close()
    return cells


@pytest.mark.parametrize("cell", CELLS)
def test_each_figure_is_seen_once_though_nobody_trusts_the_notebook(
    cell: str, untrusted: dict[str, Any]
) -> None:
    found = untrusted[cell]
    assert (found["plots"], found["stills"]) == (FIGURES[cell], 0)
    if FIGURES[cell]:
        assert found["outputs"] == FIGURES[cell]
    if FIGURES[cell] and "curve" not in cell:
        assert found["diagrams"] == FIGURES[cell]


def test_an_explorer_that_is_not_trusted_says_what_it_is(untrusted: dict[str, Any]) -> None:
    assert untrusted["explorer"]["frames"] == 0
    assert untrusted["explorer"]["text"].strip() == WITHOUT_FRAMES


def test_an_explorer_in_a_trusted_notebook_works(
    untrusted: dict[str, Any], browser: Browser, lab: str, notebook: Path
) -> None:
    trust = [sys.executable, "-m", "jupyter", "trust", str(notebook)]
    subprocess.run(trust, check=True, capture_output=True, timeout=PATIENCE)
    page, cells = look(browser, lab, notebook)
    assert cells["explorer"]["frames"] == 1
    inside = page.frame_locator("iframe")
    inside.locator(".sankey-link").first.wait_for()
    assert inside.locator("#list button").count() == 2
    assert cells["explorer"]["text"].strip() == ""
    page.close()
