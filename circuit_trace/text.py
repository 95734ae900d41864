"""Values told in messages, and text inside of the quotes of other languages: Graphviz' DOT, Mermaid."""

from __future__ import annotations

import re
from typing import Any

MERMAIDS = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "%": "#37;", "`": "#96;"}
"""Mermaid reads entities, quotes, markup, `%%{directives}%%` and Markdown in labels."""

_BACK = {code: char for char, code in MERMAIDS.items()}


def mermaid_text(text: str) -> str:
    """Plain text for inside Mermaid's double quotes.

    >>> mermaid_text('A0.1->"<b>"')
    'A0.1-#gt;#quot;#lt;b#gt;#quot;'
    """
    return "".join(MERMAIDS.get(char, char) for char in text)


def plain_of_mermaid(text: str) -> str:
    """What `mermaid_text` was given.

    >>> plain_of_mermaid(mermaid_text('A0.1->"<b>" 5% #'))
    'A0.1->"<b>" 5% #'
    """
    return re.sub("#(35|quot|lt|gt|37|96);", lambda found: _BACK[found[0]], text)


def dot_text(text: str) -> str:
    r"""Plain text for inside DOT's double quotes.

    >>> print(dot_text('a "b" \\ c'))
    a \"b\" \\ c
    """
    return text.replace("\\", "\\\\").replace('"', '\\"')


def told(value: Any, most: int = 60) -> str:
    """A value from a file, short and whatever it is: `repr` of it may take all memory, or fail.

    >>> told("A0.1"), told([1, [2, 3]]), told(2**9999)
    ("'A0.1'", '[1, a list]', 'a number of 10000 bits')
    """
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return repr(value[:most]) if len(value) <= most else f"{value[:most]!r}…"
    if isinstance(value, list | tuple) and len(value) <= 4:
        inside = ", ".join(
            f"a {type(one).__name__}" if isinstance(one, list | tuple) else told(one)
            for one in value
        )
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return repr(value) if value is None or isinstance(value, int | float) else _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(told(key, 20) for key in list(value)[:6])}"
    return f"a {type(value).__name__}"
