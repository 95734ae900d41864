"""The explorer: what its page knows, and what a person can do with it in a real browser."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.errors import CircuitTraceError, EdgeError, FigureError, InputError, MaskError
from circuit_trace.visualize.colors import THEMES
from circuit_trace.visualize.explorer import Explorer, explore
from circuit_trace.visualize.explorer.data import specification
from circuit_trace.visualize.explorer.page import render, to_json
from circuit_trace.visualize.text import number
from tests.browser import chromium
from tests.models import tokens
from tests.visualize.pictures import NASTY, SEQ, known_trace, random_scores, scores, wrapped
from tests.visualize.test_browser import Watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

WORDS = [" the", "<b>", "&amp;", "", "a\nb", "</script>"]
"""A token for each position."""

MASKS = {
    (1, "Resid Start->A0.2.K"): 1.0,
    (1, "Resid Start->A0.1.V"): 1.0,
    (1, "A0.1->A1.2.K"): 0.25,
    (1, "A0.1->Resid End"): 1.0,
    (3, "Resid Start->A0.0.Q"): 1.0,  # apart from the others: Plotly puts it beside them
    (3, "MLP 0->A1.0.Q"): 1.0,
    (3, "A1.0->Resid End"): 0.0,
    (5, "A0.3->A1.1.Q"): 1.0,
    (5, "A0.3->MLP 1"): -0.5,
    (5, "A1.1->MLP 1"): 1.0,
}
"""In the graph's order."""
SCORES = {edge: (-1) ** place * (place + 1) / 7 for place, edge in enumerate(MASKS)}
DIRECTION = torch.linspace(-1, 2, 10)


def flow(trace: ct.Trace, place: int) -> tuple[ct.EdgeFlow, int]:
    """What flowed along the edge at a place of MASKS, and its position."""
    position, name = list(MASKS)[place]
    return trace.edge(name, position), position


def expected(trace: ct.Trace, place: int) -> dict[str, float]:
    """An edge's numbers, computed from its own tensors."""
    edge, p = flow(trace, place)
    now, then, got = edge.current[0, p], edge.patched[0, p], edge.received[0, p]
    clean = edge.clean[0, p]
    return {
        "clean": float(clean.norm()),
        "effect": float((got - clean).norm()),
        "current": float(now.norm()),
        "patched": float(then.norm()),
        "delta": float((then - now).norm()),
        "received": float(got.norm()),
        "mask": float(edge.mask),
        "cosine": float(torch.cosine_similarity(clean, got, dim=0)),
        "score": list(SCORES.values())[place],
        "projection": float((got - clean) @ DIRECTION),
    }


@pytest.fixture(scope="module")
def trace() -> ct.Trace:
    return wrapped(SEQ).trace(tokens(1), corrupt=tokens(2), edges=MASKS)


def known(**options: Any) -> ct.Trace:
    """A trace of known numbers and of words at positions."""
    return known_trace(MASKS, SEQ, to_strings=lambda ids: WORDS[: len(ids)], **options)


# What the page knows


def test_specification(golden: Callable[[str, str], None]) -> None:
    found = specification(
        known(),
        scores=scores(SCORES, SEQ),
        direction=torch.tensor([1.0, 0, 0.5, 0, 0]),
    )
    columns = found.pop("edges")
    lines = [
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for part in (found, columns)
        for name, value in part.items()
    ]
    golden("explorer", "\n".join(lines) + "\n")


def test_columns_hold_what_the_edges_carried(trace: ct.Trace) -> None:
    spec = specification(trace, scores=scores(SCORES, SEQ), direction=DIRECTION)
    columns = spec["edges"]
    assert columns["name"] == [name for _, name in MASKS]
    for place in range(len(MASKS)):
        for name, value in expected(trace, place).items():
            assert columns[name][place] == pytest.approx(value, rel=1e-4, abs=1e-4), name
        edge, position = flow(trace, place)
        for name, vector in (("clean_values", edge.clean), ("received_values", edge.received)):
            assert columns[name][place] == pytest.approx(
                vector[0, position, :4].tolist(), rel=1e-4, abs=1e-5
            )
        assert spec["positions"][columns["position"][place]]["seq_idx"] == position
        for end, node in (("source", edge.edge.src), ("target", edge.edge.dest)):
            assert spec["nodes"][columns[end][place]] == {
                "name": node.unit,
                "kind": node.kind,
                "depth": node.depth,
            }


