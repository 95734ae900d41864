"""Text for labels: safe in Plotly's small HTML, short, and never a dump of a tensor."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

BREAK = "<br>"
"""A new line in Plotly's labels."""

LONGEST_TOKEN = 18
"""Token labels longer than this are cut; the margin is made for it."""

# Plotly reads tags and entities in labels, and MathJax (on Kaleido's page) reads dollars.
_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_WIDE = "MWmw@%—…"
_INVISIBLE = {"\n": "↵", "\r": "↵", "\t": "⇥"}


def escape(text: str) -> str:
    r"""Make text show as it is: no markup in it is read, and line breaks become visible.

    >>> escape("<|endoftext|>"), escape("a\n")
    ('&lt;|endoftext|&gt;', 'a↵')
    """
    return "".join(_SPECIAL.get(char) or _INVISIBLE.get(char) or _printable(char) for char in text)


def _printable(char: str) -> str:
    """The character, or a mark for a control, half a pair, or what turns the text's direction."""
    is_odd = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _TURNING
    return "�" if is_odd else char


def escape_name(name: str) -> str:
    """Escape the name of an edge or node; its arrow stays an arrow.

    >>> escape_name("A0.1->A1.2.Q")
    'A0.1->A1.2.Q'
    """
    return escape(name).replace("&gt;", ">")


def visible(token: str) -> str:
    r"""A token as plain text in which every character shows.

    >>> visible("a\n"), visible("<b>"), visible("")
    ('a↵', '<b>', '∅')
    """
    return html.unescape(token_label(token))


def token_label(token: str) -> str:
    """A token as a label: escaped, cut if it is long, and visible if it is blank.

    >>> token_label(" the"), token_label("")
    (' the', '∅')
    """
    if not token:
        return "∅"
    if not token.strip(" "):
        return "␣" * min(len(token), LONGEST_TOKEN)
    cut = token if len(token) <= LONGEST_TOKEN else token[: LONGEST_TOKEN - 1] + "…"
    return escape(cut)


def number(value: float) -> str:
    """A number with three significant digits, or all those before the point.

    >>> number(4.6441), number(-0.0), number(12345.6), number(1.5e6)
    ('4.64', '0', '12346', '1.5e+06')
    """
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value + 0.0:.3g}"


def mask_text(mask: float) -> str:
    """A mask or score with two decimals, or two significant digits where it is small.

    >>> mask_text(1.0), mask_text(-0.25), mask_text(0.0042)
    ('1.00', '-0.25', '0.0042')
    """
    return f"{mask + 0.0:.2f}" if mask == 0 or abs(mask) >= 0.01 else f"{mask:.2g}"


def vector_text(values: Iterable[float], total: int) -> str:
    """The first values of a vector of `total` numbers.

    >>> vector_text([0.5, -1.25], 64)
    '[0.5, -1.25, …]'
    """
    shown = [number(value) for value in values]
    return f"[{', '.join(shown + (['…'] if total > len(shown) else []))}]"


def text_size(text: str, font_size: float) -> tuple[float, float]:
    """About how many pixels wide and high a line of escaped text is in the figure's font."""
    ems = sum(1.0 if char in _WIDE or char >= "⺀" else 0.58 for char in html.unescape(text))
    return font_size * ems + 6, 1.4 * font_size
