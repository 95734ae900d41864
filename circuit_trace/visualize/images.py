"""A figure as a picture file: at a scale that the browser's canvas holds, and looked at when it is made.

Kaleido has a browser draw the picture. Where that cannot, it may say so with an error of its own, or
with a file of a few bytes and no error; what was made is therefore read before it counts.
"""

from __future__ import annotations

import asyncio
import re
import struct
from math import sqrt
from pathlib import Path
from time import monotonic
from typing import Any

import plotly.graph_objects as go

from circuit_trace.errors import FigureError
from circuit_trace.warn import warn

MOST_SIDE = {".png": 65_535, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels of a side: Chrome's canvas ends at 65,535, and what encodes JPEG and WebP before that."""
MOST_AREA = 2**28
"""Pixels of a canvas in all."""
SCALE = 2.0
"""A bitmap has so many pixels for each of the figure's, for sharp text."""
SMALLEST_SCALE = 0.5
"""Below this nobody could read the text."""

NO_BROWSER = (
    "Pictures such as {suffix} are drawn by Kaleido, which needs Chrome or Chromium on this machine "
    "and found none that starts. Install one (Debian: apt-get install chromium; anywhere: "
    "plotly_get_chrome), or write .html, which needs none."
)
WAY_OUT = (
    "Draw less (fewer edges by max_edges or score_threshold, fewer positions, or the other "
    "orientation), or write {other}."
)

Size = tuple[float, float]


def bitmap_scale(size: Size, path: Path) -> float:
    """How many of a bitmap's pixels a pixel of the figure gets: 2, or what the canvas holds.

    Raises:
        FigureError: At any scale that can be read the picture is too large.
    """
    width, height = size
    most = MOST_SIDE[path.suffix.lower()]
    fitting = min(most / max(size), sqrt(MOST_AREA / (width * height)))
    if fitting >= SCALE:
        return SCALE
    what = (
        f"a figure of {width:,} × {height:,} pixels at scale {SCALE:g}: it holds {most:,} pixels a side "
        f"and {MOST_AREA:,} in all"
    )
    way_out = _way_out(path)
    if fitting < SMALLEST_SCALE:
        raise FigureError(
            f"Cannot write {str(path)!r}: the browser's canvas is too small for {what}. {way_out}"
        )
    scale = int(fitting * 1000) / 1000
    warn(
        f"{path.name!r} is written at scale {scale:g}, since the browser's canvas is too small for "
        f"{what}. {way_out}",
        UserWarning,
    )
    return scale


def write_image(figure: go.Figure, path: Path, name: Path, scale: float) -> None:
    """Write a picture to `path`, for the file that the user calls `name`.

    Raises:
        FigureError: No browser starts, it fails or takes too long, or it makes no such picture.
    """
    _draw(figure, path, name, scale)
    data, suffix = path.read_bytes(), name.suffix.lower()
    wanted = tuple(side * scale for side in size_of(figure))
    found = picture_size(data, suffix)
    if found is None or max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > 2:
        made = "no whole picture" if found is None else f"one of {found[0]:,.0f} × {found[1]:,.0f}"
        raise FigureError(
            f"Cannot write {str(name)!r}: of a picture of {wanted[0]:,.0f} × {wanted[1]:,.0f} pixels the "
            f"browser made {made} ({len(data):,} bytes). {_way_out(name)}"
        )


def _draw(figure: go.Figure, path: Path, name: Path, scale: float) -> None:
    from choreographer.errors import ChannelClosedError, ChromeNotFoundError, DevtoolsProtocolError
    from kaleido.errors import BrowserClosedError, BrowserFailedError, JavascriptError, KaleidoError

    suffix, started = name.suffix.lower(), monotonic()
    try:
        figure.write_image(path, scale=scale)
    # Before Python 3.11 asyncio's is an error of its own, since then a TimeoutError.
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise FigureError(
            f"Cannot write {str(name)!r}: the browser had not drawn it after "
            f"{monotonic() - started:.0f} seconds, and Kaleido waits no longer. {_way_out(name)}"
        ) from error
    except ChromeNotFoundError as error:
        raise FigureError(NO_BROWSER.format(suffix=suffix)) from error
    except (KaleidoError, DevtoolsProtocolError, JavascriptError, ChannelClosedError) as error:
        raise _failed(figure, name, error) from error
    except RuntimeError as error:
        if "chrome" in str(error).lower():
            raise FigureError(NO_BROWSER.format(suffix=suffix)) from error
        if isinstance(error, BrowserClosedError | BrowserFailedError):
            raise _failed(figure, name, error) from error
        raise


def _failed(figure: go.Figure, name: Path, error: Exception) -> FigureError:
    width, height = size_of(figure)
    said = str(error).strip()[:200] or type(error).__name__
    return FigureError(
        f"Cannot write {str(name)!r}: the browser failed to draw a figure of {width:,} × {height:,} "
        f"pixels ({said}). {_way_out(name)}"
    )


def _way_out(name: Path) -> str:
    is_text = name.suffix.lower() in (".svg", ".pdf")
    return WAY_OUT.format(other=".html" if is_text else ".svg or .html, which have no such limit")


def size_of(figure: go.Figure) -> Size:
    """The figure's pixels; where it leaves its size open, those that Plotly takes."""
    layout: Any = figure.layout
    return layout.width or 700, layout.height or 500


def picture_size(data: bytes, suffix: str) -> Size | None:
    r"""The width and height in pixels of a whole picture of that type; None where it is none.

    >>> picture_size(b'<svg class="main" width="700" height="450.5"></svg>', ".svg")
    (700.0, 450.5)
    >>> picture_size(b"u\xabZ", ".png") is None
    True
    """
    read = {".png": _png, ".webp": _webp, ".svg": _svg, ".pdf": _pdf}.get(suffix, _jpeg)
    try:
        return read(data)
    except (struct.error, IndexError):  # it ends too early
        return None


def _png(data: bytes) -> Size | None:
    is_whole = data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24]) if is_whole and data[12:16] == b"IHDR" else None


def _jpeg(data: bytes) -> Size | None:
    """JPEG is a chain of segments, `FF kind length`; the frame's, C0 to CF, has the size."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    at = 2
    while data[at] == 0xFF:
        kind, (length,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # tables, not frames
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def _webp(data: bytes) -> Size | None:
    """WebP is RIFF with one of three kinds of first chunk (RFC 9649)."""
    if data[:4] + data[8:12] != b"RIFFWEBP" or struct.unpack("<I", data[4:8])[0] + 8 != len(data):
        return None
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        sides = (data[24:27] + b"\0", data[27:30] + b"\0")
        width, height = (struct.unpack("<I", side)[0] + 1 for side in sides)
        return width, height
    return None


def _svg(data: bytes) -> Size | None:
    if not (data.startswith(b"<svg ") and data.rstrip().endswith(b"</svg>")):
        return None
    tag = data[: data.index(b">")]
    sides = [re.search(rb'\s%s="([\d.]+)"' % side, tag) for side in (b"width", b"height")]
    return None if None in sides else tuple(float(side[1]) for side in sides if side)  # type: ignore[return-value]


def _pdf(data: bytes) -> Size | None:
    """The size of the first page; a point is 1/72 inch, a pixel 1/96."""
    box = re.search(rb"/MediaBox \[\s*(\S+) (\S+) (\S+) (\S+?)\s*\]", data)
    if not (data.startswith(b"%PDF-") and b"%%EOF" in data[-32:] and box):
        return None
    left, bottom, right, top = map(float, box.groups())
    return (right - left) * 96 / 72, (top - bottom) * 96 / 72
