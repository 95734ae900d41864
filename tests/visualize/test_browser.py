"""What a real browser shows: pages that need no network, hover labels, and where Plotly draws things."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import pytest

import circuit_trace as ct
from circuit_trace.visualize.diagram import Diagram, Panel
from circuit_trace.visualize.sankey import figure
from tests import browser as browsers
from tests.browser import chromium
from tests.models import tokens
from tests.visualize.pictures import (
    NASTY,
    SEQ,
    Rect,
    in_figure,
    known_trace,
    link_ends,
    node_rects,
    random_scores,
    score_diagram,
    scores,
    shows,
    size_of,
    wrapped,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

CLOSE = 1.5
"""Pixels by which what is drawn may differ from what was computed."""

READ_DRAWING = """() => {
  const svg = document.querySelector('.main-svg').getBoundingClientRect();
  const rect = element => {
    const box = element.getBoundingClientRect();
    return [box.left - svg.left, box.top - svg.top, box.right - svg.left, box.bottom - svg.top];
  };
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const matrix = element => {
    const m = element.getScreenCTM();
    return [m.a, m.b, m.c, m.d, m.e - svg.left, m.f - svg.top];
  };
  return {
    panels: all(document, 'g.sankey').map(panel => ({
      nodes: all(panel, '.sankey-node').map(node => ({
        name: node.__data__.node.label,
        index: node.__data__.node.pointNumber,
        rect: rect(node.querySelector('.node-rect')),
      })),
      links: all(panel, 'path.sankey-link').map(link => ({
        label: link.__data__.link.label,
        index: link.__data__.link.pointNumber,
        d: link.getAttribute('d'),
        matrix: matrix(link),
      })),
    })),
    annotations: all(document, 'g.annotation').map(one => ({
      index: Number(one.getAttribute('data-index')),
      lines: all(one, 'text').map(text => {
        const lines = all(text, 'tspan.line');
        return lines.length ? lines.map(line => line.textContent) : [text.textContent];
      }).flat(),
      rect: rect(one.querySelector('text')),
    })),
    size: [svg.width, svg.height],
  };
}"""


@dataclass
class Watched:
    """A page, and everything that happens to it and should not."""

    page: Page
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda one: self.trouble.append(f"console: {one.text}"))
        self.page.on("pageerror", lambda one: self.trouble.append(f"error: {one}"))
        self.page.on("requestfailed", lambda one: self.trouble.append(f"failed: {one.url}"))
        self.page.on("request", self._note_request)
        self.page.on("dialog", self._close)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith(("file://", "data:", "blob:")):
            self.trouble.append(f"request: {request.url}")

    def _close(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path) -> dict[str, Any]:
        """Open a written page and read what is drawn."""
        self.page.goto(path.as_uri())
        self.page.wait_for_function("() => document.querySelector('.infolayer .annotation')")
        return self.page.evaluate(READ_DRAWING)

    def draw(self, drawn: go.Figure) -> dict[str, Any]:
        """Draw another figure on the page that is open: faster than to open another page."""
        self.page.evaluate(
            """async json => {
              const figure = JSON.parse(json), place = document.querySelector('.js-plotly-plot');
              Plotly.purge(place);  // or it would move from the last picture to this one
              await Plotly.newPlot(place, figure.data, figure.layout);
            }""",
            drawn.to_json(),
        )
        return self.page.evaluate(READ_DRAWING)

    def hover(self, x: float, y: float) -> list[str]:
        """Move the mouse to a point of the figure; the lines of the label that shows."""
        self.page.mouse.move(1, 1)
        self.page.wait_for_function("() => !document.querySelector('.hoverlayer .hovertext')")
        left, top = self.page.evaluate(
            "() => {const b = document.querySelector('.main-svg').getBoundingClientRect();"
            " return [b.left, b.top]}"
        )
        self.page.mouse.move(left + x, top + y)
        self.page.wait_for_selector(".hoverlayer .hovertext", timeout=5000)
        return self.page.evaluate(
            """() => {
              const texts = [...document.querySelectorAll('.hoverlayer .hovertext text')];
              return texts.flatMap(text => {
                const lines = [...text.querySelectorAll('tspan.line')];
                return lines.length ? lines.map(line => line.textContent) : [text.textContent];
              }).filter(line => line);
            }"""
        )


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with chromium() as browser:
        watched = Watched(browser.new_page(viewport={"width": 1600, "height": 1200}))
        path = tmp_path_factory.mktemp("page") / "start.html"
        ct.draw_seq_graph(wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=path)
        watched.open(path)
        yield watched


@pytest.fixture
def page(shared_page: Watched) -> Iterator[Watched]:
    """A page with Plotly in it; the test fails if anything untoward happened on it."""
    shared_page.trouble.clear()
    yield shared_page
    assert shared_page.trouble == []


# Written pages

LIVE = {
    (1, "Resid Start->A0.1.K"): 1.0,
    (1, "A0.1->A1.2.Q"): 0.5,
    (4, "A1.2->Resid End"): 1.0,
    (4, "MLP 0->Resid End"): -0.25,
}


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_every_link_of_a_page_tells_what_flowed(
    page: Watched, orientation: str, tmp_path: Path
) -> None:
    """Name, activation, norms, mask, as `trace.edge` has them; also where a short label lies."""
    model = wrapped(SEQ)
    trace = model.trace(tokens(1), corrupt=tokens(2), edges=LIVE)
    path = tmp_path / "page.html"
    drawn = ct.draw_seq_graph(model, orientation=orientation, file_path=path)
    seen = page.open(path)
    assert sum(len(panel["links"]) for panel in seen["panels"]) == len(LIVE)
    assert page.page.locator("path.sankey-link").count() == len(LIVE)
    shorts = {tuple(one["lines"]): one["rect"] for one in seen["annotations"]}
    for data, panel in zip(drawn.data, seen["panels"], strict=True):
        for link in panel["links"]:
            expected = data.link.label[link["index"]].split("<br>")  # pyright: ignore[reportAttributeAccessIssue]
            assert page.hover(*on_band(link, 0.2)) == expected
            edge, activation, norms, change, mask = expected
            position = next(p for p, name in LIVE if name == edge)
            flow = trace.edge(edge, position)
            assert re.fullmatch(r"(patched|received|current) \[(\S+, ){4}…\]", activation)
            assert f"‖current‖ {float(flow.current[0, position].norm()):.3g}" in norms
            assert f"‖patched‖ {float(flow.patched[0, position].norm()):.3g}" in norms
            effect = float(flow.effect[0, position].norm())
            assert f"clean→received: ‖Δ‖ {effect:.3g}, " in change
            assert mask == f"mask {LIVE[position, edge]:.2f}"
            short = next(
                rect
                for lines, rect in shorts.items()
                if f"{float(flow.clean[0, position].norm()):.3g}→" in lines[0]
            )
            assert page.hover((short[0] + short[2]) / 2, (short[1] + short[3]) / 2) == expected


def test_nodes_tell_their_names(page: Watched) -> None:
    seen = page.draw(ct.draw_seq_graph(wrapped(), scores({"A0.1->A1.2.Q": 1.0})))
    for node in seen["panels"][0]["nodes"]:
        left, top, right, bottom = node["rect"]
        assert page.hover((left + right) / 2, (top + bottom) / 2) == [node["name"]]


def test_nasty_tokens_show_as_text_and_run_nothing(page: Watched, tmp_path: Path) -> None:
    words = list(NASTY)
    trace = known_trace({}, len(words), to_strings=None)
    values = scores({(p, "A0.1->A1.2.Q"): 1.0 for p in range(len(words))}, len(words))
    path = tmp_path / "page.html"
    drawn = ct.draw_seq_graph(trace, values, seq_labels=words, file_path=path)
    seen = page.open(path)
    titles = [one for one in seen["annotations"] if one["lines"][-1].startswith("position ")]
    assert len(titles) == len(words)
    for one, word in zip(titles, words, strict=True):
        assert shows(one["lines"][0], word)
    assert page.page.locator("img").count() == 0
    assert page.page.locator("svg b, svg script, body b").count() == 0
    assert page.page.title() == ""
    page.page.wait_for_timeout(200)  # an image that fails to load would tell by now
    assert page.trouble == []
    width, height = drawn.layout.width, drawn.layout.height
    cut = [one["lines"][0] for one in titles if not Rect(*one["rect"]).inside(width, height)]
    assert cut == []


@pytest.mark.parametrize("values", [{}, {(2, "A0.1->A1.2.Q"): 1.0}], ids=["none", "one"])
def test_positions_without_edges_are_shown_too(page: Watched, values: dict, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    ct.draw_seq_graph(wrapped(SEQ), scores(values, SEQ), show_all_seq_pos=True, file_path=path)
    page.page.goto(path.as_uri())
    page.page.wait_for_timeout(300)
    assert page.trouble == []
    seen = page.page.evaluate(READ_DRAWING)
    shown = [one["lines"][0] for one in seen["annotations"]]
    assert [text for text in shown if text.startswith("position")] == [
        f"position {position}" for position in range(SEQ)
    ]
    assert ("No edge has |score| ≥ 0.01." in shown) == (not values)
    assert page.page.locator("path.sankey-link").count() == len(values)


def test_an_empty_picture_has_no_axes(page: Watched) -> None:
    seen = page.draw(ct.draw_seq_graph(wrapped(), scores({})))
    assert [one["lines"] for one in seen["annotations"]] == [["No edge has |score| ≥ 0.01."]]
    assert page.page.locator(".xtick, .ytick, .gridlayer path").count() == 0


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_what_an_empty_picture_says_lies_within_it(
    page: Watched, seq_len: int | None, orientation: Any
) -> None:
    drawn = wrapped(seq_len).trace(tokens(1)).draw(orientation=orientation, show_all_seq_pos=True)
    seen = page.draw(drawn)["annotations"]
    (note,) = (one for one in seen if one["lines"][0].startswith("No edge has"))
    assert " ".join(note["lines"]).endswith("score_threshold=0 and width='received' draw it.")
    assert Rect(*note["rect"]).inside(drawn.layout.width, drawn.layout.height)
    others = [Rect(*one["rect"]) for one in seen if one is not note]
    assert not any(Rect(*note["rect"]).overlaps(other) for other in others)


# Where Plotly draws things

GEOMETRY: dict[str, tuple[int, int, dict[str, Any]]] = {
    "1 edge": (1, 1, {}),
    "5 edges": (5, 2, {}),
    "12 edges": (12, 3, {}),
    "25 edges": (25, 4, {}),
    "40 edges": (40, 5, {}),
    "110 edges": (110, 6, {}),
    "60 edges, two of a rank": (60, 11, {}),
    "9 edges, two of a rank": (9, 7, {}),
    "9 edges, layers spaced": (9, 13, {"layer_spacing": True}),
    "14 edges at positions": (14, 8, {"positions": (0, 2, 5)}),
    "30 edges at positions": (30, 9, {"positions": (1, 2, 3, 4)}),
}


def drawing_of(case: str, orientation: str) -> Diagram:
    n_edges, seed, options = GEOMETRY[case]
    options = dict(options)
    positions = options.pop("positions", ())
    seq_len = SEQ if positions else None
    values = random_scores(n_edges, seed, positions, seq_len)
    return score_diagram(values, seq_len, orientation=orientation, **options)


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("case", GEOMETRY)
def test_nodes_links_and_labels_are_where_they_were_computed(
    page: Watched, case: str, orientation: str
) -> None:
    diagram = drawing_of(case, orientation)
    seen = page.draw(figure(diagram))
    assert seen["size"] == list(size_of(diagram))
    panels = [panel for panel in diagram.panels if panel.links]
    assert len(seen["panels"]) == len(panels)
    for panel, drawn in zip(panels, seen["panels"], strict=True):
        check_nodes(diagram, panel, drawn)
        check_links(diagram, panel, drawn)
    check_annotations(diagram, seen)


def check_nodes(diagram: Diagram, panel: Panel, drawn: dict[str, Any]) -> None:
    expected = node_rects(diagram, panel)
    assert len(drawn["nodes"]) == len(expected)
    for node in drawn["nodes"]:
        rect = expected[node["index"]]
        assert node["name"] == panel.nodes[node["index"]].name
        assert node["rect"] == pytest.approx(
            [rect.left, rect.top, rect.right, rect.bottom], abs=CLOSE
        )


def check_links(diagram: Diagram, panel: Panel, drawn: dict[str, Any]) -> None:
    expected = link_ends(diagram, panel)
    assert len(drawn["links"]) == len(expected) == len(panel.links)
    for link in drawn["links"]:
        number = panel.stacking[link["index"]]
        assert link["label"] == panel.links[number].label
        for end, share in zip(expected[number], (0.0, 1.0), strict=True):
            assert on_band(link, share) == pytest.approx(end, abs=CLOSE)
        spot = panel.links[number].short_at
        assert (spot is None) == (not panel.links[number].short)
        assert spot is None or distance_to_band(link, in_figure(diagram, spot)) <= CLOSE


def check_annotations(diagram: Diagram, seen: dict[str, Any]) -> None:
    """Names and short labels are drawn where the specification says, and inside the figure."""
    width, height = size_of(diagram)
    centres: list[tuple[str, tuple[float, float]]] = []
    for panel in diagram.panels:
        centres += [(n.name, in_figure(diagram, n.name_at)) for n in panel.nodes]
        centres += [(k.short, in_figure(diagram, k.short_at)) for k in panel.links if k.short_at]
    drawn = [
        (one["lines"][0], ((one["rect"][0] + one["rect"][2]) / 2, (one["rect"][1] + one["rect"][3]) / 2))
        for one in seen["annotations"]
    ]  # fmt: skip
    for text, (x, y) in centres:
        near = [
            text == shown and abs(x - left) <= CLOSE and abs(y - top) <= 2 * CLOSE
            for shown, (left, top) in drawn
        ]
        assert any(near), (text, x, y)
    for one in seen["annotations"]:
        assert Rect(*one["rect"]).inside(width, height, slack=CLOSE), one["lines"]


def corners(link: dict[str, Any]) -> list[float]:
    """Along start and end, and across: start above and below, end above and below."""
    numbers = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", link["d"])]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    # M start, C two handles and the end, L the end's other side, C two handles and the start.
    (x0, y0), _, _, (x1, y1), (_, y1_below), _, _, (_, y0_below) = points
    return [x0, x1, y0, y0_below, y1, y1_below]


def band(link: dict[str, Any], t: float) -> tuple[float, float, float]:
    """Along, and the two edges across, of a drawn link at a parameter of its cubic."""
    x0, x1, y0, y0_below, y1, y1_below = corners(link)
    steep = 3 * (1 - t) * t
    along = (1 - t) ** 3 * x0 + steep * (x0 + x1) / 2 + t**3 * x1
    start, end = (1 - t) ** 3 + steep * (1 - t), t**3 + steep * t
    return along, start * y0 + end * y1, start * y0_below + end * y1_below


def on_band(link: dict[str, Any], t: float) -> tuple[float, float]:
    """A point in the middle of a drawn link, in pixels of the figure."""
    along, above, below = band(link, t)
    a, b, c, d, e, f = link["matrix"]
    across = (above + below) / 2
    return a * along + c * across + e, b * along + d * across + f


def distance_to_band(link: dict[str, Any], at: tuple[float, float]) -> float:
    """How far a point is from the band of a drawn link, across the flow; 0 within it."""
    a, b, c, d, e, f = link["matrix"]
    x, y = at[0] - e, at[1] - f
    along, across = ((x * d - y * c) / (a * d - b * c), (a * y - b * x) / (a * d - b * c))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if band(link, middle)[0] < along else (low, middle)
    _, above, below = band(link, low)
    return max(min(above, below) - across, across - max(above, below), 0.0)


@pytest.mark.parametrize("orientation", ["h", "v"])
@pytest.mark.parametrize("n_edges", [1, 12, 40])
def test_net_viz_draws_nodes_apart_and_inside_its_interval(
    page: Watched, n_edges: int, orientation: str
) -> None:
    """In a figure of the user's own, beside another trace, with the size that it was told."""
    model = wrapped()
    values = random_scores(n_edges, seed=n_edges)
    diagram, _ = ct.net_viz(
        model, model.edges, values, (0.5, 1.0), orientation=orientation, size=(800, 400)
    )
    drawn = go.Figure([diagram, go.Scatter(x=[1, 2], y=[3, 4])])
    drawn.update_layout(
        width=900, height=900, margin={"l": 50, "r": 50, "t": 50, "b": 50}, yaxis_domain=[0, 0.4]
    )
    seen = page.draw(drawn)
    (panel,) = seen["panels"]
    assert len(panel["links"]) == n_edges
    rects = [Rect(*node["rect"]) for node in panel["nodes"]]
    for number, rect in enumerate(rects):
        assert rect.left >= 50 - CLOSE
        assert rect.right <= 850 + CLOSE
        assert rect.top >= 50 - CLOSE
        assert rect.bottom <= 450 + CLOSE
        assert not any(rect.overlaps(other, slack=CLOSE) for other in rects[:number])


def test_an_empty_net_viz_can_be_shown(page: Watched) -> None:
    model = wrapped()
    diagram, _ = ct.net_viz(model, model.edges, scores({}), (0.5, 1.0))
    drawn = go.Figure([diagram, go.Scatter(x=[1, 2], y=[3, 4])])
    page.draw(drawn)
    assert page.page.locator("path.sankey-link").count() == 0


# A missing browser


@pytest.mark.parametrize("required", ["", "1"])
def test_a_missing_browser_is_a_skip_here_and_a_failure_in_ci(
    required: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(browsers.REQUIRED, required)
    assert browsers.find_browser() is None
    outcome = pytest.fail.Exception if required else pytest.skip.Exception
    with pytest.raises(outcome, match="no Chrome or Chromium on this machine"):
        browsers.browser_or_skip()
