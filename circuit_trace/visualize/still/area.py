"""Where the plot lies in a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARGINS = {"l": 80, "r": 80, "t": 100, "b": 80}
"""Plotly's own, where a figure says nothing."""


@dataclass(frozen=True)
class Area:
    """The part of a figure that holds what it shows, in pixels from its left and top."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, layout: Mapping[str, Any]) -> Area:
        """What the margins leave."""
        margin = {**MARGINS, **layout.get("margin", {})}
        width = layout["width"] - margin["l"] - margin["r"]
        height = layout["height"] - margin["t"] - margin["b"]
        return cls(margin["l"], margin["t"], max(width, 1.0), max(height, 1.0))

    def domain(self, domain: Mapping[str, Any]) -> Area:
        """The part that a trace takes of it."""
        (left, right), (bottom, top) = domain.get("x", (0, 1)), domain.get("y", (0, 1))
        width, height = (right - left) * self.width, (top - bottom) * self.height
        return Area(self.x(left), self.y(top), width, height)

    def x(self, share: float) -> float:
        """The pixel at a share of the width."""
        return self.left + share * self.width

    def y(self, share: float) -> float:
        """The pixel at a share of the height, which Plotly counts from below."""
        return self.top + (1 - share) * self.height
