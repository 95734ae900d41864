"""Text with Plotly's small HTML in it, as SVG text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.sax.saxutils import escape, quoteattr

LINE_SPACING = 1.3
"""Plotly's distance from one line to the next, in font sizes."""
ASCENT, DESCENT = 0.905, 0.212
"""Of Helvetica and Arial: how far a line reaches above and below its base, in font sizes."""
ANCHORS = {"left": "start", "center": "middle", "right": "end"}

_STYLES = {
    "b": 'font-weight="bold"',
    "i": 'font-style="italic"',
    "em": 'font-style="italic"',
    "sup": 'baseline-shift="super" font-size="70%"',
    "sub": 'baseline-shift="sub" font-size="70%"',
}


class _Lines(HTMLParser):
    """The lines of a text, each with its markup as `tspan` elements that end with it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines = [""]
        self.open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.lines[-1] += "</tspan>" * len(self.open)
            self.lines.append("".join(start for _, start in self.open))
            return
        given = dict(attrs).get("style") or ""
        style = f" style={quoteattr(re.sub('(^|; *)color:', 'fill:', given))}" if given else ""
        self.open.append((tag, f"<tspan {_STYLES.get(tag, '')}{style}>"))
        self.lines[-1] += self.open[-1][1]

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            self.open.pop()
            self.lines[-1] += "</tspan>"

    def handle_data(self, data: str) -> None:
        self.lines[-1] += escape(data)


def lines_of(text: str) -> list[str]:
    """The lines of a text as SVG, with what Plotly reads in it: breaks, bold, italic and colours.

    >>> lines_of("A0.1 &lt; <b>1<br>2</b>")
    ['A0.1 &lt; <tspan font-weight="bold">1</tspan>', '<tspan font-weight="bold">2</tspan>']
    """
    parser = _Lines()
    parser.feed(text)
    parser.close()
    parser.lines[-1] += "</tspan>" * len(parser.open)
    return parser.lines


def block_height(n_lines: int, size: float) -> float:
    """Pixels that a text takes from top to bottom."""
    return (ASCENT + DESCENT + LINE_SPACING * (n_lines - 1)) * size


def block(text: str, x: float, top: float, size: float, anchor: str, color: str) -> str:
    """A text whose lines begin, have their middle, or end at `x`, below `top`."""
    shown = []
    for number, line in enumerate(lines_of(text)):
        space = ' style="white-space: pre"' if "  " in line else ""
        base = top + (ASCENT + LINE_SPACING * number) * size
        shown.append(
            f'<text x="{x:.1f}" y="{base:.1f}" font-size="{size:g}" fill={quoteattr(color)} '
            f'text-anchor="{ANCHORS[anchor]}"{space}>{line}</text>'
        )
    return "".join(shown)
