"""Every parameter of `draw_seq_graph` and `net_viz`, and every bad value of them."""

# pyright: reportAttributeAccessIssue=false
# Plotly does not say what its figures hold.

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import circuit_trace as ct
from circuit_trace.visualize import draw_seq_graph, net_viz
from circuit_trace.visualize.colors import PATCHED, THEMES, rgba
from circuit_trace.visualize.text import token_label
from circuit_trace.visualize.write import FORMATS
from tests.models import hooked, tokens
from tests.visualize.pictures import (
    BATCH,
    NASTY,
    SEQ,
    graph,
    known_trace,
    random_scores,
    scores,
    wrapped,
)

EDGE = "A0.1->A1.2.Q"
ROOT = Path(__file__).parents[2]


def link_names(drawn: go.Figure) -> list[str]:
    return [label.split("<br>")[0] for trace in drawn.data for label in trace.link.label or ()]


def titles(drawn: go.Figure) -> list[str]:
    """What stands beside the diagrams, first lines only."""
    bold = [one.text for one in drawn.layout.annotations if one.text.startswith("<b>")]
    return [text.split("<br>")[0].removeprefix("<b>").removesuffix("</b>") for text in bold]


def traced(model: ct.PatchableModel, masks: dict) -> ct.Trace:
    return model.trace(tokens(1), corrupt=tokens(2), edges=masks)


# What is drawn


def test_signatures_are_the_contract() -> None:
    def parameters(function: Callable) -> dict[str, Any]:
        found = inspect.signature(function).parameters.values()
        return {one.name: one.default for one in found if one.kind is not one.KEYWORD_ONLY}

    empty = inspect.Parameter.empty
    assert parameters(ct.draw_seq_graph) == {
        "model": empty, "prune_scores": None, "score_threshold": 0.01, "show_all_seq_pos": False,
        "seq_labels": None, "layer_spacing": False, "orientation": "h", "display_ipython": True,
        "file_path": None,
    }  # fmt: skip
    assert parameters(ct.net_viz) == {
        "model": empty, "seq_edges": empty, "prune_scores": empty, "vert_interval": empty,
        "seq_idx": None, "score_threshold": 0.01, "layer_spacing": False, "orientation": "h",
    }  # fmt: skip


def test_without_scores_the_last_pass_is_drawn() -> None:
    model = wrapped()
    traced(model, {"A0.0->MLP 0": 1.0})
    trace = traced(model, {EDGE: 0.5})
    for drawn in (ct.draw_seq_graph(model), ct.draw_seq_graph(trace), trace.draw()):
        assert link_names(drawn) == [EDGE]
        assert drawn.data[0].link.value == (0.5,)
        lines = drawn.data[0].link.label[0].split("<br>")
        assert lines[3].startswith("clean→received: ‖Δ‖ ")
        assert lines[4].startswith("numbers of position ")


@pytest.mark.parametrize("what", ["model", "traced model", "trace"])
def test_with_scores_they_are_drawn_alone(what: str) -> None:
    model = wrapped()
    trace = None if what == "model" else traced(model, {EDGE: 1.0})
    given = scores({"A0.3->MLP 1": -0.5})
    drawn = ct.draw_seq_graph(trace if what == "trace" else model, given)
    assert drawn.data[0].link.label == ("A0.3->MLP 1<br>score -0.50",)


def test_a_model_and_its_trace_give_the_same_picture() -> None:
    model = wrapped(SEQ)
    trace = traced(model, {(1, EDGE): 1.0, (3, "A0.3->MLP 1"): 0.5})
    assert ct.draw_seq_graph(model).to_json() == trace.draw().to_json()
    assert trace.draw().to_json() == trace.draw().to_json()


@pytest.mark.parametrize(
    ("threshold", "shown"), [(0.01, 3), (0.5, 2), (0.51, 1), (1, 1), (1.01, 0)]
)
def test_score_threshold(threshold: float, shown: int) -> None:
    masks = {EDGE: 1.0, "A0.3->MLP 1": -0.5, "A0.0->MLP 0": 0.01}
    assert len(link_names(known_trace(masks).draw(score_threshold=threshold))) == shown
    drawn = ct.draw_seq_graph(wrapped(), scores(masks), threshold)
    assert len(link_names(drawn)) == shown


@pytest.mark.parametrize("threshold", [0, 0.0])
def test_a_threshold_of_zero_shows_edges_that_were_not_patched(threshold: float) -> None:
    drawn = known_trace({EDGE: 1.0}).draw(score_threshold=threshold)
    assert len(link_names(drawn)) == graph().n_edges
    thin, wide = sorted(set(drawn.data[0].link.value))
    assert thin < 0.02 * wide


@pytest.mark.parametrize(
    ("show_all", "expected"),
    [(False, ["position 1", "position 4"]), (True, [f"position {p}" for p in range(SEQ)])],
)
def test_show_all_seq_pos(show_all: bool, expected: list[str]) -> None:
    trace = known_trace({(4, EDGE): 1.0, (1, EDGE): 1.0}, SEQ)
    drawn = trace.draw(show_all_seq_pos=show_all)
    assert titles(drawn) == expected
    heights = [one.y for one in drawn.layout.annotations if one.text.startswith("<b>")]
    assert heights == sorted(heights, reverse=True)