def test_a_pass_without_patches_has_no_patched_numbers() -> None:
    trace = wrapped().trace(tokens(1))
    spec = specification(trace)
    assert [key for key, _ in spec["quantities"]] == ["current"]
    assert spec["opens_with"] == "current"
    assert len(spec["edges"]["name"]) == trace.graph.n_edges
    assert not {"patched", "delta", "received", "cosine"} & set(spec["edges"])
    assert spec["positions"] == [{"seq_idx": None, "token": None}]


@pytest.mark.parametrize(
    ("edges", "names"),
    [
        (["A0.1->A1.2.K"], ["A0.1->A1.2.K"] * SEQ),
        ([(3, "A0.1->A1.2.K"), (1, "MLP 0->Resid End")], ["MLP 0->Resid End", "A0.1->A1.2.K"]),
        ("every other", None),
        ([], []),
    ],
)
def test_edges_are_named_as_elsewhere(edges: Any, names: list[str] | None) -> None:
    trace = known()
    if edges == "every other":
        edges = trace.edges[::2]
        names = [edge.name for edge in edges]
    assert specification(trace, edges=edges)["edges"]["name"] == names


@pytest.mark.parametrize("by", ["effect", "score", "current"])
def test_the_strongest_edges_go_into_the_page(by: str) -> None:
    patched = None if by == "current" else tokens(2)
    trace = wrapped(SEQ).trace(tokens(1), corrupt=patched, edges=None if patched is None else MASKS)
    all_edges = list(trace.graph.edges)
    values = random_scores(90, 5, tuple(range(SEQ)), SEQ)
    given = values if by == "score" else None
    spec = specification(trace, edges=all_edges, scores=given, max_edges=50)
    assert spec["opens_with"] == by
    assert spec["left_out"] == len(all_edges) - 50
    if by == "score":
        sizes = torch.tensor(sorted(abs(v) for t in values.values() for v in t.flatten().tolist()))
        smallest = float(sizes[-50])
    else:
        flows = [trace.edge(edge.name, edge.seq_idx) for edge in all_edges]
        vectors = [one.current if patched is None else one.effect for one in flows]
        pairs = zip(vectors, all_edges, strict=True)
        smallest = sorted(float(v[0, edge.seq_idx].norm()) for v, edge in pairs)[-50]
    shown = [abs(value) for value in spec["edges"][by]]
    assert len(shown) == 50
    assert min(shown) == pytest.approx(smallest, rel=1e-4)


def test_numbers_that_are_not_finite_are_null() -> None:
    spec = specification(known(current=(math.nan, 0, 0, 0, 0), patched=(math.inf, 0, 0, 0, 0)))
    assert set(spec["edges"]["current"]) == {None}
    assert set(spec["edges"]["delta"]) == {None}
    assert spec["edges"]["patched_values"][0] == [None, 0, 0, 0]
    json.dumps(spec, allow_nan=False)


def test_means_over_the_batch(trace: ct.Trace) -> None:
    spec = specification(trace, batch_idx="mean")
    norms = [float(flow(trace, 0)[0].current[b, 1].norm()) for b in range(trace.batch)]
    assert spec["edges"]["current"][0] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert spec["positions"][0]["token"] is None


# The page as a file


def test_data_cannot_end_its_element() -> None:
    words = [*NASTY, "\u2028\u2029", "\ud800"]
    text = to_json(words)
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()
    assert json.loads(text) == words


