"""nbconvert's page shows every figure, in a browser without a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from circuit_trace.visualize.notebook import PLOTLY
from tests.browser import chromium
from tests.notebooks.conftest import CELLS, FIGURES

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

READ_CELLS = """() => [...document.querySelectorAll('.jp-CodeCell')].map(cell => ({
  pictures: [...cell.querySelectorAll('img')].map(image => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let at = 0; at < pixels.length; at += 4) {
      colours.add(pixels[at] * 65536 + pixels[at + 1] * 256 + pixels[at + 2]);
    }
    const box = image.getBoundingClientRect();
    return {size: [canvas.width, canvas.height], shown: [box.width, box.height], colours: colours.size};
  }),
  frames: cell.querySelectorAll('iframe').length,
  text: cell.innerText,
}))"""


@pytest.fixture(scope="module")
def page(ran: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The converted notebook, open in a browser that has no network."""
    from nbconvert import HTMLExporter

    path = tmp_path_factory.mktemp("nbconvert") / "notebook.html"
    path.write_text(HTMLExporter().from_notebook_node(ran)[0], encoding="utf-8")
    with chromium() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1500, "height": 900})
        opened = context.new_page()
        opened.goto(path.as_uri(), wait_until="load")
        yield opened


@pytest.fixture(scope="module")
def cells(page: Page) -> dict[str, Any]:
    """What is seen below each cell, by the cell's name."""
    return dict(zip(CELLS, page.evaluate(READ_CELLS), strict=True))


@pytest.mark.parametrize("cell", [cell for cell, count in FIGURES.items() if count])
def test_every_figure_is_seen(
    cell: str, cells: dict[str, Any], outputs: dict[str, list[Any]]
) -> None:
    layouts = [one["data"][PLOTLY]["layout"] for one in outputs[cell]]
    pictures = cells[cell]["pictures"]
    assert [one["size"] for one in pictures] == [[one["width"], one["height"]] for one in layouts]
    for one in pictures:
        assert min(one["shown"]) > 100
        assert one["colours"] > 20  # edges of letters alone are some shades of grey


def test_a_page_of_the_explorer_works(page: Page, cells: dict[str, Any]) -> None:
    assert [name for name, cell in cells.items() if cell["frames"]] == ["explorer"]
    inside = page.frame_locator("iframe")
    inside.locator(".sankey-link").first.wait_for()
    assert inside.locator(".sankey-link").count() == 2
    assert inside.locator("#list button").count() == 2


def test_scores_and_bar(cells: dict[str, Any]) -> None:
    assert "<EdgeScores: 110 edges" in cells["scores"]["text"]
    assert len(cells["scores"]["text"]) < 200
    assert "IProgress" not in "".join(cell["text"] for cell in cells.values())