def test_show_all_seq_pos_without_positions_changes_nothing() -> None:
    trace = known_trace({EDGE: 1.0})
    assert trace.draw(show_all_seq_pos=True).to_json() == trace.draw().to_json()


def test_seq_labels_given() -> None:
    trace = known_trace({(4, EDGE): 1.0, (1, EDGE): 1.0}, SEQ)
    labels = [f"word {p}" for p in range(SEQ)]
    assert titles(trace.draw(seq_labels=labels)) == ["word 1", "word 4"]
    assert titles(trace.draw(seq_labels=tuple(labels))) == ["word 1", "word 4"]
    assert titles(trace.draw(seq_labels=labels, show_all_seq_pos=True)) == labels
    text = next(a.text for a in trace.draw(seq_labels=labels).layout.annotations)
    assert text == "<b>word 1</b><br><span style='font-size: 11px'>position 1</span>"


def test_seq_labels_given_without_positions() -> None:
    drawn = known_trace({EDGE: 1.0}).draw(seq_labels=["When", " Mary"])
    assert titles(drawn) == ["All tokens"]


def test_seq_labels_from_the_traced_tokens() -> None:
    def to_strings(row: torch.Tensor) -> list[str]:
        return [f"t{token}" for token in row.tolist()]

    trace = known_trace({(4, EDGE): 1.0}, SEQ, to_strings=to_strings)
    assert titles(trace.draw()) == ["t4"]
    assert titles(trace.draw(batch_idx=1)) == [f"t{SEQ + 4}"]
    assert titles(trace.draw(seq_labels=["given"] * SEQ)) == ["given"]
    assert titles(trace.draw(scores({(2, EDGE): 1.0}, SEQ))) == ["t2"]


def test_seq_labels_without_a_tokenizer_are_positions() -> None:
    model = wrapped(SEQ)
    traced(model, {(2, EDGE): 1.0})
    assert titles(ct.draw_seq_graph(model)) == ["position 2"]
    assert titles(ct.draw_seq_graph(wrapped(SEQ), scores({(3, EDGE): 1.0}, SEQ))) == ["position 3"]
    assert titles(known_trace({EDGE: 1.0}).draw()) == []


@pytest.mark.parametrize("words", [list(NASTY)[:7], list(NASTY)[7:]], ids=["first", "rest"])
def test_nasty_tokens_of_a_real_tokenizer(words: list[str]) -> None:
    words = [word for word in words if word]  # a word-level vocabulary has no empty token
    vocabulary = {word: number for number, word in enumerate(words)}
    hf_model = hooked()
    hf_model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])),
        unk_token=words[0],
        name_or_path="test",
    )
    model = ct.wrap(hf_model, seq_len=len(words), verify=False)
    ids = torch.arange(len(words))[None]
    trace = model.trace(ids, corrupt=ids, edges=[EDGE])
    assert titles(trace.draw()) == [token_label(word) for word in words]


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_layer_spacing_and_orientation(orientation: str) -> None:
    trace = known_trace({EDGE: 1.0})
    close = trace.draw(orientation=orientation).data[0]
    spaced = trace.draw(layer_spacing=True, orientation=orientation)
    assert close.orientation == spaced.data[0].orientation == orientation
    size = spaced.layout.width if orientation == "h" else spaced.layout.height
    plain = trace.draw(orientation=orientation).layout
    assert size > (plain.width if orientation == "h" else plain.height)
    first, spaced_first = close.node.x[0], spaced.data[0].node.x[0]
    assert spaced_first > first


@pytest.mark.parametrize("batch_idx", range(BATCH))
def test_batch_idx(batch_idx: int) -> None:
    (one,) = known_trace({(0, EDGE): 1.0}, SEQ).draw(batch_idx=batch_idx).data[0].link.label
    assert ("‖current‖ 15, ‖patched‖ 30" in one) == (batch_idx == 0)
    assert ("‖current‖ 150, ‖patched‖ 300" in one) == (batch_idx == 1)


# Showing and writing


class FakeIPython:
    """A running IPython in its cell `execution_count`, that keeps what it is asked to display."""

    execution_count = 1


