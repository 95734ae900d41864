"""The picture that stays in a notebook lies where Plotly, in a real browser, draws the same figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

import circuit_trace as ct
from circuit_trace.score.faithfulness import Faithfulness
from circuit_trace.visualize.notebook import PLOTLY
from circuit_trace.visualize.still import still
from circuit_trace.visualize.still.words import lines_of
from tests.browser import chromium
from tests.visualize.pictures import NASTY, SEQ, known_trace, random_scores, scores, shows, wrapped
from tests.visualize.test_browser import Watched

LINKS, POINTS, WORDS = 1.0, 3.0, 3.5
"""Pixels by which links and nodes, the points of curves, and words may lie elsewhere. Plotly moves the
axes down where a legend is taller than their margin."""

READ = """root => {
  const from = root.querySelector('svg').getBoundingClientRect();
  const all = selector => [...root.querySelectorAll(selector)];
  const rects = selector => all(selector).filter(one => !one.closest('.legend')).map(one => {
    const box = one.getBoundingClientRect();
    return [box.left - from.left, box.top - from.top, box.right - from.left, box.bottom - from.top];
  });
  const words = [];
  for (const text of all('text:not(.node-label)')) {
    const lines = text.querySelectorAll('tspan.line');
    for (const line of lines.length ? lines : [text]) {
      const box = line.getBoundingClientRect();
      if (line.textContent.trim() && box.width > 2) {
        words.push([line.textContent.trim(),
          (box.left + box.right) / 2 - from.left, (box.top + box.bottom) / 2 - from.top]);
      }
    }
  }
  return {
    links: rects('path.sankey-link'),
    nodes: rects('.node-rect, rect.sankey-node'),
    points: rects('.scatterlayer path.point, .point'),
    words,
    size: [from.width, from.height],
  };
}"""


def curve(errors: float = 0.2, n_sizes: int = 4) -> Faithfulness:
    """Faithfulness from 0 to 1 over circuits of 5 to all 5,000 edges, of two prompts."""
    height = torch.linspace(0, 1, n_sizes)
    values = torch.stack([height - errors, height + errors], dim=1)
    fractions = (0.001, 0.03, 0.2, 1.0)[-n_sizes:]
    counts = tuple(round(5000 * one) for one in fractions)
    ends = torch.ones(2), torch.zeros(2)
    return Faithfulness("logit_diff", "complement", "top", fractions, counts, 5000, values, *ends)


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "5 edges": lambda: ct.draw_seq_graph(wrapped(), random_scores(5, seed=2)),
    "25 edges": lambda: ct.draw_seq_graph(wrapped(), random_scores(25, seed=4)),
    "25 edges down": lambda: ct.draw_seq_graph(
        wrapped(), random_scores(25, seed=4), orientation="v"
    ),
    "positions": lambda: ct.draw_seq_graph(
        wrapped(SEQ),
        random_scores(12, seed=2, positions=(1, 4), seq_len=SEQ),
        seq_labels=list("abcdef"),
        theme="dark",
    ),
    "positions down": lambda: ct.draw_seq_graph(
        wrapped(SEQ),
        random_scores(12, seed=2, positions=(1, 4), seq_len=SEQ),
        orientation="v",
        layer_spacing=True,
    ),
    "a pass and its table": lambda: known_trace(
        {(1, "A0.1->A1.2.Q"): 1.0, (4, "MLP 0->Resid End"): -0.25}, SEQ
    ).draw(table=True),
    "side by side": lambda: ct.draw_difference(
        random_scores(9, seed=5), random_scores(9, seed=6), model=wrapped(), side_by_side=True
    ),
    "no edge": lambda: ct.draw_seq_graph(wrapped(), scores({})),
    "a curve": lambda: curve().draw(),
    "two curves": lambda: ct.draw_faithfulness({"<b>": curve(), "other": curve(0.5)}, theme="dark"),
    "linear": lambda: curve().draw(log=False, size=(500, 300)),
    "one size": lambda: curve(n_sizes=1).draw(),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A page with Plotly in it, and a place beside for what is drawn here."""
    with chromium() as browser:
        watched = Watched(browser.new_page(viewport={"width": 1600, "height": 1200}))
        path = tmp_path_factory.mktemp("page") / "start.html"
        ct.draw_seq_graph(wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=path)
        watched.open(path)
        watched.page.evaluate(
            "() => document.body.appendChild(document.createElement('div')).id = 'still'"
        )
        yield watched
        assert watched.trouble == []


