"""The axes of a figure: where its values lie, and which of them are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuit_trace.visualize.still.area import Area

ROOM = 0.05
"""Plotly's room on either side of the values, as a share of the axis; a marker's needs a little more."""
MARKER_ROOM = 1 / 1.6
"""In sizes of the marker."""
BETWEEN_TICKS = {"x": 80, "y": 40}
"""Pixels from one tick to the next, at least about."""


@dataclass(frozen=True)
class Axis:
    """An axis: how it looks, its ends in the data's units or their logarithms, and in pixels."""

    style: Mapping[str, Any]
    low: float
    high: float
    start: float
    end: float
    gap: int

    def scaled(self, value: float) -> float:
        """A value in the units of the axis' ends."""
        return _scaled(self.style, value)

    def pixel(self, value: float) -> float:
        """Where a value lies."""
        share = (self.scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Values and their texts."""
        given = self.style.get("tickvals")
        if given is None:
            n_steps = min(max(abs(self.end - self.start) / self.gap, 4), 9) + 1
            step = _step((self.high - self.low) / n_steps)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            is_log = self.style.get("type") == "log"
            given = [10**n if is_log else n * step for n in range(first, last + 1)]
        texts = self.style.get("ticktext") or [self._text(value) for value in given]
        return list(zip(map(float, given), texts, strict=True))

    def _text(self, value: float) -> str:
        value = round(value, 12) + 0.0
        form = str(self.style.get("tickformat", ""))
        if form.endswith("%"):
            return f"{value * 100:.6g}%"
        text = f"{value:,.0f}" if form == ",d" else f"{value:.6g}"
        return text.replace("-", "\N{MINUS SIGN}")


def _scaled(style: Mapping[str, Any], value: float) -> float:
    if style.get("type") != "log":
        return float(value)
    return math.log10(value) if value > 0 else -math.inf


def _step(least: float) -> float:
    """The next larger of 2, 5 and 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (2, 5, 10) if digit * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Axes:
    """Both axes of a figure."""

    x: Axis
    y: Axis
    area: Area

    @classmethod
    def of(cls, layout: Mapping[str, Any], traces: Sequence[Mapping[str, Any]], area: Area) -> Axes:
        """The axes of a figure's curves; where they do not say how far they go, around all values."""

        def axis(name: str, start: float, end: float) -> Axis:
            style, length = layout.get(f"{name}axis", {}), abs(end - start)
            low, high = style.get("range") or _around(_seen(name, layout, traces, style), length)
            return Axis(style, float(low), float(high), start, end, BETWEEN_TICKS[name])

        return cls(axis("x", area.x(0), area.x(1)), axis("y", area.y(0), area.y(1)), area)


def _seen(
    name: str,
    layout: Mapping[str, Any],
    traces: Sequence[Mapping[str, Any]],
    style: Mapping[str, Any],
) -> Iterable[tuple[float, float]]:
    """Values that an axis must show, and what pixels each needs beyond `ROOM`; below 0, none at all."""
    for trace in traces:
        has_markers = "markers" in trace.get("mode", "lines")
        size = trace.get("marker", {}).get("size", 6) if has_markers else 0
        for value in trace.get(name, ()):
            yield _scaled(style, value), MARKER_ROOM * size
    for shape in layout.get("shapes", ()):
        if shape.get(f"{name}ref") != "paper":
            yield _scaled(style, shape[f"{name}0"]), -1.0
            yield _scaled(style, shape[f"{name}1"]), -1.0


def _around(seen: Iterable[tuple[float, float]], length: float) -> tuple[float, float]:
    """Plotly's ends of an axis: the room beside the outermost values is in pixels."""
    found = [one for one in seen if math.isfinite(one[0])] or [(0.0, -1.0), (1.0, -1.0)]
    low, before = min(found, key=lambda one: (one[0], -one[1]))
    high, after = max(found)
    before, after = (room + ROOM * length if room >= 0 else 1.0 for room in (before, after))
    if low == high:
        return low - 1, high + 1
    per_pixel = (high - low) / max(length - before - after, 1.0)
    return low - before * per_pixel, high + after * per_pixel