@pytest.fixture
def ipython(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a running IPython was asked to display; `tests/notebooks` asks a real one."""
    shown: list[dict[str, Any]] = []
    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = FakeIPython  # type: ignore[attr-defined]
    package.display = display  # type: ignore[attr-defined]
    display.display = lambda bundle, raw: shown.append(bundle)  # type: ignore[attr-defined]
    monkeypatch.setattr(FakeIPython, "execution_count", 1)
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_display_inside_ipython(ipython: list[dict[str, Any]]) -> None:
    trace = known_trace({EDGE: 1.0})
    drawn = draw_seq_graph(trace)
    assert ipython == [drawn._repr_mimebundle_()]
    draw_seq_graph(trace, display_ipython=False)
    trace.draw()  # the cell shows what it returns
    assert len(ipython) == 1


def test_a_figure_is_shown_once_by_the_cell_that_drew_it(
    ipython: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_seq_graph(known_trace({EDGE: 1.0}))
    drawn._ipython_display_()  # as the cell's value
    assert len(ipython) == 1
    drawn._ipython_display_()  # asked for once more
    assert len(ipython) == 2
    again = draw_seq_graph(known_trace({EDGE: 1.0}))
    monkeypatch.setattr(FakeIPython, "execution_count", 2)
    again._ipython_display_()
    assert len(ipython) == 4


def test_a_figure_that_was_changed_is_shown_again(ipython: list[dict[str, Any]]) -> None:
    drawn = draw_seq_graph(known_trace({EDGE: 1.0}))
    drawn.update_layout(title="mine")._ipython_display_()
    assert len(ipython) == 2


def test_a_shell_that_counts_no_cells_shows_what_it_is_asked_to(
    ipython: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeIPython, "execution_count")
    drawn = draw_seq_graph(known_trace({EDGE: 1.0}))
    drawn._ipython_display_()
    assert len(ipython) == 2


def test_a_terminal_opens_plotlys_own_browser(
    ipython: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[go.Figure] = []
    monkeypatch.setattr(pio.renderers, "default", "browser")
    monkeypatch.setattr("plotly.io.show", opened.append)
    drawn = draw_seq_graph(known_trace({EDGE: 1.0}))
    drawn._ipython_display_()
    assert opened == [drawn]
    assert ipython == []


@pytest.mark.parametrize("renderer", ["plotly_mimetype", "colab", "png+plotly_mimetype"])
def test_plotlys_choice_for_the_notebook_stays(
    renderer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture is added only where there is nothing that a page without Plotly can show."""
    monkeypatch.setattr(pio.renderers, "default", renderer)
    monkeypatch.setattr("plotly.io._base_renderers.to_image", lambda *_a, **_k: b"png")
    drawn = known_trace({EDGE: 1.0}).draw()
    bundle, plotlys = drawn._repr_mimebundle_(), go.Figure(drawn)._repr_mimebundle_()
    added = {"image/svg+xml", "text/plain"} if renderer == "plotly_mimetype" else set()
    assert bundle.keys() - plotlys.keys() == added
    if "text/html" not in bundle:  # each time with another id
        assert all(bundle[kind] == plotlys[kind] for kind in plotlys)


def test_ipython_that_is_imported_but_does_not_run(ipython: list[dict[str, Any]]) -> None:
    sys.modules["IPython"].get_ipython = lambda: None  # type: ignore[attr-defined]
    draw_seq_graph(known_trace({EDGE: 1.0}))
    assert ipython == []


@pytest.mark.parametrize("imported", [False, True])
def test_a_script_opens_no_browser(
    imported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a script must not show anything")

    monkeypatch.setattr("webbrowser.open", fail)
    monkeypatch.setattr("webbrowser.get", fail)
    monkeypatch.setattr("plotly.io.show", fail)
    monkeypatch.setattr(go.Figure, "show", fail)
    if imported:
        pytest.importorskip("IPython")
    else:
        monkeypatch.setitem(sys.modules, "IPython", None)
    known_trace({EDGE: 1.0}).draw(file_path=tmp_path / "picture.html")
    assert capsys.readouterr() == ("", "")


def test_file_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = known_trace({EDGE: 1.0}).draw(file_path="new/folder/picture.json")
    assert (tmp_path / "new/folder/picture.json").read_text(encoding="utf-8") == drawn.to_json()


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("suffix", [".html", ".json", ".HTML", ".Json"])
def test_file_types_that_need_no_browser(suffix: str, as_type: type, tmp_path: Path) -> None:
    path = tmp_path / f"a picture{suffix}"
    known_trace({EDGE: 1.0}).draw(file_path=as_type(path))
    text = path.read_text(encoding="utf-8")
    assert ("<html" if suffix.lower() == ".html" else '{"data":') in text[:30]
    assert EDGE.replace(">", "\\u003e") in text or EDGE in text


# The same input gives the same figure

SCRIPT = """
import sys
import plotly.io as pio
before = pio.templates.default, pio.renderers.default
import torch
import circuit_trace as ct
from tests.anatomy.toy import ToyModel, anatomy
toy = ToyModel()
model = ct.wrap(toy, seq_len=4, anatomy=anatomy(toy))
x = torch.arange(8.0).view(1, 4, 2)
edges = {(p, f"{s}->{d}"): 1.0 for p in (3, 0, 2) for d in ("B1.1", "B1.0", "Resid End")
         for s in ("B0.1", "B0.0", "Resid Start")}
trace = model.trace(x, corrupt=x + 1, edges=edges)
drawn = trace.draw(seq_labels=["a", "b", "c", "<d>"], file_path=sys.argv[1])
assert (pio.templates.default, pio.renderers.default) == before, "a default of Plotly was changed"
print(drawn.to_json(), end="")
"""


def test_two_processes_draw_the_same_byte_for_byte(tmp_path: Path) -> None:
    """Also with other hashes of strings, and without any change of Plotly's defaults."""
    import os

    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"{seed}.html")],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in ("0", "4242")
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs[0][1].decode()[-2000:]
    assert outputs[0][0] == outputs[1][0] != b""
    first, second = ((tmp_path / f"{seed}.html").read_bytes() for seed in ("0", "4242"))
    assert first == second


# net_viz


