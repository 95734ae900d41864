"""Files that are damaged, foreign or absurd end in our error, and a save that fails in nothing."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import circuit_trace as ct
from circuit_trace.file_kinds import UNFINISHED
from circuit_trace.record.saved.container import VERSION, Content, read_file, write_file
from tests.trace.test_saved import NAME, SEQ, a_trace, answers, bundled, check_same, nested, toy

HYPOTHESIS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """A small file."""
    toy(3).save(folder / "whole.trace")
    return (folder / "whole.trace").read_bytes()


def load(folder: Path, data: bytes) -> ct.Trace:
    path = folder / "x.trace"
    path.write_bytes(data)
    return ct.Trace.load(path)


# --- what is no trace ---------------------------------------------------------------------------


def a_figure(path: Path) -> None:
    a_trace().draw(file_path=path.with_suffix(".json"))
    path.with_suffix(".json").rename(path)


def a_header(header: Any, data: bytes = b"") -> Callable[[Path], None]:
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text + data)


HUGE = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}
FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "it does not exist"),
    "folder": (lambda path: path.mkdir(), "it is not a file"),
    "empty": (lambda path: path.touch(), "not a whole safetensors file"),
    "random": (lambda path: path.write_bytes(bytes(range(256))), "not a whole safetensors file"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "not a whole safetensors file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "It is a Python pickle"),
    "torch": (
        lambda path: torch.save({"a": torch.ones(3)}, path),
        "an archive, such as torch.save",
    ),
    "figure": (a_figure, "It is JSON. Scores of edges are read by ct.load_scores"),
    "safetensors": (
        lambda path: save_file({"a": torch.ones(3)}, path),
        "such as a model's weights",
    ),
    "other metadata": (lambda path: save_file({}, path, {"format": "pt"}), "is not a trace"),
    "a run": (
        lambda path: save_file({}, path, {"kind": UNFINISHED}),
        "score_edges(..., resume=path)",
    ),
    "nothing": (a_header({}), "is not a trace"),
    "metadata of a kind": (a_header({"__metadata__": {"format": 3}}), "not a whole safetensors"),
    "huge": (a_header(HUGE, b"1234"), "not a whole safetensors file"),
    "endless header": (lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "not a whole"),
    "nested header": (a_header(b"[" * 100_000), "not a whole safetensors file"),
    "no more": (
        a_header({"__metadata__": {"format": "circuit_trace.trace", "version": "1"}}),
        "holds no JSON",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_trace(case: str, tmp_path: Path) -> None:
    make, message = FOREIGN[case]
    path = tmp_path / "x.trace"
    make(path)
    with pytest.raises(ct.FormatError, match=re.escape(message)) as caught:
        ct.Trace.load(path)
    assert repr(str(path)) in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("circuit_trace.record.saved.container.safe_open", refuse)
    path = tmp_path / "x.trace"
    path.touch()
    with pytest.raises(ct.FormatError, match="Permission denied"):
        ct.Trace.load(path)
    with pytest.raises(ct.FormatError, match="File name too long"):
        ct.Trace.load(tmp_path / ("x" * 300))


@pytest.mark.parametrize("version", [VERSION + 1, "1.1", "", "two"])
def test_another_version(version: object, folder: Path, whole: bytes) -> None:
    """It says so before anything else is looked at: nothing else need be as it is now."""
    header = {"__metadata__": {"format": "circuit_trace.trace", "version": str(version)}}
    path = folder / "x.trace"
    a_header(header)(path)
    hint = " Upgrade circuit-trace to read it." if isinstance(version, int) else ""
    with pytest.raises(ct.FormatError) as caught:
        ct.Trace.load(path)
    assert str(caught.value) == (
        f"The trace in {str(path)!r} is of the file version {str(version)!r}; this circuit-trace reads "
        f"version 1.{hint}"
    )


# --- damage -------------------------------------------------------------------------------------


def test_a_file_that_was_cut_off(folder: Path, whole: bytes) -> None:
    lengths = {*range(64), *range(0, len(whole), 37), *range(len(whole) - 64, len(whole))}
    for length in sorted(lengths):
        with pytest.raises(ct.FormatError, match="not a whole safetensors file"):
            load(folder, whole[:length])
    check_same(load(folder, whole), toy(3))


@HYPOTHESIS
@given(data=st.data())
def test_bytes_that_were_changed(folder: Path, whole: bytes, data: st.DataObject) -> None:
    """Refused, or, in what says nothing (spaces, the order of names), of no effect."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        # As often in the first numbers of the header as in the rest.
        end = data.draw(st.sampled_from([8, 200, len(changed)]))
        place = data.draw(st.integers(0, end - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "remove"]))
        new = data.draw(st.binary(min_size=1, max_size=1)) if kind != "remove" else b""
        changed[place : place + (kind != "insert")] = new
    try:
        found = load(folder, bytes(changed))
    except ct.FormatError:
        return
    check_same(found, toy(3))


