"""What a picture looks like, whatever it shows; a wrong option is refused with what would be right."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from circuit_trace.errors import FigureError
from circuit_trace.graph import whole_number
from circuit_trace.visualize.colors import Theme, ThemeName, theme_named
from circuit_trace.visualize.diagram import Orientation

MAX_EDGES = 500
"""How many edges a figure shows unless more are asked for: enough for a circuit, few enough for a
browser."""


@dataclass(frozen=True)
class Style:
    """Which of the edges a picture shows and how it lays them out; `draw_seq_graph` says what each
    option means.

    >>> Style(orientation="v").colors.paper
    'white'

    Raises:
        FigureError: An option is out of range.
    """

    score_threshold: float = 0.01
    show_all_seq_pos: bool = False
    layer_spacing: bool = False
    orientation: Orientation = "h"
    max_edges: int | None = MAX_EDGES
    theme: ThemeName = "light"

    def __post_init__(self) -> None:
        if self.orientation not in ("h", "v"):
            raise FigureError(
                "orientation must be 'h' (left to right) or 'v' (top to bottom); got "
                f"{self.orientation!r}."
            )
        threshold = self.score_threshold
        is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not (is_number and threshold >= 0):
            raise FigureError(f"score_threshold must be a number, 0 or more; got {threshold!r}.")
        most = whole_number(self.max_edges)
        if self.max_edges is not None and (most is None or most < 1):
            raise FigureError(
                f"max_edges must be a whole number above 0, or None; got {self.max_edges!r}."
            )
        theme_named(self.theme)

    @property
    def colors(self) -> Theme:
        """The colours of its theme."""
        return theme_named(self.theme)


def interval(given: Any) -> tuple[float, float]:
    """The diagram's place in a figure's height."""
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if (
        is_pair
        and all(isinstance(end, int | float) for end in given)
        and 0 <= given[0] < given[1] <= 1
    ):
        return float(given[0]), float(given[1])
    raise FigureError(
        f"vert_interval must be (bottom, top) with 0 ≤ bottom < top ≤ 1; got {given!r}."
    )


def check_size(size: Any) -> None:
    """Raise FigureError where this is no size in pixels."""
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    if not is_pair or not all(isinstance(n, int | float) and 0 < n < 1e5 for n in size):
        raise FigureError(f"size must be (width, height) in pixels, both above 0; got {size!r}.")