def everything(seq_len: int | None = None) -> ct.PruneScores:
    the_graph = graph(seq_len)
    leading = () if seq_len is None else (seq_len,)
    return {module.name: torch.ones(*leading, *module.shape) for module in the_graph.modules}


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.5), (0, 1), (0.1, 0.100001)])
@pytest.mark.parametrize("orientation", ["h", "v"])
def test_net_viz_fills_its_interval(orientation: str, interval: tuple[float, float]) -> None:
    model = wrapped()
    diagram, n_layers = ct.net_viz(
        model, model.edges, scores({EDGE: 1.0}), interval, orientation=orientation
    )
    assert isinstance(diagram, go.Sankey)
    assert diagram.domain.y == interval
    assert diagram.domain.x == (0, 1)
    assert diagram.orientation == orientation
    assert diagram.node.label == ("A0.1", "A1.2")
    assert n_layers == 2


def test_net_viz_of_a_pass() -> None:
    model = wrapped(SEQ)
    trace = traced(model, {(1, EDGE): 1.0, (3, "A0.3->MLP 1"): 0.5, (3, EDGE): 0.005})
    for what in (model, trace):
        diagram, n_layers = ct.net_viz(what, model.edges, None, (0.0, 0.5), seq_idx=3)
        assert [label.split("<br>")[0] for label in diagram.link.label] == ["A0.3->MLP 1"]
        assert diagram.link.label[0].endswith("mask 0.50")
        assert n_layers == 2


def test_net_viz_leaves_out_other_positions_and_other_edges() -> None:
    model = wrapped(SEQ)
    chosen = [model.edge(EDGE, 1), model.edge(EDGE, 3), model.edge("A0.3->MLP 1", 3)]
    diagram, _ = ct.net_viz(model, iter(chosen), everything(SEQ), (0.0, 1.0), seq_idx=3)
    names = [label.split("<br>")[0] for label in diagram.link.label]
    assert sorted(names) == sorted([EDGE, "A0.3->MLP 1"])
    of_one_position = model.edges[: model.graph.n_edges_per_position]
    diagram, n_layers = ct.net_viz(model, of_one_position, everything(SEQ), (0.0, 1.0), seq_idx=3)
    assert (len(diagram.link.value or ()), n_layers) == (0, 0)


@pytest.mark.parametrize(
    ("values", "close"),
    [
        ({EDGE: 1.0}, 2),
        ({EDGE: 1.0, "A0.1->MLP 0": 1.0}, 3),
        ({"Resid Start->Resid End": 1.0}, 2),
        ({}, 0),
    ],
)
def test_net_viz_returns_the_number_of_layers_shown(values: dict, close: int) -> None:
    """A block counts as attention and MLP, the embedding and the end as one each."""
    model = wrapped()
    assert ct.net_viz(model, model.edges, scores(values), (0.0, 1.0))[1] == close
    spaced = ct.net_viz(model, model.edges, scores(values), (0.0, 1.0), layer_spacing=True)
    assert spaced[1] == 2 * 2 + 2


def test_net_viz_score_threshold_and_batch_idx() -> None:
    trace = known_trace({(2, EDGE): 1.0, (2, "A0.3->MLP 1"): 0.5}, SEQ)
    edges = trace.graph.edges
    shown = [
        ct.net_viz(trace, edges, None, (0.0, 1.0), 2, threshold, batch_idx=1)[0].link.label
        for threshold in (0.5, 0.51)
    ]
    assert [len(labels) for labels in shown] == [2, 1]
    assert "‖current‖ 450, ‖patched‖ 900" in shown[1][0]


@pytest.mark.parametrize("seq_idx", [None, -1, SEQ, "2", True])
def test_net_viz_of_no_such_position(seq_idx: Any) -> None:
    model = wrapped(SEQ)
    with pytest.raises(ct.FigureError, match="seq_idx must say which position to draw, from 0 to"):
        ct.net_viz(model, model.edges, everything(SEQ), (0.0, 1.0), seq_idx=seq_idx)


def test_net_viz_of_a_position_without_positions() -> None:
    model = wrapped()
    with pytest.raises(ct.FigureError, match="wrapped without positions"):
        ct.net_viz(model, model.edges, random_scores(3, seed=1), (0.0, 1.0), seq_idx=3)


@pytest.mark.parametrize("size", [None, (0, 0), (-5, 10), ("a", "b"), (float("nan"), 3), 7])
def test_net_viz_of_no_size(size: Any) -> None:
    model = wrapped()
    with pytest.raises(ct.FigureError, match="size must be"):
        ct.net_viz(model, model.edges, random_scores(3, seed=1), (0.0, 1.0), size=size)


def test_net_viz_in_a_figure_with_another_trace() -> None:
    model = wrapped()
    diagram, _ = ct.net_viz(model, model.edges, random_scores(12, seed=1), (0.5, 1.0))
    drawn = go.Figure([diagram, go.Scatter(x=[1, 2], y=[3, 4])])
    drawn.update_layout(yaxis_domain=[0, 0.4])
    assert [trace.type for trace in drawn.data] == ["sankey", "scatter"]
    assert len(drawn.data[0].link.value) == 12


def test_net_viz_names_its_nodes_itself() -> None:
    """There are no annotations in a trace: Plotly writes the names."""
    model = wrapped()
    diagram, _ = ct.net_viz(model, model.edges, scores({EDGE: 1.0}), (0.0, 1.0))
    assert diagram.textfont.size > 8
    assert "rgba" not in diagram.textfont.color


