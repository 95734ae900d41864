"""Write a figure to a file by its extension, and show it where there is something to show it in."""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path

import plotly.graph_objects as go

from circuit_trace.errors import FigureError
from circuit_trace.visualize.graph_text import dot, mermaid
from circuit_trace.visualize.spec import Diagram

IMAGES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
GRAPHS = {".mmd": mermaid, ".dot": dot}
"""What is written of the diagram as text, for other tools to draw."""
FORMATS = (".html", ".json", *IMAGES, *GRAPHS)

NO_BROWSER = (
    "Pictures such as {suffix} are drawn by Kaleido, which needs Chrome or Chromium on this machine "
    "and found none that starts. Install one (Debian: apt-get install chromium; anywhere: "
    "plotly_get_chrome), or write .html, which needs none."
)


def check_path(file_path: str | Path) -> Path:
    """The path, if its extension is one that can be written.

    Raises:
        FigureError: It is not; the message lists those that are.
    """
    if not isinstance(file_path, str | PathLike):
        raise FigureError(f"file_path must be a path such as 'circuit.html'; got {file_path!r}.")
    path = Path(file_path)
    if path.suffix.lower() not in FORMATS:
        raise FigureError(
            f"Cannot write a figure as {path.suffix or 'a file without an extension'!r} "
            f"({str(file_path)!r}): the extensions that work are {', '.join(FORMATS)}."
        )
    return path


def write(figure: go.Figure, diagram: Diagram, path: Path) -> None:
    """Write the figure, or its diagram as text; the folder is made.

    Raises:
        FigureError: An image was asked for and there is no browser to draw it, or the folder or
            file cannot be written.
    """
    suffix = path.suffix.lower()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".html":
            # A fixed id, so that the same figure gives the same file.
            figure.write_html(path, include_plotlyjs=True, div_id="circuit-trace")
        elif suffix == ".json":
            figure.write_json(path)
        elif suffix in GRAPHS:
            path.write_text(GRAPHS[suffix](diagram), encoding="utf-8")
        else:
            _write_image(figure, path, suffix)
    except OSError as error:
        raise FigureError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error


def _write_image(figure: go.Figure, path: Path, suffix: str) -> None:
    from choreographer.errors import ChromeNotFoundError

    try:
        figure.write_image(path, scale=2 if suffix not in (".svg", ".pdf") else None)
    except (RuntimeError, ChromeNotFoundError) as error:
        if "chrome" in str(error).lower() or isinstance(error, ChromeNotFoundError):
            raise FigureError(NO_BROWSER.format(suffix=suffix)) from error
        raise


def show_in_ipython(figure: go.Figure) -> None:
    """Display the figure in a running IPython; a plain script shows nothing and opens nothing."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(figure)