def both(page: Watched, drawn: go.Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where Plotly draws everything, and where the picture has it."""
    page.draw(drawn)
    page.page.evaluate("svg => { document.getElementById('still').innerHTML = svg; }", still(drawn))
    plots = page.page.locator(".js-plotly-plot").evaluate(READ)
    return plots, page.page.locator("#still").evaluate(READ)


@pytest.mark.browser
@pytest.mark.parametrize("name", FIGURES)
def test_everything_lies_where_plotly_draws_it(name: str, page: Watched) -> None:
    plotlys, ours = both(page, FIGURES[name]())
    assert ours["size"] == plotlys["size"]
    for kind, close in (("links", LINKS), ("nodes", LINKS), ("points", POINTS)):
        assert len(ours[kind]) == len(plotlys[kind]), kind
        for mine, theirs in zip(sorted(ours[kind]), sorted(plotlys[kind]), strict=True):
            assert mine == pytest.approx(theirs, abs=close), kind
    missing = []
    left = list(ours["words"])
    for text, x, y in plotlys["words"]:
        near = [
            one for one in left if one[0] == text and max(abs(one[1] - x), abs(one[2] - y)) < WORDS
        ]
        if near:
            left.remove(near[0])
        else:
            missing.append((text, x, y, [one for one in left if one[0] == text]))
    assert missing == []
    assert left == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_whole_and_small(name: str) -> None:
    drawn = FIGURES[name]()
    picture = still(drawn)
    assert picture is not None
    root = ElementTree.fromstring(picture)
    assert (root.get("width"), root.get("height")) == (
        str(drawn.layout.width),
        str(drawn.layout.height),
    )
    assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {
        *("svg", "g", "path", "rect", "line", "circle", "polygon", "text", "tspan")
    }
    assert len(picture) < 30_000


@pytest.mark.parametrize("token", NASTY)
def test_nasty_tokens_are_text(token: str) -> None:
    values = scores({(0, "A0.1->A1.2.Q"): 1.0}, SEQ)
    drawn = ct.draw_seq_graph(wrapped(SEQ), values, seq_labels=[token, *"bcdef"])
    picture = still(drawn)
    assert picture is not None
    texts = ["".join(one.itertext()) for one in ElementTree.fromstring(picture).iter()]
    assert any(shows(text, token) for text in texts if text)


def test_what_this_cannot_draw_has_no_picture() -> None:
    drawn = FIGURES["5 edges"]()
    assert still(drawn.add_bar(x=[1], y=[2])) is None
    assert still(go.Figure()) is None
    assert still(go.Figure(FIGURES["a curve"]()).update_layout(width=None)) is None


CHANGES: list[Callable[[go.Figure], go.Figure]] = [
    lambda drawn: drawn.update_traces(node_color="red", link_color="blue"),
    lambda drawn: drawn.update_traces(link_value=None),
    lambda drawn: drawn.update_traces(node_x=None, node_y=None),
    lambda drawn: drawn.update_traces(selector={"type": "sankey"}, domain=None),
    lambda drawn: drawn.update_annotations(text=None, font=None),
    lambda drawn: drawn.update_layout(margin=None, font=None, annotations=None),
    lambda drawn: drawn.add_scatter(x=["a", "b"], y=[1, None]),
    lambda drawn: drawn.update_layout(title={"text": "mine", "x": None}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_keeps_a_notebook_from_showing_the_figure(
    change: Callable[[go.Figure], go.Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    drawn = change(FIGURES["5 edges"]())
    bundle = drawn._repr_mimebundle_()
    assert bundle[PLOTLY]["layout"]["width"] == drawn.layout.width
    picture = bundle.get("image/svg+xml")
    assert picture is None or ElementTree.fromstring(picture).tag.endswith("svg")


def test_a_later_change_is_in_the_picture() -> None:
    drawn = FIGURES["5 edges"]().update_layout(title="<i>named</i>")
    drawn.update_layout(width=1234).add_annotation(
        x=0.5, y=0.5, text="mine", xref="paper", yref="paper"
    )
    picture = still(drawn)
    assert picture is not None
    assert 'width="1234"' in picture
    assert ">mine</text>" in picture
    assert ">named</tspan></text>" in picture


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a &amp; b", ["a &amp; b"]),
        ("<b>x</b>", ['<tspan font-weight="bold">x</tspan>']),
        (
            "<i>x<br>y",
            ['<tspan font-style="italic">x</tspan>', '<tspan font-style="italic">y</tspan>'],
        ),
        (
            "<span style='color: #123'>■</span> is",
            ['<tspan style="fill: #123">■</tspan> is'],
        ),
        ("x < y </b>", ["x &lt; y "]),
        ("", [""]),
    ],
)
def test_markup(text: str, lines: list[str]) -> None:
    assert [
        line.replace("tspan  ", "tspan ").replace(" >", ">") for line in lines_of(text)
    ] == lines