def test_a_tensor_that_was_changed(folder: Path, whole: bytes) -> None:
    """Every byte of every tensor counts."""
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises(ct.FormatError, match="is damaged: its checksum does not match"):
            load(folder, bytes(changed))


# --- absurd, though the checksum fits -----------------------------------------------------------

Path_ = tuple[str | int, ...]


def changed(content: Content, at: Path_, value: Any) -> Content:
    data = copy.deepcopy(dict(content.data))
    owner: Any = data
    for name in at[:-1]:
        owner = owner[name]
    owner[at[-1]] = value
    return Content(data, content.tensors)


def with_tensor(content: Content, name: str, tensor: Tensor) -> Content:
    return Content(content.data, {**content.tensors, name: tensor})


QUESTIONS: list[Callable[[ct.Trace], object]] = [
    answers,
    lambda trace: trace.table(n_tokens=2, batch_idx="mean", direction=(1, 2)),
    lambda trace: trace.draw(table=True, layer_spacing=True).to_json(),
    lambda trace: trace.draw(label="tokens", orientation="v").to_json(),
    lambda trace: trace.explore(),
    lambda trace: (trace.about.config_hash, repr(trace), repr(trace.about)),
]


MASK = "plan 0, mask of end"
CODE, READ = "current, B0.0, code", "read 0, seen"
SITE: Path_ = ("current", "sites", 1)
ABSURD: dict[str, tuple[Path_, Any, str]] = {
    "no graph": (("graph",), None, r"record\.graph is None: expected an object"),
    "no sources": (("graph", "sources"), [], r"a list of 1 to any number of entries"),
    "an empty site": (("graph", "sources", 1), [], r"sources\[1\] is \[\]"),
    "no modules": (("graph", "modules"), [], "expected a list of 1 to"),
    "one more source": (("graph", "sources", 0), [{}, {}], r"sources\[0\]\[0\] has no '\w+'"),
    "two of a name": (("graph", "sources", 1, 0, "name"), "B0.1", "no name stands for two"),
    "two modules of a name": (("graph", "modules", 0, "name"), "end", "no name stands for two"),
    "an arrow": (("graph", "sources", 1, 0, "name"), "a->b", "expected a name, printable"),
    "no name": (("graph", "sources", 1, 0, "name"), "", "expected a name, printable"),
    "half a character": (("graph", "sources", 1, 0, "name"), "\ud800", "expected a name"),
    "a name of a kind": (("graph", "sources", 1, 0, "name"), 3, "name is 3: expected text"),
    "a kind": (("graph", "sources", 1, 0, "kind"), "norm", "one of embed, attention, mlp, output"),
    "a depth": (("graph", "sources", 1, 0, "depth"), 10**9, "whole number from 0 to 100000"),
    "no whole depth": (("graph", "sources", 1, 0, "depth"), 0.5, "expected a whole number"),
    "true depth": (("graph", "sources", 1, 0, "depth"), True, "expected a whole number"),
    "a head": (("graph", "modules", 0, "dests", 0, "head"), None, "in a module that has heads"),
    "heads": (("graph", "modules", 0, "has_heads"), False, "expected a list of 1 to 1 entries"),
    "later sources": (("graph", "modules", 0, "n_sources"), 6, "whole number from 1 to 5"),
    "no sources before": (("graph", "modules", 0, "n_sources"), 0, "whole number from 1 to 5"),
    "fewer sources before": (("graph", "modules", 1, "n_sources"), 2, "have the wrong shape"),
    "positions": (("graph", "seq_len"), 4, "expected 4 positions, as the graph has, not 3"),
    "no positions": (("graph", "seq_len"), None, "have the wrong shape"),
    "all positions": (("graph", "seq_len"), 10**12, "fewer edges than 13,000,000,000,000"),
    "half a position": (("graph", "seq_len"), 1.5, "expected a whole number from 1"),
    "no site": (("current", "sites"), [], r"current\.sites is \[\]"),
    "an ablation": (("current", "ablation"), "EVERYTHING", "one of RESAMPLE, ZERO"),
    "no code": ((*SITE, "code"), None, "code is None: expected an object"),
    "no such tensor": ((*SITE, "code"), {"tensor": "?"}, r"code\.tensor is '\?': expected one of"),
    "integers": ((*SITE, "code"), {"tensor": "plan 0, named edges"}, "not torch.int64"),
    "a shape": ((*SITE, "code"), {"tensor": MASK}, r"tensor of the shape \[1, 3, 2, 2\], not"),
    "axes": ((*SITE, "code"), {"tensor": CODE, "axes": [0, 0, 1, 2]}, "axes of a tensor of 4"),
    "no axes": ((*SITE, "code"), {"tensor": CODE, "axes": []}, "axes of a tensor of 4"),
    "a dtype": ((*SITE, "code"), {"tensor": CODE, "dtype": "int8"}, "one of float64, float32"),
    "a weight": ((*SITE, "weight"), {"tensor": CODE}, r"tensor of the shape \[2, 2, 2\], not"),
    "a gain": ((*SITE, "gain"), {"tensor": CODE}, r"tensor of the shape \[2\], not"),
    "no plans": (("plans",), {}, "expected a list"),
    "too many plans": (("plans",), [{}] * 2000, "expected a list of 0 to 1000 entries"),
    "a module": (("plans", 0, "masks", "?"), {"tensor": MASK}, "name the module '[?]'"),
    "a mask": (("plans", 0, "masks", "end"), {"tensor": CODE}, "have the wrong shape"),
    "patched": (("plans", 0, "patched", "sites"), [], "expected a list of 3 to 3 entries"),
    "named": (("plans", 0, "named"), {"tensor": MASK}, "a tensor of torch.int64 or torch.int32"),
    "strings": (("token_strings",), [["a"] * 3], r"null, where there are no tokens"),
    "reads": (("reads",), [None] * 1000, "expected a list of 0 to 24 entries"),
    "a read": (("reads", 0, "dests"), [], "expected a list of 1 to 3 entries"),
    "an unknown read": (("reads", 0, "dests"), [3], "whole number from 0 to 2"),
    "half of a layer's heads": (
        ("graph", "modules", 0, "n_sources"),
        2,
        "all of a layer's heads or none",
    ),
    "heads that read": (("reads", 0, "heads"), [2], "whole number from 0 to 1"),
    "what was seen": (("reads", 0, "seen"), {"tensor": CODE}, r"tensor of the shape \[1, 3, 8\]"),
    "where": (
        ("reads", 0, "positions"),
        {"tensor": "plan 0, named edges"},
        r"a tensor of the shape \[1, 6, 8\]",
    ),
    "biases": (("biases",), [None], "expected a list of 3 to 3 entries"),
    "no biases": (("biases",), [], "expected a list of 3 to 3 entries"),
    "a bias": (("biases", 0), {"tensor": MASK}, "a bias of 2 numbers, not of the shape"),
    "a model": (("about", "model"), 3, "expected text"),
    "a time": (("about", "written"), None, "expected text"),
    "versions": (("about", "versions"), {"torch": 2}, r"versions\.torch is 2: expected text"),
    "a deep configuration": (
        ("about", "config", "a"),
        json.loads("[" * 50 + "]" * 50),
        "values nested 8 deep at most",
    ),
}


