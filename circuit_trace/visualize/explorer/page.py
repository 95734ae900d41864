"""Put a specification into the page, safely: data is JSON without any markup in it."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from circuit_trace.visualize.caption import (
    CURRENT_PROJECTION_LEGEND,
    LIVE_LEGEND,
    PROJECTION_LEGEND,
    SCORE_LEGEND,
)
from circuit_trace.visualize.colors import Theme
from circuit_trace.visualize.diagram import NODE_NAMES

MARK = re.compile(r"\{\{(\w+)\}\}")


def render(
    spec: dict[str, Any], theme: Theme, legend: Sequence[tuple[str, str]] = SCORE_LEGEND
) -> str:
    """The whole page as text; the same specification gives the same bytes. `legend` is that of scores."""
    projection = PROJECTION_LEGEND if spec["compared"] else CURRENT_PROJECTION_LEGEND
    look = {
        "nodes": theme.nodes,
        "node_names": NODE_NAMES,
        "link_alpha": theme.link_alpha,
        "legends": {
            quantity: [
                (theme.link(color), name.format(direction="the direction"))
                for color, name in legend
            ]
            for quantity, legend in {
                "mask": LIVE_LEGEND,
                "score": legend,
                "projection": projection,
            }.items()
        },
    }
    scheme = "dark" if theme.ink > theme.paper else "light"
    parts = {
        "colors": f"color-scheme: {scheme}; --paper: {theme.paper}; --ink: {theme.ink}",
        "css": _asset("explorer.css"),
        "layout": _asset("layout.js"),
        "diagram": _asset("diagram.js"),
        "explorer": _asset("explorer.js"),
        "plotly": get_plotlyjs(),
        "data": to_json({"look": look, **spec}),
    }
    return MARK.sub(lambda mark: parts[mark[1]], _asset("page.html"))


def packed(page: str) -> str:
    """A smaller page that unpacks this one where it is shown: most of it is plotly.js, which shrinks
    to less than a third.

    >>> page = "<!doctype html>" + "<p>Hello</p>" * 9999
    >>> len(packed(page)) < len(page) / 50
    True
    """
    # No time in it: the same page gives the same bytes.
    held = b64encode(gzip.compress(page.encode(), mtime=0)).decode()
    return MARK.sub(lambda mark: held, _asset("packed.html"))


def to_json(data: Any) -> str:
    r"""JSON that can stand in a script element: nothing in it ends the element or a line.

    >>> to_json(["</script>", "a&b", "\u2028"])
    '["\\u003c/script\\u003e","a\\u0026b","\\u2028"]'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only
    return re.sub("[<>&]", lambda char: f"\\u{ord(char[0]):04x}", text)


def _asset(name: str) -> str:
    return files("circuit_trace.visualize.explorer").joinpath(name).read_text(encoding="utf-8")
