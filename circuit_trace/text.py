"""Text inside of the quotes of other languages: Graphviz' DOT and Mermaid."""

from __future__ import annotations

import re

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