# Bad input


def error_of(kind: type[ct.CircuitTraceError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def both(model: Any, **options: Any) -> list[Callable[[], Any]]:
    """The two functions with the same options."""

    def in_net_viz() -> Any:
        return ct.net_viz(
            model, graph().edges, options.get("prune_scores"), (0.0, 1.0),
            **{k: v for k, v in options.items() if k != "prune_scores"},
        )  # fmt: skip

    return [lambda: ct.draw_seq_graph(model, **options), in_net_viz]


def test_drawing_before_any_pass_says_to_call_trace() -> None:
    for call in both(wrapped()):
        assert error_of(ct.errors.NoTraceError, call) == (
            "No pass has been recorded yet. Call model.trace(tokens, corrupt=..., edges=[...]), "
            "or run the model inside `with model.patch(...)`."
        )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.gif", "'.gif'"),
        ("a.eps", "'.eps'"),
        ("a", "'a file without an extension'"),
        ("", "'a file without an extension'"),
        (".png", "'a file without an extension'"),
        ("a.png.txt", "'.txt'"),
    ],
)
def test_an_unknown_file_type_lists_those_that_work(
    name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of(ct.errors.FigureError, lambda: known_trace({EDGE: 1.0}).draw(file_path=name))
    assert message == (
        f"Cannot write a figure as {shown} ({name!r}): the extensions that work are "
        f"{', '.join(FORMATS)}."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_type_is_checked_before_anything_is_drawn(diagrams: list) -> None:
    error_of(ct.errors.FigureError, lambda: known_trace({EDGE: 1.0}).draw(file_path="a.gif"))
    assert diagrams == []


@pytest.mark.parametrize("orientation", ["x", "", "H", None, 1])
def test_orientation(orientation: Any) -> None:
    for call in both(known_trace({EDGE: 1.0}), orientation=orientation):
        assert error_of(ct.errors.FigureError, call) == (
            f"orientation must be 'h' (left to right) or 'v' (top to bottom); got {orientation!r}."
        )


@pytest.mark.parametrize("threshold", [-0.01, math.nan, -math.inf, "0.5", None, True, [0.1]])
def test_score_threshold_out_of_range(threshold: Any) -> None:
    for call in both(known_trace({EDGE: 1.0}), score_threshold=threshold):
        assert error_of(ct.errors.FigureError, call) == (
            f"score_threshold must be a number, 0 or more; got {threshold!r}."
        )


@pytest.mark.parametrize("n_labels", [0, 1, SEQ - 1, SEQ + 1])
def test_too_few_seq_labels(n_labels: int) -> None:
    trace = known_trace({(1, EDGE): 1.0}, SEQ)
    message = error_of(ct.errors.FigureError, lambda: trace.draw(seq_labels=["a"] * n_labels))
    assert message == (
        f"seq_labels must label every position: expected {SEQ} labels, got {n_labels}."
    )


def test_one_string_is_no_list_of_labels() -> None:
    trace = known_trace({(1, EDGE): 1.0}, SEQ)
    assert "got 1" in error_of(ct.errors.FigureError, lambda: trace.draw(seq_labels="abcdef"))


@pytest.mark.parametrize("batch_idx", [BATCH, -1, 0.5, None])
def test_batch_idx_out_of_range(batch_idx: Any) -> None:
    for call in both(known_trace({EDGE: 1.0}), batch_idx=batch_idx):
        assert error_of(ct.errors.InputError, call) == (
            f'batch_idx={batch_idx!r} is outside the traced batch: expected 0 to {BATCH - 1}, or "mean".'
        )


BAD_SCORES: dict[str, tuple[Any, str]] = {
    "key": (
        {"blocks.7.hook_q_input": torch.ones(4, 1)},
        "The prune scores name the module 'blocks.7.hook_q_input', which this model's graph does "
        "not have. Expected some of: ",
    ),
    "shape": (
        {"blocks.0.hook_q_input": torch.ones(3, 1)},
        "The prune scores of 'blocks.0.hook_q_input' have the wrong shape: expected (4, 1) "
        "([seq, head, source], each where it applies), got (3, 1).",
    ),
    "positions": (
        {"blocks.0.hook_q_input": torch.ones(SEQ, 4, 1)},
        f"got ({SEQ}, 4, 1). They have token positions: wrap the model with seq_len={SEQ}.",
    ),
    "list": (
        {"blocks.0.hook_q_input": [1.0]},
        "got list.",
    ),
    "not a mapping": (torch.ones(4), "to a tensor; got Tensor."),
    "nan": (
        {"blocks.0.hook_q_input": torch.full((4, 1), math.nan)},
        "hold Resid Start->A0.0.Q = nan: expected finite numbers.",
    ),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_scores_that_do_not_fit(case: str) -> None:
    given, message = BAD_SCORES[case]
    for call in both(wrapped(), prune_scores=given):
        assert message in error_of(ct.errors.MaskError, call)


@pytest.mark.parametrize("what", [None, "a model", torch.nn.Linear(1, 1), 3, {}])
def test_drawing_something_that_is_no_model(what: Any) -> None:
    for call in both(what, prune_scores=scores({})):
        assert error_of(ct.errors.FigureError, call) == (
            f"Expected a wrapped model (ct.wrap) or a Trace to draw; got {type(what).__name__}."
        )


def test_a_model_that_is_not_wrapped() -> None:
    model = wrapped().wrapped_model
    message = error_of(ct.errors.FigureError, lambda: ct.draw_seq_graph(model))
    assert message.endswith("got HookedTransformer.")


@pytest.mark.parametrize("show_all", [False, True])
@pytest.mark.parametrize("seq_len", [None, SEQ])
def test_nothing_above_the_threshold_says_so(seq_len: int | None, show_all: bool) -> None:
    below = f"{seq_len} patched edges" if seq_len else "1 patched edge"
    said = {
        f"No edge has |mask| ≥ 2.00. Below the threshold of 2.00: {below}.": (
            known_trace({EDGE: 1.0}, seq_len)
        ),
        "No edge has |mask| ≥ 2.00. Nothing was patched in this pass; score_threshold=0 and "
        "width='received' draw it.": known_trace({}, seq_len),
    }
    for note, trace in said.items():
        drawn = trace.draw(score_threshold=2.0, show_all_seq_pos=show_all)
        assert link_names(drawn) == []
        assert note in [one.text.replace("<br>", " ") for one in drawn.layout.annotations]
        assert len(titles(drawn)) == (SEQ if seq_len and show_all else 0)


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0), (0.0, math.nan)]
)
def test_a_bad_vert_interval(interval: tuple[float, float]) -> None:
    model = wrapped()
    call = lambda: ct.net_viz(model, model.edges, scores({}), interval)  # noqa: E731
    assert error_of(ct.errors.FigureError, call) == (
        f"vert_interval must be (bottom, top) with 0 ≤ bottom < top ≤ 1; got {interval}."
    )


