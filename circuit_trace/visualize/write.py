"""Write a figure to a file by its extension."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuit_trace.errors import FigureError
from circuit_trace.files import checked_path, writing
from circuit_trace.visualize.diagram import SHORT_SIZE, Diagram
from circuit_trace.visualize.graph_text import dot, mermaid
from circuit_trace.visualize.images import bitmap_scale, size_of, write_image

IMAGES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
GRAPHS = {".mmd": mermaid, ".dot": dot}
"""What is written of the diagram as text, for other tools to draw."""
FORMATS = (".html", ".json", *IMAGES, *GRAPHS)

SMALLEST_POINTS = 5
"""Smaller text is hard to read on paper."""


def check_path(file_path: str | Path) -> Path:
    """The path, if its extension is one that can be written.

    Raises:
        FigureError: It is not; the message lists those that are.
    """
    path = checked_path(file_path, "file_path", "circuit.html", FigureError)
    if path.suffix.lower() not in FORMATS:
        raise FigureError(
            f"Cannot write a figure as {path.suffix or 'a file without an extension'!r} "
            f"({str(file_path)!r}): the extensions that work are {', '.join(FORMATS)}."
        )
    return path


@dataclass(frozen=True)
class File:
    """A file to write: with plotly.js inside a page or fetched, and how many inches wide it is on
    paper."""

    path: Path
    include_plotlyjs: bool | str = True
    page_width: float | None = None

    @classmethod
    def asked_for(cls, path: Any, include_plotlyjs: Any, page_width: Any) -> File | None:
        """What a user asks for, checked before anything is drawn; None for no file.

        Raises:
            FigureError: No such file can be written.
        """
        if include_plotlyjs not in (True, False, "cdn"):
            raise FigureError(
                "include_plotlyjs must be True (the page works offline), 'cdn' (fetched when the page "
                f"opens) or False (the page around it has it); got {include_plotlyjs!r}."
            )
        if page_width is not None:
            is_number = isinstance(page_width, int | float) and not isinstance(page_width, bool)
            if not (is_number and 0.5 <= page_width <= 100):
                raise FigureError(
                    f"page_width must be a number of inches, such as 3.25 for a column of a paper; "
                    f"got {page_width!r}."
                )
            if path is None or check_path(path).suffix.lower() not in (".pdf", ".svg"):
                raise FigureError("page_width is for a file_path that ends in .pdf or .svg.")
        return None if path is None else cls(check_path(path), include_plotlyjs, page_width)


def write(figure: go.Figure, diagram: Diagram | None, file: File) -> None:
    """Write the figure, or its diagram as text; the folder is made.

    Raises:
        FigureError: An image was asked for and no browser draws it, or it is too large for one, a
            graph of a figure that is none, or the folder or file cannot be written.
    """
    path, suffix = file.path, file.path.suffix.lower()
    if suffix in GRAPHS and diagram is None:
        raise FigureError(
            f"A curve is no graph to write as {suffix!r}: choose {', '.join(('.html', *IMAGES))}."
        )
    with writing(path, FigureError) as unfinished:
        if suffix == ".html":
            # A fixed id, so that the same figure gives the same file.
            scripts = file.include_plotlyjs
            figure.write_html(unfinished, include_plotlyjs=scripts, div_id="circuit-trace")
        elif suffix == ".json":
            figure.write_json(unfinished)
        elif suffix in GRAPHS and diagram is not None:
            unfinished.write_text(GRAPHS[suffix](diagram), encoding="utf-8")
        else:
            write_image(figure, unfinished, path, _scale(figure, file))


def _scale(figure: go.Figure, file: File) -> float:
    """How much larger than its pixels a picture is; a pixel is 1/96 inch on paper."""
    if file.path.suffix.lower() not in (".pdf", ".svg"):
        return bitmap_scale(size_of(figure), file.path)
    if file.page_width is None:
        return 1.0
    scale = file.page_width * 96 / size_of(figure)[0]
    points = SHORT_SIZE * scale * 0.75
    if points < SMALLEST_POINTS:
        warnings.warn(
            f"At {file.page_width:g} inches the smallest text of this figure is {points:.1f} points. "
            "It is larger with orientation='v', with fewer edges or positions, or on a wider page.",
            stacklevel=5,
        )
    return scale
