"""Figures become files: pictures through Kaleido, and what happens where there is no browser."""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from choreographer.browsers.chromium import Chromium

import circuit_trace as ct
from circuit_trace.visualize.images import picture_size
from circuit_trace.visualize.write import FORMATS, IMAGES, File, check_path, write
from tests.browser import browser_or_skip
from tests.visualize.pictures import (
    SEQ,
    known_trace,
    random_scores,
    score_diagram,
    scores,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The kopts argument is ignored")
"""Plotly passes options that a Kaleido which runs already has no use for."""

BOX = re.compile(rb"/MediaBox \[(\S+) (\S+) (\S+) (\S+)\]")
"""The size of a PDF's page, in points."""

SIGNATURES: dict[str, Callable[[bytes], bool]] = {
    ".png": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    ".svg": lambda data: data.startswith(b"<svg ") and data.rstrip().endswith(b"</svg>"),
    ".pdf": lambda data: data.startswith(b"%PDF-") and b"%%EOF" in data[-32:],
    ".jpg": lambda data: data.startswith(b"\xff\xd8\xff"),
    ".jpeg": lambda data: data.startswith(b"\xff\xd8\xff"),
    ".webp": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
}


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
@pytest.mark.parametrize("suffix", [*IMAGES, ".PNG", ".Svg"])
def test_a_picture_of_each_type(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written relative to the working directory, into a folder that is made."""
    monkeypatch.chdir(tmp_path)
    ct.draw_seq_graph(wrapped(), random_scores(6, seed=1), file_path=f"new/picture{suffix}")
    data = (tmp_path / "new" / f"picture{suffix}").read_bytes()
    assert SIGNATURES[suffix.lower()](data)


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
@pytest.mark.parametrize("orientation", ["h", "v"])
def test_a_png_has_twice_the_pixels_of_the_figure(orientation: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    drawn = ct.draw_seq_graph(
        wrapped(SEQ),
        random_scores(12, seed=2, positions=(1, 4), seq_len=SEQ),
        orientation=orientation,
        file_path=path,
    )
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert (width, height) == (2 * drawn.layout.width, 2 * drawn.layout.height)
    assert 400 < drawn.layout.width < 2000


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
def test_an_svg_has_the_size_and_the_words_of_the_figure(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    values = scores({(1, "A0.1->A1.2.Q"): 1.0}, SEQ)
    labels = ["<b>&$x$", "$\\a$ </script>", *"cdef"]
    drawn = ct.draw_seq_graph(wrapped(SEQ), values, seq_labels=labels, file_path=path)
    text = path.read_text(encoding="utf-8")
    assert f'width="{drawn.layout.width}" height="{drawn.layout.height}"' in text
    for shown in ("A0.1", "A1.2", "Q 1.00", "$\\a$ </script>", "position 1"):
        assert f">{shown}<" in html.unescape(text)
    assert "<script" not in text


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
@pytest.mark.parametrize("values", [{}, {(1, "A0.1->A1.2.Q"): 1.0}], ids=["none", "one"])
def test_positions_without_edges_can_be_written(values: dict, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    ct.draw_seq_graph(wrapped(SEQ), scores(values, SEQ), show_all_seq_pos=True, file_path=path)
    text = path.read_text(encoding="utf-8")
    assert text.count('class="sankey-link"') == len(values)
    assert all(f">position {position}<" in text for position in range(SEQ))


@pytest.mark.browser
def test_a_path_that_cannot_be_written(kaleido_server: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "picture.png"
    with pytest.raises(ct.errors.FigureError) as caught:
        ct.draw_seq_graph(wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=path)
    assert str(caught.value).startswith(f"Cannot write {str(path)!r}: ")


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Chrome: Kaleido's own search finds none."""
    import kaleido

    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda *_a, **_k: None))
    # A Kaleido that other tests keep running has its browser already.
    monkeypatch.setattr(kaleido._global_server, "is_running", lambda: False)