@pytest.mark.parametrize("interval", [0.5, (0.5,), (0.0, 0.5, 1.0), None, ("0", "1")])
def test_a_vert_interval_that_is_no_pair_of_numbers(interval: Any) -> None:
    model = wrapped()
    call = lambda: ct.net_viz(model, model.edges, scores({}), interval)  # noqa: E731
    assert "vert_interval must be (bottom, top)" in error_of(ct.errors.FigureError, call)


def test_net_viz_with_edges_of_another_graph() -> None:
    model = wrapped()
    other = ct.wrap(model.wrapped_model, separate_qkv=False, verify=False)
    call = lambda: ct.net_viz(model, other.edges, scores({EDGE: 1.0}), (0.0, 1.0))  # noqa: E731
    error_of(ct.CircuitTraceError, call)


def test_net_viz_with_names_instead_of_edges() -> None:
    """Names are read as elsewhere, or refused; they do not meet a stranger's AttributeError."""
    model = wrapped()
    values = scores({EDGE: 1.0, "A0.3->MLP 1": 1.0})
    with suppress(ct.CircuitTraceError):
        diagram, _ = ct.net_viz(model, [EDGE], values, (0.0, 1.0))  # type: ignore[list-item]
        assert diagram.link.label == (f"{EDGE}<br>score 1.00",)


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_a_path_that_cannot_be_written(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / f"picture{suffix}"
    message = error_of(ct.errors.FigureError, lambda: known_trace({EDGE: 1.0}).draw(file_path=path))
    assert message.startswith(f"Cannot write {str(path)!r}: ")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "picture.json").mkdir()
    path = tmp_path / "picture.json"
    message = error_of(ct.errors.FigureError, lambda: known_trace({EDGE: 1.0}).draw(file_path=path))
    assert message == f"Cannot write {str(path)!r}: Is a directory; give the name of a file in it."


@pytest.mark.parametrize("theme", THEMES)
def test_themes(theme: str) -> None:
    """Paper, ink, nodes and links are the theme's, and Plotly's defaults stay as they are."""
    before = pio.templates.default
    drawn = known_trace({EDGE: 1.0}).draw(theme=theme)
    own = THEMES[theme]
    assert (drawn.layout.paper_bgcolor, drawn.layout.font.color) == (own.paper, own.ink)
    assert drawn.data[0].node.color == (own.nodes["attention"],) * 2
    assert drawn.data[0].link.color == (rgba(PATCHED, own.link_alpha),)
    assert pio.templates.default == before
    alone, _ = net_viz(known_trace({EDGE: 1.0}), graph().edges, None, (0, 1), theme=theme)
    assert alone.textfont.color == own.ink


@pytest.mark.parametrize("theme", THEMES)
def test_ink_and_nodes_stand_out_from_the_paper(theme: str) -> None:
    """Contrast by WCAG 2: 4.5 : 1 for text, 3 : 1 for shapes."""
    own = THEMES[theme]
    assert contrast(own.ink, own.paper) > 4.5
    assert all(contrast(color, own.paper) > 3 for color in own.nodes.values())


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance("#FFFFFF" if c == "white" else c) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_more_edges_than_are_drawn_are_counted() -> None:
    values = random_scores(60, seed=5)
    drawn = draw_seq_graph(wrapped(), values, max_edges=12)
    assert len(drawn.data[0].link.value) == 12
    assert "Not drawn: 48 edges that rank lower (max_edges=12)." in words(drawn)
    whole = draw_seq_graph(wrapped(), values, max_edges=None)
    assert len(whole.data[0].link.value) == 60
    assert "Not drawn" not in words(whole)
    alone, _ = net_viz(wrapped(), graph().edges, values, (0, 1), max_edges=12)
    assert sorted(alone.link.value) == sorted(drawn.data[0].link.value)