def test_the_same_trace_gives_the_same_small_page(trace: ct.Trace) -> None:
    page = trace.explore()
    assert page.html == trace.explore().html
    assert len(page.html.encode()) <= 6_000_000
    assert ".save('explorer.html')" in repr(page)
    assert len(repr(page)) < 100


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "page.html"
    page = explore(known(), file_path=path)
    assert path.read_text(encoding="utf-8") == page.html
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "page.html"
    with pytest.raises(FigureError) as error:
        Explorer("").save(path)
    assert re.fullmatch(
        rf"Cannot write {str(path)!r}: (File exists|Not a directory); one of its folders is a file\.",
        str(error.value),
    )


BAD: dict[str, tuple[dict[str, Any], type[CircuitTraceError], str]] = {
    "theme": ({"theme": "blue"}, FigureError, "theme must be one of light, dark; got 'blue'."),
    "max_edges": (
        {"max_edges": 0},
        FigureError,
        "max_edges must be a whole number above 0; got 0.",
    ),
    "extension": (
        {"file_path": "page.png"},
        FigureError,
        "The explorer is a page: expected an .html path, got 'page.png'.",
    ),
    "path": (
        {"file_path": 3},
        FigureError,
        "file_path must be a path such as 'explorer.html'; got 3.",
    ),
    "batch": (
        {"batch_idx": 7},
        InputError,
        'batch_idx=7 is outside the traced batch: expected 0 to 1, or "mean".',
    ),
    "edges": (
        {"edges": 3},
        EdgeError,
        "Cannot read 3 as edges: expected names, Edge objects or pairs (seq_idx, name), or a "
        "mapping from them to masks.",
    ),
    "scores": (
        {"scores": 3},
        MaskError,
        "The scores must be PruneScores, a dict from a module's name (such as "
        "'blocks.0.hook_q_input') to a tensor; got int.",
    ),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    options, kind, message = BAD[case]
    with pytest.raises(kind) as error:
        explore(known(), **options)
    assert str(error.value) == message


def test_something_else_than_a_trace() -> None:
    with pytest.raises(FigureError) as error:
        explore("trace")  # pyright: ignore[reportArgumentType]
    assert str(error.value) == "Expected a Trace to explore; got str."


# The page in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Opened(Watched):
    """An explorer's page and what its tests ask of it."""

    def show(self, spec_or_page: dict[str, Any] | Explorer, folder: Path) -> None:
        path = folder / "page.html"
        is_page = isinstance(spec_or_page, Explorer)
        page = spec_or_page if is_page else Explorer(render(spec_or_page, THEMES["light"]))
        page.save(path)
        self.page.goto(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until what was done is shown: changes are shown in the next frame."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        )

    def links(self) -> Locator:
        return self.page.locator(".sankey-link")

    def rows(self) -> list[str]:
        return self.page.locator("#list .edge").all_inner_texts()

    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def facts(self) -> dict[str, str]:
        """The numbers of the chosen edge, as they are shown."""
        names = self.page.locator("#details dt").all_inner_texts()
        return dict(zip(names, self.page.locator("#details dd").all_inner_texts(), strict=True))

    def widths(self) -> dict[str, float]:
        """How wide each link is drawn where it leaves its source, by its description."""
        found = self.page.evaluate(
            """() => [...document.querySelectorAll('.sankey-link')].map(link => {
              const numbers = link.getAttribute('d').match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
              return [link.getAttribute('aria-label').split(':')[0], numbers.at(-1) - numbers[1]];
            })"""
        )
        return dict(found)

    def focused(self, attribute: str) -> str | None:
        return self.page.evaluate("name => document.activeElement.getAttribute(name)", attribute)

    def tab_to(self, attribute: str, start: str, most: int = 60) -> None:
        """Press Tab until the focus is on an element whose attribute begins so."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if (self.focused(attribute) or "").startswith(start):
                return
        raise AssertionError(f"Tab never came to {attribute}={start}…")


def opened(browser: Browser) -> Opened:
    return Opened(browser.new_page(viewport={"width": 1300, "height": 800}))


@pytest.fixture(scope="module")
def shared(
    browser: Browser, trace: ct.Trace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    found = opened(browser)
    page = explore(trace, scores=scores(SCORES, SEQ), direction=DIRECTION)
    found.show(page, tmp_path_factory.mktemp("shared"))
    found.page.evaluate("window.start = { ...state }")
    yield found
    assert found.trouble == []


@pytest.fixture
def page(shared: Opened) -> Iterator[Opened]:
    """The page of `trace`, as it is when it opens; nothing untoward may happen on it."""
    shared.page.evaluate("set(start); choose(null); document.activeElement.blur()")
    shared.page.locator("#quantity").select_option("delta")
    shared.settle()
    yield shared
    assert shared.trouble == []


@pytest.fixture
def fresh(browser: Browser) -> Iterator[Opened]:
    """A page for what the test opens; nothing untoward may happen on it."""
    found = opened(browser)
    yield found
    found.page.close()
    assert found.trouble == []


def strongest(trace: ct.Trace, quantity: str) -> list[tuple[float, str, int]]:
    """The size, name and position of each edge, the strongest first."""
    edges = [
        (abs(expected(trace, place)[quantity]), *edge[::-1]) for place, edge in enumerate(MASKS)
    ]
    return sorted(edges, reverse=True)


@pytest.mark.browser
@pytest.mark.parametrize(
    "quantity", ["current", "patched", "delta", "received", "mask", "score", "projection"]
)
def test_widths_labels_and_list_show_the_quantity(
    page: Opened, trace: ct.Trace, quantity: str
) -> None:
    page.page.locator("#quantity").select_option(quantity)
    page.settle()
    values = {
        f"{name}, position {p}": expected(trace, place)[quantity]
        for place, (p, name) in enumerate(MASKS)
    }
    widths = page.widths()
    assert set(widths) == set(values)
    scale = max(widths.values()) / max(abs(value) for value in values.values())
    for edge, value in values.items():
        assert widths[edge] == pytest.approx(max(abs(value) * scale, 1.5), rel=2e-3, abs=0.02)
    by_size = [(round(size, 5), name) for size, name, _ in strongest(trace, quantity)]
    shown = {name: abs(values[f"{name}, position {p}"]) for p, name in MASKS}
    assert [round(shown[name], 5) for name in page.rows()] == [size for size, _ in by_size]
    written = page.page.locator("#list .value").all_inner_texts()
    assert sorted(written) == sorted(number(value) for value in values.values())
    on_links = page.page.locator("#words .number").all_text_contents()
    assert len(on_links) >= 5
    assert set(on_links) <= set(written)


@pytest.mark.browser
def test_colors_tell_masks_and_signs(page: Opened) -> None:
    def colors() -> dict[str, str]:
        return dict(
            page.page.locator(".sankey-link").evaluate_all(
                "all => all.map(one => [one.getAttribute('aria-label').split(',')[0], "
                "getComputedStyle(one).fill])"
            )
        )

    by_mask = colors()
    assert by_mask["Resid Start->A0.1.V"] == "rgb(213, 94, 0)"  # patched
    assert by_mask["A0.1->A1.2.K"] == by_mask["A0.3->MLP 1"] == "rgb(230, 159, 0)"  # between
    assert by_mask["A1.0->Resid End"] == "rgb(110, 110, 110)"  # current
    page.page.locator("#quantity").select_option("score")
    page.settle()
    for (_, name), score in SCORES.items():
        assert colors()[name] == ("rgb(0, 90, 200)" if score > 0 else "rgb(204, 30, 30)")
    legend = page.page.locator("#legend").inner_text()
    assert "positive score" in legend
    assert "negative score" in legend
    assert "patched" not in legend


@pytest.mark.browser
def test_the_threshold_moves_by_keyboard_and_by_number(page: Opened, trace: ct.Trace) -> None:
    sizes = [size for size, _, _ in strongest(trace, "delta")]
    page.page.locator("#slider").focus()
    assert page.status() == f"{len(MASKS)} of {len(MASKS)} edges shown."
    page.page.keyboard.press("End")
    page.settle()
    assert page.status() == f"1 of {len(MASKS)} edges shown."
    assert page.page.locator("#threshold").input_value() == number(sizes[0])
    assert page.page.locator("#slider").get_attribute("aria-valuetext") == number(sizes[0])
    for _ in range(3):
        page.page.keyboard.press("PageDown")
    page.settle()
    threshold = sizes[0] * int(page.page.locator("#slider").input_value()) / 1000
    assert threshold < sizes[0]
    assert len(page.rows()) == page.links().count() == sum(size >= threshold for size in sizes)
    between = (sizes[3] + sizes[4]) / 2
    page.page.locator("#threshold").fill(f"{between:.6f}")
    page.settle()
    assert page.rows() == [name for _, name, _ in strongest(trace, "delta")[:4]]
    assert page.links().count() == 4
    page.page.get_by_role("button", name="Show all").click()
    page.settle()
    assert page.links().count() == len(MASKS)
    assert page.page.locator("#threshold").input_value() == "0"


@pytest.mark.browser
def test_positions_are_picked(page: Opened) -> None:
    boxes = page.page.locator("#positions input")
    assert page.page.locator("#positions label").all_inner_texts() == ["1", "3", "5"]
    titles = page.page.locator("#words .title")
    assert titles.all_text_contents() == [f"(position {p})" for p in (1, 3, 5)]
    boxes.nth(1).focus()
    page.page.keyboard.press("Space")
    page.settle()
    assert titles.all_text_contents() == ["(position 1)", "(position 5)"]
    assert page.links().count() == sum(p != 3 for p, _ in MASKS) == len(page.rows())
    page.page.get_by_role("button", name="None").click()
    page.settle()
    assert page.status() == f"0 of {len(MASKS)} edges shown."
    assert not page.page.locator("#canvas").is_visible()
    assert page.rows() == []
    page.page.get_by_role("button", name="All", exact=True).click()
    page.settle()
    assert page.links().count() == len(MASKS)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("query", "part"), [("a1.1", "A1.1"), ("MLP ", "MLP"), ("resid e", "Resid E")]
)
def test_a_search_keeps_the_edges_of_nodes(page: Opened, query: str, part: str) -> None:
    page.page.locator("#search").press_sequentially(query)
    page.settle()
    names = sorted(name for _, name in MASKS if part in name)
    assert 0 < len(names) < len(MASKS)
    assert sorted(page.rows()) == names
    assert page.links().count() == len(names)
    page.page.locator("#search").fill("A9.9")
    page.settle()
    assert page.rows() == []


@pytest.mark.browser
@pytest.mark.parametrize("place", [2, 7])
def test_a_click_on_a_link_shows_its_numbers(page: Opened, trace: ct.Trace, place: int) -> None:
    position, name = list(MASKS)[place]
    link = page.page.locator(f".sankey-link[aria-label^='{name}, position {position}']")
    x, y = link.evaluate(
        """path => {
          const m = path.getScreenCTM();
          const [x, y] = path.getAttribute('d').match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
          return [m.a * x + m.e + 4, m.d * y + m.f + 1];  // just inside, where it leaves its source
        }"""
    )
    page.page.mouse.click(x, y)
    assert page.page.locator("#details h2").inner_text() == name
    assert f"Position {position}" in page.page.locator("#details").inner_text()
    numbers, (edge, p) = expected(trace, place), flow(trace, place)
    facts = page.facts()
    for shown, column in {
        "mask": "mask",
        "‖current‖": "current",
        "‖patched‖": "patched",
        "‖clean‖": "clean",
        "‖patched − current‖": "delta",
        "‖received − clean‖": "effect",
        "‖received‖": "received",
        "cosine, clean → received": "cosine",
        "score": "score",
    }.items():
        assert float(facts[shown]) == pytest.approx(numbers[column], rel=6e-3)
    ends = facts["projection, clean → received"].split(" → ")
    before, after = (float(one) for one in ends)
    assert before == pytest.approx(float(edge.clean[0, p] @ DIRECTION), rel=6e-3, abs=1e-3)
    assert after == pytest.approx(float(edge.received[0, p] @ DIRECTION), rel=6e-3, abs=1e-3)
    for shown, vector in (("clean", edge.clean), ("received", edge.received)):
        *values, rest = facts[shown].strip("[]").split(", ")
        assert rest == "…"
        assert [float(one) for one in values] == pytest.approx(
            vector[0, p, :4].tolist(), rel=6e-3, abs=1e-3
        )
    assert page.page.locator("#list .chosen .edge").inner_text() == name
    assert page.page.locator(".sankey-link.chosen").get_attribute("aria-label") == (
        link.get_attribute("aria-label")
    )
    page.page.get_by_role("button", name="Close").click()
    assert page.facts() == {}
    assert page.page.locator(".chosen").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("back", ["Escape", "Show all"])
def test_a_click_on_a_node_isolates_it(page: Opened, back: str) -> None:
    page.page.locator(".sankey-node[aria-label^='A0.1, position 1']").click()
    page.settle()
    own = sorted(name for _, name in MASKS if "A0.1" in name)
    assert sorted(page.rows()) == own
    assert page.links().count() == len(own) < len(MASKS)
    assert "Only what flows in and out of A0.1" in page.status()
    if back == "Escape":
        page.page.keyboard.press("Escape")
    else:
        page.page.get_by_role("button", name="Show all").click()
    page.settle()
    assert page.status() == f"{len(MASKS)} of {len(MASKS)} edges shown."
    assert page.links().count() == len(MASKS)
    assert page.page.get_by_role("button", name="Show all").is_disabled()


@pytest.mark.browser
def test_by_keyboard_from_the_page_to_a_links_numbers(page: Opened, trace: ct.Trace) -> None:
    page.page.reload()
    page.settle()
    page.page.evaluate("window.start = { ...state }")
    page.tab_to("data-key", "edge-")
    outline = "getComputedStyle(document.activeElement).strokeWidth"
    assert page.page.evaluate(outline) == "2px"  # the focus is seen
    label = page.focused("aria-label") or ""
    page.page.keyboard.press("Enter")
    name = page.page.locator("#details h2").inner_text()
    assert label.startswith(f"{name}, position ")
    page.tab_to("data-key", "node-")
    node = page.focused("data-key")
    unit = (page.focused("aria-label") or "").split(",")[0]
    page.page.keyboard.press("Space")
    page.settle()
    assert page.focused("data-key") == node  # although the diagram was drawn anew
    assert page.rows()
    assert all(unit in name for name in page.rows())
    page.page.keyboard.press("Escape")
    page.settle()
    assert len(page.rows()) == len(MASKS)


@pytest.mark.browser
def test_by_keyboard_past_the_diagram_through_the_list(page: Opened, trace: ct.Trace) -> None:
    page.page.locator("#show-all").focus()
    page.page.locator("#no-positions").focus()
    page.tab_to("id", "skip", 8)
    assert page.page.locator("#skip").evaluate("one => getComputedStyle(one).clipPath") == "none"
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    _, name, position = strongest(trace, "delta")[1]
    assert page.page.locator("#details h2").inner_text() == name
    assert f"Position {position}" in page.page.locator("#details").inner_text()
    page.page.keyboard.press("ArrowUp")
    page.page.keyboard.press("Space")
    assert page.page.locator("#details h2").inner_text() == strongest(trace, "delta")[0][1]


@pytest.mark.browser
def test_controls_have_names(page: Opened) -> None:
    page.page.locator("#list button").first.click()
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [tabindex="0"]')].filter(one =>
          !(one.labels?.length || one.getAttribute('aria-label') || one.innerText?.trim())
        ).map(one => one.outerHTML)"""
    )
    assert unnamed == []
    roles = page.page.locator(".sankey-link, .sankey-node").evaluate_all(
        "all => [...new Set(all.map(one => one.getAttribute('role')))]"
    )
    assert roles == ["button"]


FAN = [
    f"{a}->{b}" for h in range(4) for a, b in (("Resid Start", f"A0.{h}.V"), (f"A0.{h}", "MLP 1"))
]


@pytest.mark.browser
@pytest.mark.parametrize(("edges", "n_nodes"), [(None, 12), (FAN, 6)], ids=["all", "fan"])
def test_names_and_nodes_lie_apart(
    fresh: Opened, edges: list[str] | None, n_nodes: int, tmp_path: Path
) -> None:
    fresh.show(explore(wrapped().trace(tokens(1)), edges=edges), tmp_path)
    boxes = fresh.page.evaluate(
        """() => [...document.querySelectorAll('.node-rect, #words .name')].map(one => {
          const box = one.getBoundingClientRect();
          return [one.textContent, box.left, box.top + 2, box.right, box.bottom - 2];
        })"""
    )
    assert len(boxes) == 2 * n_nodes  # each with its name
    overlapping = [
        (one, other)
        for at, one in enumerate(boxes)
        for other in boxes[:at]
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]
    assert overlapping == []
    plot = fresh.page.locator("#canvas").bounding_box()
    assert plot is not None
    for _, left, top, right, bottom in boxes:
        assert plot["x"] <= left < right <= plot["x"] + plot["width"]
        assert plot["y"] <= top < bottom <= plot["y"] + plot["height"]


@pytest.mark.browser
def test_nasty_names_show_as_text_and_run_nothing(fresh: Opened, tmp_path: Path) -> None:
    nasty = ["</script><img src=x onerror=alert(1)>", "<b>bold</b>", "&amp;", "%{label}", "$x$"]
    spec = specification(known(), scores=scores(SCORES, SEQ))
    for place, position in enumerate(spec["positions"]):
        position["token"] = nasty[place]
    for place, node in enumerate(spec["nodes"]):
        node["name"] = nasty[place % len(nasty)]
    n_edges = len(spec["edges"]["name"])
    spec["edges"]["name"] = [nasty[place % len(nasty)] for place in range(n_edges)]
    spec["edges"]["promotes"] = [[[word, 1.0] for word in nasty]] * n_edges
    fresh.show(spec, tmp_path)
    assert set(fresh.rows()) == set(nasty)
    assert set(fresh.page.locator("#words .name").all_text_contents()) == set(nasty)
    titles = [f"{word} (position {p})" for word, p in zip(nasty, (1, 3, 5), strict=False)]
    assert fresh.page.locator("#words .title").all_text_contents() == titles
    fresh.page.locator("#list button").first.click()
    assert fresh.page.locator("#details .tokens bdi").all_inner_texts() == nasty
    for word in nasty:
        node = fresh.page.locator(f".sankey-node[aria-label^='{word},']").first
        x, y = node.evaluate(
            "one => {const b = one.getBoundingClientRect();"
            " return [b.left + b.width / 2, b.top + b.height / 2]}"
        )
        left, top = fresh.page.evaluate(
            "() => {const b = document.querySelector('.main-svg').getBoundingClientRect();"
            " return [b.left, b.top]}"
        )
        assert fresh.hover(x - left, y - top) == [word]
    assert fresh.page.locator("img, svg b, svg script, aside b, header b").count() == 0
    fresh.page.wait_for_timeout(100)  # an image that fails to load would tell by now


@pytest.mark.browser
def test_tokens_of_positions_and_those_promoted_and_suppressed(
    fresh: Opened, tmp_path: Path
) -> None:
    spec = specification(known())
    n_edges = len(spec["edges"]["name"])
    spec["edges"]["promotes"] = [[["a", 2.0], [" b", 1.5]]] * n_edges
    spec["edges"]["suppresses"] = [[["c", -0.25]]] * n_edges
    fresh.show(spec, tmp_path)
    labels = fresh.page.locator("#positions label bdi").all_text_contents()
    assert labels == ["<b>", "∅", "</script>"]
    assert fresh.page.locator("#words .title").all_text_contents()[0] == "<b> (position 1)"
    fresh.page.locator("#list button").first.click()
    rows = fresh.page.locator("#details dd ul")
    assert rows.nth(0).locator("li").all_text_contents() == ["a 2", " b 1.5"]
    assert rows.nth(1).locator("li").all_text_contents() == ["c -0.25"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [640, 320])
def test_a_narrow_page_does_not_scroll_sideways(fresh: Opened, width: int, tmp_path: Path) -> None:
    fresh.page.set_viewport_size({"width": width, "height": 700})
    words = ["internationalization" * 3, "漢字" * 20, " the", "W" * 60, "a", "b"]
    trace = known_trace(MASKS, SEQ, to_strings=lambda ids: words)
    fresh.show(explore(trace, scores=scores(SCORES, SEQ)), tmp_path)
    fresh.page.locator("#list button").first.click()
    scrolled = "document.documentElement.scrollWidth"
    assert fresh.page.evaluate(scrolled) == width
    details = fresh.page.locator("#details dl")
    assert details.is_visible()
    box = details.bounding_box()
    assert box is not None
    assert box["y"] + 40 < 700  # in sight, wherever the page is scrolled


@pytest.mark.browser
def test_many_edges_are_drawn_in_part(fresh: Opened, tmp_path: Path) -> None:
    trace = wrapped(SEQ).trace(tokens(1), corrupt=tokens(2), edges=wrapped(SEQ).edges)
    spec = specification(trace, max_edges=600)
    for name, column in spec["edges"].items():  # as many as fit, without a larger model
        spec["edges"][name] = (column * 4)[:2000]
    fresh.show(spec, tmp_path)
    assert fresh.links().count() == 300
    assert len(fresh.rows()) == 500
    assert fresh.status() == (
        "2,000 of 2,000 edges shown. The diagram draws the 300 strongest. The list names the 500 "
        "strongest. 60 weaker edges left out of this page (max_edges)."
    )


@pytest.mark.browser
def test_edges_without_a_number(fresh: Opened, tmp_path: Path) -> None:
    spec = specification(known())
    spec["edges"]["delta"][0] = None
    spec["edges"]["cosine"] = [None] * len(MASKS)
    fresh.show(spec, tmp_path)
    n = len(MASKS)
    assert fresh.status() == f"{n - 1} of {n} edges shown. 1 edge without a finite number."
    fresh.page.locator("#list button").first.click()
    assert fresh.facts()["cosine, current → patched"] == "—"


@pytest.mark.browser
def test_a_page_of_no_edges(fresh: Opened, tmp_path: Path) -> None:
    fresh.show(explore(known(), edges=[]), tmp_path)
    assert fresh.status() == "0 of 0 edges shown."


@pytest.mark.browser
def test_a_notebook_shows_the_page_in_a_sandbox(fresh: Opened, tmp_path: Path) -> None:
    shown = explore(known(), theme="dark")._repr_html_()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{shown}", encoding="utf-8")
    fresh.page.goto(path.as_uri())
    inside = fresh.page.frame_locator("iframe")
    inside.locator(".sankey-link").first.wait_for()
    assert inside.locator(".sankey-link").count() == len(MASKS)
    inside.locator("#list button").first.click()
    assert inside.locator("#details dl").is_visible()
    paper = inside.locator("html").evaluate("one => getComputedStyle(one).backgroundColor")
    assert paper == "rgb(22, 24, 29)"
    assert len(shown) < 2_200_000
    held = re.search(r'atob\("(.*?)"\)', html.unescape(shown))
    assert held
    assert gzip.decompress(base64.b64decode(held[1])).decode() == (
        explore(known(), theme="dark").html
    )