@pytest.mark.usefixtures("no_browser")
@pytest.mark.parametrize("suffix", IMAGES)
def test_without_a_browser_the_error_says_what_to_install(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    with pytest.raises(ct.errors.FigureError) as caught:
        ct.draw_seq_graph(wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=path)
    assert str(caught.value) == (
        f"Pictures such as {suffix} are drawn by Kaleido, which needs Chrome or Chromium on this "
        "machine and found none that starts. Install one (Debian: apt-get install chromium; anywhere: "
        "plotly_get_chrome), or write .html, which needs none."
    )
    assert not path.exists()


@pytest.mark.usefixtures("no_browser")
def test_without_a_browser_html_is_written(tmp_path: Path) -> None:
    path = tmp_path / "picture.html"
    ct.draw_seq_graph(wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=path)
    assert path.stat().st_size > 1_000_000  # Plotly's own code is in it


def test_a_browser_that_does_not_start_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something called chromium that is none: as on a machine whose Chrome lacks its libraries."""
    import kaleido

    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda *_a, **_k: str(broken)))
    monkeypatch.setattr(kaleido._global_server, "is_running", lambda: False)
    with pytest.raises(ct.errors.FigureError):
        ct.draw_seq_graph(
            wrapped(), scores({"A0.1->MLP 0": 1.0}), file_path=tmp_path / "picture.png"
        )


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(go.Figure, "write_image", fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        write(go.Figure(), score_diagram(scores({})), File(tmp_path / "a.png"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_paths_of_every_type(suffix: str) -> None:
    assert check_path(f"some/where{suffix}") == Path(f"some/where{suffix}")
    assert check_path(Path(f"x{suffix.upper()}")) == Path(f"x{suffix.upper()}")


# Pages and paper


def test_a_page_is_small_where_plotly_is_fetched(tmp_path: Path) -> None:
    trace = known_trace({"A0.1->A1.2.Q": 1.0})
    sizes = {}
    for include in (True, "cdn", False):
        path = tmp_path / f"{include}.html"
        trace.draw(file_path=path, include_plotlyjs=include)
        sizes[include] = path.stat().st_size
    assert sizes[True] <= 6_000_000
    assert sizes["cdn"] < 30_000
    assert "cdn.plot.ly" in (tmp_path / "cdn.html").read_text()
    assert "cdn.plot.ly" not in (tmp_path / "False.html").read_text()


@pytest.mark.browser
def test_a_pdf_is_as_wide_as_a_column(tmp_path: Path, kaleido_server: None) -> None:
    path = tmp_path / "column.pdf"
    edges = {"A0.1->A1.2.Q": 1.0, "A1.2->Resid End": 1.0}
    known_trace(edges).draw(file_path=path, orientation="v", page_width=3.25)
    content = path.read_bytes()
    (box,) = {tuple(map(float, found)) for found in BOX.findall(content)}
    assert box[2] == pytest.approx(3.25 * 72, abs=1)
    assert b"/FontFile2" in content  # fonts are embedded
    assert b"/Subtype /Image" not in content  # and nothing is a bitmap


@pytest.mark.browser
def test_text_that_would_be_too_small_is_warned_of(tmp_path: Path, kaleido_server: None) -> None:
    trace = known_trace({"A0.1->A1.2.Q": 1.0, "A1.2->Resid End": 1.0})
    with pytest.warns(UserWarning, match=r"the smallest text of this figure is \d\.\d points"):
        trace.draw(file_path=tmp_path / "wide.svg", page_width=1.5)
    assert 'width="144"' in (tmp_path / "wide.svg").read_text()


WRONG_FILES: list[tuple[dict[str, Any], str]] = [
    ({"file_path": "a.html", "include_plotlyjs": "yes"}, "include_plotlyjs must be True"),
    ({"file_path": "a.pdf", "page_width": 0}, "page_width must be a number of inches"),
    ({"file_path": "a.pdf", "page_width": "3in"}, "page_width must be a number of inches"),
    ({"file_path": "a.png", "page_width": 3.0}, "ends in .pdf or .svg"),
    ({"page_width": 3.0}, "ends in .pdf or .svg"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_FILES)
def test_wrong_files(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ct.FigureError) as caught:
        known_trace({"A0.1->A1.2.Q": 1.0}).draw(**options)
    assert message in str(caught.value)


# Larger than the browser's canvas


def blank(width: int, height: int) -> go.Figure:
    """A figure of that many pixels, with little in it."""
    return go.Figure(layout={"width": width, "height": height, "template": go.layout.Template()})


@pytest.fixture(scope="module")
def made(kaleido_server: None) -> dict[str, bytes]:
    """A picture of 301 × 200 pixels as each type, at scale 2 where it is a bitmap."""
    return {
        suffix: blank(301, 200).to_image(
            format=suffix[1:], scale=1 if suffix in (".svg", ".pdf") else 2
        )
        for suffix in IMAGES
    }


@pytest.mark.browser
@pytest.mark.parametrize("suffix", IMAGES)
def test_a_picture_is_known_by_its_size_and_half_of_it_is_none(
    suffix: str, made: dict[str, bytes]
) -> None:
    scale = 1 if suffix in (".svg", ".pdf") else 2
    found = picture_size(made[suffix], suffix)
    assert found == pytest.approx((301 * scale, 200 * scale), abs=1)
    for end in (0, 3, 11, 25, len(made[suffix]) // 2, len(made[suffix]) - 9):
        assert picture_size(made[suffix][:end], suffix) is None
    for other in {*IMAGES, ".jpg"} - {suffix, ".jpg", ".jpeg"}:
        assert picture_size(made[suffix], other) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [  # RFC 9649: lossless, 14 bits each less 1; extended, 24 bits each less 1
        (b"VP8L" + bytes(4) + b"\x2f" + (299 | 199 << 14).to_bytes(4, "little"), (300, 200)),
        (
            b"VP8X" + bytes(8) + (16382).to_bytes(3, "little") + (0).to_bytes(3, "little"),
            (16383, 1),
        ),
        (b"ALPH" + bytes(20), None),
    ],
)
def test_other_kinds_of_webp(header: bytes, size: tuple[int, int] | None) -> None:
    rest = b"WEBP" + header + bytes(10)
    assert picture_size(b"RIFF" + struct.pack("<I", len(rest)) + rest, ".webp") == size


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
@pytest.mark.parametrize(
    ("suffix", "size", "scale"),
    [(".png", (60, 34_477), 1.9), (".webp", (60, 13_837), 1.183), (".jpg", (65_500, 60), 1.0)],
)
def test_what_is_too_large_at_scale_2_is_scaled_down(
    suffix: str, size: tuple[int, int], scale: float, tmp_path: Path
) -> None:
    path = tmp_path / f"large{suffix}"
    with pytest.warns(UserWarning, match="canvas is too small") as caught:
        write(blank(*size), None, File(path))
    (said,) = [str(one.message) for one in caught if "canvas" in str(one.message)]
    assert said.startswith(
        f"'large{suffix}' is written at scale {scale:g}, since the browser's canvas is too small for a "
        f"figure of {size[0]:,} × {size[1]:,} pixels at scale 2: "
    )
    assert SIGNATURES[suffix](path.read_bytes())
    wanted = [side * scale for side in size]
    assert picture_size(path.read_bytes(), suffix) == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize(
    ("suffix", "size"),
    [(".png", (900, 131_072)), (".webp", (900, 32_768)), (".png", (40_000, 40_000))],
)
def test_what_is_too_large_at_any_scale_is_refused(
    suffix: str, size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(b"the old one")
    with pytest.raises(ct.FigureError) as caught:
        write(blank(*size), None, File(path))
    said = str(caught.value)
    assert said.startswith(f"Cannot write {str(path)!r}: the browser's canvas is too small for ")
    assert f"{size[0]:,} × {size[1]:,} pixels" in said
    assert said.endswith(
        "Draw less (fewer edges by max_edges or score_threshold, fewer positions, or "
        "the other orientation), or write .svg or .html, which have no such limit."
    )
    assert path.read_bytes() == b"the old one"


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_file_that_is_no_picture_is_not_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Kaleido leaves of a canvas that is too large, on a browser with a smaller one."""
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(b"the old one")
    monkeypatch.setattr(go.Figure, "write_image", lambda _, path, **__: path.write_bytes(b"u\xabZ"))
    with pytest.raises(ct.FigureError, match=r"made no whole picture \(3 bytes\)\. Draw less"):
        write(blank(300, 200), None, File(path))
    assert path.read_bytes() == b"the old one"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.browser
def test_a_picture_of_another_size_is_not_written(
    tmp_path: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(_: go.Figure, path: Path, **__: Any) -> None:
        path.write_bytes(made[".png"])

    monkeypatch.setattr(go.Figure, "write_image", cut)
    with pytest.raises(ct.FigureError) as caught:
        write(blank(301, 900), None, File(tmp_path / "picture.png"))
    assert "of a picture of 602 × 1,800 pixels the browser made one of 602 × 400" in str(
        caught.value
    )


@pytest.mark.browser
@pytest.mark.usefixtures("kaleido_server")
def test_a_page_too_large_to_print(tmp_path: Path) -> None:
    path = tmp_path / "picture.pdf"
    with pytest.raises(ct.FigureError) as caught:
        write(blank(600, 100_000), None, File(path))
    said = str(caught.value)
    assert "the browser failed to draw a figure of 600 × 100,000 pixels (" in said
    assert said.endswith("or the other orientation), or write .html.")
    assert not path.exists()


@pytest.mark.browser
def test_a_browser_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaleido's own time limit, made short."""
    import kaleido

    browser_or_skip()
    monkeypatch.setattr(kaleido._global_server, "is_running", lambda: False)
    original = kaleido.calc_fig_sync
    monkeypatch.setattr(
        kaleido,
        "calc_fig_sync",
        lambda *args, kopts, **more: original(*args, kopts={**kopts, "timeout": 0.001}, **more),
    )
    path = tmp_path / "picture.png"
    with pytest.raises(ct.FigureError) as caught:
        write(blank(300, 200), None, File(path))
    assert re.fullmatch(
        rf"Cannot write {str(path)!r}: the browser had not drawn it after \d+ seconds, and Kaleido waits "
        r"no longer\. Draw less .*",
        str(caught.value),
    )
