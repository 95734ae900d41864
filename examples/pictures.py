"""Draw the pictures of the README and the pages anew: the demo's, and its explorer with an edge open.

make pictures
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from circuit_trace import cli
from tests.browser import chromium

FOLDER = Path(__file__).parent
OPENED = "MLP 0->A1.0.V"
SIZE = {"width": 1240, "height": 900}


def main() -> None:
    with tempfile.TemporaryDirectory() as made, chromium() as browser:
        assert cli.main(["demo", "--out", made]) == 0
        for drawn, name in (("circuit", "demo"), ("scores", "scores")):
            shutil.copy(Path(made, f"{drawn}.png"), FOLDER / f"{name}.png")
        page = browser.new_page(viewport=SIZE)
        page.goto(Path(made, "explorer.html").as_uri())
        page.locator("#list button", has_text=OPENED).first.click()
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=FOLDER / "explorer.png", animations="disabled")


if __name__ == "__main__":
    main()