@pytest.mark.parametrize("case", ABSURD)
def test_a_field_that_is_absurd(case: str, folder: Path, whole: bytes) -> None:
    at, value, message = ABSURD[case]
    content = read_file(folder / "whole.trace")
    write_file(folder / "x.trace", changed(content, at, value))
    with pytest.raises(ct.FormatError, match=message) as caught:
        ct.Trace.load(folder / "x.trace")
    assert str(caught.value).startswith("The file's ")


TENSORS: dict[str, tuple[str, Tensor, str]] = {
    "a code of no width": (CODE, torch.zeros(1, 3, 2, 0), r"shape \[1, 3, 2, 2\]"),
    "a mask that is none": (MASK, torch.full((3, 5), float("nan")), "expected finite numbers"),
    "an infinite mask": (MASK, torch.full((3, 5), float("inf")), "expected finite numbers"),
    "a complex code": (
        CODE,
        torch.zeros(1, 3, 2, 2, dtype=torch.complex64),
        "is of C64: expected one",
    ),
    "a code of bytes": (
        CODE,
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        "is of U8: expected one",
    ),
    "a read": (READ, torch.zeros(1, 3, 7), r"shape \[1, 3, 8\]"),
    "an edge": ("plan 0, named edges", torch.tensor([999]), "numbers of edges, from 0 to 38"),
    "no edge": ("plan 0, named edges", torch.tensor([-1]), "numbers of edges, from 0 to 38"),
    "no edges": ("plan 0, named edges", torch.zeros(0, dtype=torch.long), r"shape \[any\]"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_is_absurd(case: str, folder: Path, whole: bytes) -> None:
    name, tensor, message = TENSORS[case]
    content = read_file(folder / "whole.trace")
    assert name in content.tensors
    write_file(folder / "x.trace", with_tensor(content, name, tensor))
    with pytest.raises(ct.FormatError, match=message):
        ct.Trace.load(folder / "x.trace")


def test_positions_behind_the_last(folder: Path, whole: bytes) -> None:
    content = read_file(folder / "whole.trace")
    content = with_tensor(content, "where", torch.tensor([0, 1, 3]))
    write_file(folder / "x.trace", changed(content, ("reads", 0, "positions"), {"tensor": "where"}))
    with pytest.raises(ct.FormatError, match="expected positions from 0 to 2"):
        ct.Trace.load(folder / "x.trace")


# --- large by their own account ------------------------------------------------------------------


def sparse(path: Path, content: Content, shapes: dict[str, list[int]]) -> None:
    """A file of that record whose tensors have other shapes, and nothing but holes for numbers."""
    write_file(path, content)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    sizes = {"F32": 4, "I64": 8}
    end = 0
    for name in [*header, *(shapes.keys() - header.keys())]:
        if name == "__metadata__":
            continue
        entry = header.setdefault(name, {"dtype": "F32", "shape": shapes.get(name)})
        entry["shape"] = shapes.get(name, entry["shape"])
        size = sizes[entry["dtype"]] * math.prod(entry["shape"])
        entry["data_offsets"] = [end, end := end + size]
    a_header(header)(path)
    os.truncate(path, path.stat().st_size + end)


LARGE = {
    "a tensor more": ({"more": [2**30]}, "tensor 'more' has no place in its record"),
    "longer prompts": ({CODE: [1, 2**28, 2, 2]}, r"expected a tensor of the shape \[1, 3, 2, 2\]"),
    "a larger batch": (
        {"current, Resid Start, code": [2**27, 3, 1, 2]},
        r"expected a tensor of the shape \[134217728, 3, 2, 2\]",
    ),
    "a larger mask": ({MASK: [2**20, 2**10]}, "have the wrong shape"),
    "more was read": ({READ: [2**20, 2**7, 8]}, r"expected a tensor of the shape \[1, 3, 8\]"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes")
@pytest.mark.parametrize("case", LARGE)
def test_a_small_file_that_claims_gigabytes(case: str, folder: Path, whole: bytes) -> None:
    """It is refused for what it claims, before anything of it is read."""
    resource = pytest.importorskip("resource")
    shapes, message = LARGE[case]
    path = folder / "sparse.trace"
    sparse(path, read_file(folder / "whole.trace"), shapes)
    assert path.stat().st_size > 2**31
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
    with pytest.raises(ct.FormatError, match=message):
        ct.Trace.load(path)
    assert process_time() - start < 5, "to read that much takes ten times as long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    path.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "holds no JSON"),
        ('{"graph": NaN}', "NaN is no number in JSON"),
        ("nothing", "holds no JSON"),
        ("[]", "no record but a list"),
        ("{}", "record has no 'graph'"),
        ("1" * 10_000, "holds no JSON"),
    ],
)
def test_a_record_that_is_none(
    text: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("json.dumps", lambda *_args, **_options: text)
    write_file(folder / "x.trace", Content({}, {}))
    monkeypatch.undo()
    with pytest.raises(ct.FormatError, match=message):
        ct.Trace.load(folder / "x.trace")


def places(data: Any, at: Path_ = ()) -> list[Path_]:
    """Where the values of a record are, no more than three of a list."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(data, dict):
        inner = list(data.items())
    elif isinstance(data, list):
        inner = list(enumerate(data[:3]))
    return [*([at] if at else []), *(p for key, one in inner for p in places(one, (*at, key)))]


VALUES = [None, True, 0, -1, 1, 3, 10**6, 10**30, 0.5, "", "x", "A0.0", "\ud800", "float16", [], {}]
VALUES += [[0], [[]], {"tensor": "logits"}]
SAVED: dict[str, Callable[[], ct.Trace]] = {"text": bundled, "nested": nested, "toy": toy}


@pytest.fixture(scope="module")
def contents(folder: Path) -> dict[str, Content]:
    found = {}
    for name, make in SAVED.items():
        make().save(folder / "x.trace", unembed=name != "toy", factored=True)
        found[name] = read_file(folder / "x.trace")
    return found


@HYPOTHESIS
@given(data=st.data())
def test_anything_in_any_place(
    folder: Path, contents: dict[str, Content], data: st.DataObject
) -> None:
    """Refused when it is loaded or, if it is only strange, answered or refused when it is asked."""
    content = contents[data.draw(st.sampled_from(list(contents)))]
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            at = data.draw(st.sampled_from(places(content.data)))
            content = changed(content, at, copy.deepcopy(data.draw(st.sampled_from(VALUES))))
        else:
            name = data.draw(st.sampled_from(list(content.tensors)))
            content = with_tensor(content, name, data.draw(like(content.tensors[name])))
    write_file(folder / "x.trace", content)
    try:
        trace = ct.Trace.load(folder / "x.trace")
    except ct.FormatError:
        return
    for ask in QUESTIONS:
        with suppress(ct.CircuitTraceError):
            ask(trace)


def like(tensor: Tensor) -> st.SearchStrategy[Tensor]:
    """Tensors that differ from one in dtype, shape or values."""
    dtypes = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.bool,
        torch.complex64,
    ]
    shapes = [(), (0,), (1,), (2, 3), (1, 1, 1, 1), (2, SEQ, 4, 4), (1, *tensor.shape)]
    fills = [0, 1, -1] + ([float("nan"), float("inf")] if tensor.is_floating_point() else [])
    return st.one_of(
        st.sampled_from(dtypes).map(tensor.to),
        st.sampled_from(shapes).map(lambda shape: torch.zeros(shape, dtype=tensor.dtype)),
        st.sampled_from(fills).map(lambda value: torch.full_like(tensor, value)),
        st.just(tensor.flatten()),
    )


# --- saves that fail ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_saves_that_are_killed_or_run_out_of_room(tmp_path: Path) -> None:
    """The file always holds one whole trace, and an error leaves nothing else behind."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trace.interrupted_saves", str(tmp_path), "60"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed, full, left = done.stdout.splitlines()
    counts = re.fullmatch(r"killed 60, unfinished \d+, different (\d+)", killed)
    assert counts is not None
    assert int(counts[1]) > 2, "no child came to save anything"
    assert full == f"Cannot write {str(tmp_path / 'x.trace')!r}: File too large."
    assert left == "left ['x.trace']"


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "pathlib.Path.write_bytes"])
def test_a_disk_that_is_full(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.trace"
    trace = a_trace()
    trace.save(path)
    before = path.read_bytes()

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(ct.InputError) as caught:
        a_trace(edges=[NAME], corrupt=trace.tokens).save(path)
    monkeypatch.undo()
    assert str(caught.value) == f"Cannot write {str(path)!r}: No space left on device."
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