def test_hidden_edges_are_counted_beside_their_position() -> None:
    at = {(0, EDGE): 0.5, (0, "A0.3->MLP 1"): 0.4, (3, EDGE): 0.9, (3, "A0.0->MLP 0"): 0.1}
    drawn = draw_seq_graph(wrapped(SEQ), scores(at, SEQ), max_edges=2)
    assert len(drawn.data) == 2
    assert words(drawn).count("1 not drawn") == 2


def words(drawn: go.Figure) -> str:
    return " ".join(annotation.text for annotation in drawn.layout.annotations).replace("<br>", " ")


def test_labels_and_widths_say_what_they_are() -> None:
    trace = known_trace({EDGE: 0.5})
    direction = [0.0, 1.0, 0.0, 0.0, 0.0]
    said = "‖current‖→‖patched‖ Δ‖patched − current‖, at the position (@) of"
    assert f"{said} its largest change; its mask in brackets." in words(trace.draw())
    text = words(trace.draw(label="projection", width="projection", direction=direction))
    assert "Width: |patched − current| along the direction." in text
    assert (
        "current→patched along the direction, at the last position (@); its mask in brackets."
        in text
    )
    assert "the change takes away along the direction" in text
    assert "Width: ‖received‖" in words(trace.draw(width="received", batch_idx="mean"))
    assert f"Means over the batch of {BATCH}." in words(trace.draw(batch_idx="mean"))
    own = trace.draw(label=lambda flow: f"{flow.edge.name}!")
    assert "Q A0.1-&gt;A1.2.Q!" in words(own)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"theme": "sepia"}, "theme must be one of light, dark; got 'sepia'."),
    ({"max_edges": 0}, "max_edges must be a whole number above 0, or None; got 0."),
    ({"max_edges": "all"}, "max_edges must be a whole number above 0, or None; got 'all'."),
    (
        {"label": "norm"},
        "label must be one of norms, cosine, projection, tokens, values, or a function",
    ),
    ({"width": "Mask"}, "width must be one of mask, delta, received, projection; got 'Mask'."),
    ({"width": "projection"}, 'width="projection" needs direction=: two tokens such as'),
    (
        {"direction": [1.0]},
        "direction must be a vector of 5 finite numbers (d_model), or a pair of tokens",
    ),
    ({"direction": "up"}, "direction must be a vector of numbers or a pair of tokens; got 'up'."),
    ({"direction": [math.nan] * 5}, "direction must be a vector of 5 finite numbers (d_model)"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_styles(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ct.FigureError) as caught:
        known_trace({EDGE: 1.0}).draw(**options)
    assert message in str(caught.value)


def test_styles_of_what_is_not_there() -> None:
    with pytest.raises(ct.FigureError, match="Nothing was patched in this pass"):
        known_trace({}, patched=None).draw(label="cosine")
    with pytest.raises(ct.FigureError, match="with prune_scores the scores alone are drawn"):
        draw_seq_graph(wrapped(), scores({EDGE: 1.0}), width="delta")
    with pytest.raises(ct.FigureError, match="with prune_scores the scores alone are drawn"):
        draw_seq_graph(wrapped(), scores({EDGE: 1.0}), direction=torch.ones(5).numpy())


# The companion table


def table_of(figure: go.Figure) -> dict[str, list[str]]:
    (table,) = [trace for trace in figure.data if trace.type == "table"]
    names = [re.sub("</?b>", "", name) for name in table.header["values"]]
    columns = [[re.sub("</?span>", "", cell) for cell in cells] for cells in table.cells["values"]]
    return dict(zip(names, columns, strict=True))


def test_a_table_lists_every_drawn_edge_with_its_numbers() -> None:
    trace = known_trace(
        {(0, "Resid Start->A0.1.Q"): 1.0, (4, EDGE): 0.5},
        SEQ,
        to_strings=lambda ids: [f"t{at}" for at in range(len(ids))],
    )
    table = table_of(trace.draw(table=True, direction=[0.0, 1.0, 0.0, 0.0, 0.0]))
    assert table["position"] == ["0 t0", "4 t4"]
    assert table["edge"] == ["Resid Start->A0.1.Q", EDGE]
    assert table["mask"] == ["1.00", "0.50"]
    # The first source writes 3, 4 at the first position, and 0, −6, 8 is patched in.
    assert table["‖current‖"][0] == table["current projection"][0].replace("4", "5") == "5"
    assert (table["‖patched‖"][0], table["patched projection"][0]) == ("10", "-6")


def test_a_table_of_more_edges_than_have_labels_has_them_all() -> None:
    figure = draw_seq_graph(wrapped(), random_scores(70, seed=1), table=True)
    table = table_of(figure)
    assert len(table["edge"]) == 70
    assert set(table) == {"edge", "score"}
    (place,) = [trace for trace in figure.data if trace.type == "table"]
    room = (place.domain.y[1] - place.domain.y[0]) * (
        figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    )
    assert room >= 30 * 71  # a row is 30 pixels


def test_nothing_to_draw_has_no_table() -> None:
    assert not draw_seq_graph(wrapped(), scores({}), table=True).data


def test_the_table_shows_nasty_tokens_as_they_are() -> None:
    trace = known_trace(
        {(0, "Resid Start->A0.1.Q"): 1.0}, SEQ, to_strings=lambda _: ["<b>x</b>"] * SEQ
    )
    assert table_of(trace.draw(table=True))["position"] == ["0 &lt;b&gt;x&lt;/b&gt;"]


def test_edges_named_at_mask_0_are_drawn_and_those_below_the_threshold_counted() -> None:
    trace = known_trace({EDGE: 1.0, "A0.3->MLP 1": 0.0, "A0.2->MLP 1": 0.005})
    drawn = trace.draw()
    assert link_names(drawn) == [EDGE, "A0.3->MLP 1"]
    assert "Below the threshold of 0.01: 1 patched edge." in words(drawn)


def test_of_equal_masks_those_that_change_most_are_labelled() -> None:
    """Later sources of `known_trace` write, and change, more."""
    every = {edge.name: 1.0 for edge in graph().edges}
    drawn = known_trace(every).draw(max_edges=None)
    shown = {note.text for note in drawn.layout.annotations}
    labels = dict(zip(drawn.data[0].link.label, drawn.data[0].link.value, strict=True))
    change = {name: float(re.search(r"‖Δ‖ ([\d.]+)", name)[1]) for name in labels}
    ranked = sorted(change.values(), reverse=True)
    written = [text for text in shown if "Δ" in text and "→" in text and "‖" not in text]
    assert len(written) >= 1
    least = min(float(text.rpartition("Δ")[2].split(" @")[0]) for text in written)
    assert least == pytest.approx(ranked[39], rel=0.01)


def test_a_batch_says_which_prompt_is_drawn() -> None:
    trace = known_trace({EDGE: 1.0})
    assert "Prompt 1 of the batch of 2 (counted from 0)." in words(trace.draw(batch_idx=1))
    assert "Means over the batch of 2." in words(trace.draw(batch_idx="mean"))


def test_an_edge_as_wide_as_its_projection_says_it() -> None:
    trace = known_trace({(0, "Resid Start->A0.1.Q"): 1.0}, SEQ)
    drawn = trace.draw(width="projection", direction=[0.0, 1.0, 0.0, 0.0, 0.0])
    assert "Q 4→-6" in {note.text for note in drawn.layout.annotations}


# Scores beside the live pass


BESIDE = {(1, "Resid Start->A0.0.Q"): 0.5, (1, EDGE): -2.0, (4, "MLP 0->MLP 1"): 0.25}


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_scores_and_the_same_edges_live_stand_side_by_side(orientation: Any) -> None:
    trace = known_trace({(1, "Resid Start->A0.0.Q"): 1.0, (4, "MLP 0->MLP 1"): 0.5}, SEQ)
    values = scores(BESIDE, SEQ)
    drawn = trace.draw(values, side_by_side=True, orientation=orientation)
    score, live = drawn.data[::2], drawn.data[1::2]
    assert titles(drawn)[:2] == ["score", "live"]
    for left, right in zip(score, live, strict=True):
        assert left.link.value == right.link.value  # as wide as the scores
        assert left.domain.x[1] < right.domain.x[0]
    alone, beside = (trace.draw(values), trace.draw(score_threshold=0.3))
    assert [one.link.label for one in score] == [one.link.label for one in alone.data]
    labels = {label.split("<br>")[0]: label for one in live for label in one.link.label}
    expected = {label.split("<br>")[0]: label for one in beside.data for label in one.link.label}
    assert expected.items() <= labels.items()
    assert labels[EDGE].endswith("mask 0.00")  # not patched in that pass: what it carried
    note = " ".join(one.text for one in drawn.layout.annotations).replace("<br>", " ")
    assert "On each edge: its score. These scores do not say what they measure." in note
    assert "Beside it: ‖current‖→‖patched‖" in note


def test_the_table_below_has_scores_and_activations() -> None:
    trace = known_trace({EDGE: 1.0})
    drawn = trace.draw(scores({EDGE: -2.0}), side_by_side=True, table=True, label="cosine")
    (below,) = (one for one in drawn.data if isinstance(one, go.Table))
    cells = dict(zip(below.header.values, below.cells.values, strict=True))
    plain = lambda text: re.sub("<.*?>", "", text)  # noqa: E731
    shown = {plain(name): [plain(value) for value in values] for name, values in cells.items()}
    assert (shown["score"], shown["mask"]) == (["-2.00"], ["1.00"])


def test_side_by_side_needs_two_things() -> None:
    model, values = wrapped(), scores({EDGE: 1.0})
    with pytest.raises(ct.NoTraceError, match=r"no pass can stand beside the scores\. Run one"):
        draw_seq_graph(model, values, side_by_side=True)
    trace = known_trace({EDGE: 1.0})
    with pytest.raises(ct.FigureError, match="give prune_scores"):
        trace.draw(side_by_side=True)
    with pytest.raises(ct.FigureError, match="as wide as their scores: leave width out"):
        trace.draw(values, side_by_side=True, width="delta")
    with pytest.raises(ct.InputError, match="batch"):
        trace.draw(values, side_by_side=True, batch_idx=99)
    assert not trace.draw(scores({}), side_by_side=True).data
