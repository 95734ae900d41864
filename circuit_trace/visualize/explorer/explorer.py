"""`explore`: a trace in, a page out that answers a person's questions about it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuit_trace.errors import FigureError
from circuit_trace.files import checked_path, writing
from circuit_trace.graph import whole_number
from circuit_trace.plan import EdgesArg, PruneScores
from circuit_trace.record import BatchIdx, Record
from circuit_trace.visualize.caption import score_legend
from circuit_trace.visualize.colors import theme_named
from circuit_trace.visualize.explorer.data import specification
from circuit_trace.visualize.explorer.page import packed, render

MAX_EDGES = 2000
"""How many edges a page holds unless more are asked for; some hundred bytes each."""

IFRAME_HEIGHT = 860
"""Pixels that a page gets below a notebook's cell."""

WITHOUT_FRAMES = (
    "A page to look through a traced pass belongs here, but this notebook is not trusted to show it. "
    "Trust the notebook or run this cell again; in Python, .save('explorer.html') writes the page to a "
    "file for any browser."
)


@dataclass(frozen=True)
class Explorer:
    """A page to look through a traced pass; the last expression of a notebook's cell shows it."""

    html: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the page to a file that any browser opens; its folder is made.

        Raises:
            FigureError: The path does not end in .html, or cannot be written.
        """
        path = _check_path(path)
        with writing(path, FigureError) as unfinished:
            unfinished.write_text(self.html, encoding="utf-8")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the page, in a frame of its own."""
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _repr_html_(self) -> str:
        """The page in a frame; what stands inside is shown where frames are taken out."""
        return (
            f'<iframe srcdoc="{html.escape(packed(self.html))}" sandbox="allow-scripts" '
            'title="circuit_trace explorer" '
            f'style="width: 100%; height: {IFRAME_HEIGHT}px; border: 0">{WITHOUT_FRAMES}</iframe>'
        )

    def __repr__(self) -> str:
        return "<Explorer: a page to look through a traced pass; .save('explorer.html') writes it>"


def explore(
    trace: Record,
    *,
    edges: EdgesArg | None = None,
    scores: PruneScores | None = None,
    direction: Any = None,
    batch_idx: BatchIdx = 0,
    max_edges: int = MAX_EDGES,
    theme: str = "light",
    file_path: str | Path | None = None,
) -> Explorer:
    """Make a page in which a person filters, finds and opens the edges of a traced pass.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=[(14, "A1.0->Resid End")])
    >>> page = explore(trace, theme="dark")
    >>> page.html[:15], len(page.html) < 6_000_000
    ('<!doctype html>', True)

    Args:
        trace: What is shown.
        edges: Edges by name, by (seq_idx, name) or as `Edge` objects; when omitted, those that were
            patched or named in the pass, or every edge where there are none.
        scores: A score for every edge, shown beside what flowed.
        direction: What outputs are projected on: a vector of `d_model` numbers or two tokens, as in
            `draw_seq_graph`.
        batch_idx: The element of the batch, or "mean" for means over all.
        max_edges: At most so many edges go into the page: those with the largest |score|, or
            without scores the largest ‖Δ‖, or where nothing was patched ‖current‖.
        theme: "light" or "dark".
        file_path: Write the page too; an .html file.

    Raises:
        EdgeError: There is no such edge.
        MaskError: The scores do not fit the model.
        InputError: There is no such batch element, or the direction does not fit the model.
        FigureError: An option is out of range, or the file cannot be written.
    """
    if not isinstance(trace, Record):
        raise FigureError(f"Expected a Trace to explore; got {type(trace).__name__}.")
    most = whole_number(max_edges)
    if most is None or most < 1:
        raise FigureError(f"max_edges must be a whole number above 0; got {max_edges!r}.")
    colors = theme_named(theme)
    path = None if file_path is None else _check_path(file_path)
    spec = specification(
        trace,
        edges=edges,
        scores=scores,
        direction=direction,
        batch_idx=batch_idx,
        max_edges=most,
    )
    explorer = Explorer(render(spec, colors, score_legend(scores)))
    if path is not None:
        explorer.save(path)
    return explorer


def _check_path(path: Any) -> Path:
    checked = checked_path(path, "file_path", "explorer.html", FigureError)
    if checked.suffix.lower() not in (".html", ".htm"):
        raise FigureError(f"The explorer is a page: expected an .html path, got {str(path)!r}.")
    return checked
