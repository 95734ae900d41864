"""The browser that tests look at pages with: found on this machine, never downloaded.

A test that needs one asks for `browser_or_skip()`. Where there is none it is skipped with the reason,
and fails instead where `CIRCUIT_TRACE_REQUIRE_BROWSER` is set, as it is in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""What Chrome is called, in the order in which it is looked for."""

REQUIRED = "CIRCUIT_TRACE_REQUIRE_BROWSER"
"""Where this environment variable is set, a missing browser is a failure."""

MISSING = f"no Chrome or Chromium on this machine (looked for {', '.join(NAMES)})"


def find_browser() -> str | None:
    """The path of a Chrome or Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def browser_or_skip() -> str:
    """The path of a Chrome or Chromium; without one the test is skipped, or fails in CI."""
    path = find_browser()
    if path is None and os.environ.get(REQUIRED):
        pytest.fail(f"{MISSING}, and {REQUIRED} is set", pytrace=False)
    if path is None:
        pytest.skip(MISSING)
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; its pages have no network that a test did not ask for."""
    path = browser_or_skip()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chrome refuses to start as root with its sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
