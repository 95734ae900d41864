"""A file is written whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.files import atomic_write

OLD, NEW = "what was there", "what comes"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def replace(path: Path, text: str = NEW) -> None:
    with atomic_write(path) as unfinished:
        assert unfinished.parent == path.resolve().parent, "else it could not take the file's place"
        assert unfinished.suffix == path.resolve().suffix
        unfinished.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x.trace", "x", ".x", "x" * 240 + ".trace", "Ж" * 120 + ".html"])
def test_a_file_appears_and_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for text in (OLD, NEW):
        replace(path, text)
        assert path.read_text() == text
        assert names(tmp_path) == [name]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace(Path("x.trace"))
    assert (tmp_path / "x.trace").read_text() == NEW


@pytest.mark.parametrize(
    "error", [ValueError("no"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("before", [OLD, None])
def test_an_error_leaves_what_was_there(
    error: BaseException, before: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "x.trace"
    if before is not None:
        path.write_text(before)
    with pytest.raises(type(error)) as caught, atomic_write(path) as unfinished:  # noqa: PT012
        unfinished.write_text(NEW)
        raise error
    assert caught.value is error
    assert names(tmp_path) == ([] if before is None else ["x.trace"])
    assert before is None or path.read_text() == before


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_disk_that_fails_at_the_end(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.trace"
    path.write_text(OLD)

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left"):
        replace(path)
    monkeypatch.undo()
    assert names(tmp_path) == ["x.trace"]
    assert path.read_text() == OLD


def test_it_lies_on_the_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (steps.append(name), real(*args))[1]
        )
    replace(tmp_path / "x.trace")
    assert steps == ["fsync", "replace", "fsync"], "the file, its place, the folder"


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("before", "after"), [(None, 0o640), (0o604, 0o604), (0o777, 0o777)])
def test_permissions_are_those_that_open_would_leave(
    before: int | None, after: int, tmp_path: Path
) -> None:
    path, plain = tmp_path / "x.trace", tmp_path / "plain"
    for file in (path, plain):
        if before is not None:
            file.write_text(OLD)
            file.chmod(before)
    replace(path)
    with open(plain, "w"):
        assert mode_of(path) == mode_of(plain) == after


@pytest.mark.usefixtures("umask")
def test_permissions_of_a_writer_that_makes_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    with atomic_write(path) as unfinished:
        unfinished.unlink()
        unfinished.write_text(NEW)
        unfinished.chmod(0o600)
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_a_link(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x.trace", tmp_path / "link.trace"
    if is_there:
        target.write_text(OLD)
    link.symlink_to(target)
    replace(link)
    assert link.is_symlink()
    assert target.read_text() == link.read_text() == NEW
    assert names(tmp_path) == ["link.trace", "there"]


def test_a_link_to_itself(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="symbolic links"):
        replace(link)
    assert link.is_symlink()


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    with pytest.raises(IsADirectoryError):
        replace(folder)
    with pytest.raises(OSError, match="Not a regular file"):
        replace(pipe)
    assert folder.is_dir()
    assert pipe.is_fifo()
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "nowhere" / "x.trace")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    path.write_text(OLD)
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        replace(path)
    assert path.read_text() == OLD


# --- paths that cannot be ------------------------------------------------------------------------

MODEL = ct.wrap(ct.load_model("bundled"))
TRACE = MODEL.trace("When Mary and", corrupt="When John and")
SCORES = {"blocks.1.hook_resid_post": torch.eye(11)[3]}
PAIR = ("When Mary and", "When John and", "John", "Mary")

USES: dict[str, tuple[str, type[Exception], Callable[[Any], object]]] = {
    "Trace.save": ("x.trace", ct.InputError, TRACE.save),
    "Trace.load": ("x.trace", ct.FormatError, ct.Trace.load),
    "save_scores": ("x.pkl", ct.FormatError, lambda path: ct.save_scores(SCORES, path)),
    "load_scores": ("x.pkl", ct.FormatError, ct.load_scores),
    "draw": ("x.html", ct.FigureError, lambda path: TRACE.draw(file_path=path)),
    "explore": ("x.html", ct.FigureError, lambda path: TRACE.explore(file_path=path)),
    "resume": (
        "run.part",
        ct.CircuitTraceError,
        lambda path: ct.score_edges(MODEL, PAIR, resume=path),
    ),
}
"""The file that a function takes, what it raises, and the call."""
NO_NAMES: dict[str, Callable[[str], Any]] = {
    "a zero": lambda name: f"a\0{name}",
    "half a character": lambda name: f"\ud800{name}",
    "bytes": lambda name: name.encode(),
    "a number": lambda name: 3,
}
IMPOSSIBLE: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "too long": (lambda folder, name: folder / ("x" * 300 + name), "File name too long; choose a"),
    "a folder too long": (lambda folder, name: folder / ("x" * 300) / name, "File name too long;"),
    "below a file": (lambda folder, name: folder / "file" / name, "Cannot "),
    "a folder": (lambda folder, name: folder / f"folder-{name}", "folder"),
}
"""Nobody can write there, nor read."""


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("given", NO_NAMES)
@pytest.mark.parametrize("use", USES)
def test_what_no_file_can_be_called(use: str, given: str) -> None:
    name, refuse, call = USES[use]
    refuse = ct.FigureError if refuse is ct.FigureError else ct.InputError
    with pytest.raises(refuse, match=r"^(path|file_path|resume) must "):
        call(NO_NAMES[given](name))


@pytest.mark.parametrize("where", IMPOSSIBLE)
@pytest.mark.parametrize("use", USES)
def test_where_no_file_can_be(use: str, where: str, tmp_path: Path) -> None:
    name, refuse, call = USES[use]
    (tmp_path / "file").touch()
    (tmp_path / f"folder-{name}").mkdir()
    make, reason = IMPOSSIBLE[where]
    path = make(tmp_path, name)
    with pytest.raises(refuse, match=re.escape(reason)) as caught:
        call(path)
    assert repr(str(path)) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", f"folder-{name}"]


@pytest.mark.parametrize("use", USES)
def test_a_folder_without_permission(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the system call is what refuses."""
    name, refuse, call = USES[use]
    path = tmp_path / name

    def denied(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for reading in ("pathlib.Path.read_bytes", "circuit_trace.record.saved.container.safe_open"):
        monkeypatch.setattr(reading, denied)
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda at, *more: denied() if str(tmp_path) in str(at) else real(at, *more)
    )
    if use.endswith(("load", "load_scores")):
        path.write_bytes(b"{}")
    with pytest.raises(refuse) as caught:
        call(path)
    assert str(caught.value) == (
        f"Cannot {'read' if 'load' in use else 'write'} {str(path)!r}: Permission denied; choose "
        "another place, or change its permissions."
    ).replace("Cannot read" if use == "Trace.load" else "?", "Cannot load a trace from")


def test_scores_given_to_a_trace_and_a_trace_to_scores(tmp_path: Path) -> None:
    """Each says what the file is, and what reads it."""
    trace = tmp_path / "x.trace"
    TRACE.save(trace)
    with pytest.raises(ct.FormatError, match=r"It is a trace: ct\.Trace\.load\(path\) reads it"):
        ct.load_scores(trace)
    for name in ("x.pkl", "x.json", "x.graphml", "x.pth"):
        circuit = {"blocks.1.hook_resid_post": torch.ones(11)}
        for module in TRACE.graph.modules:
            circuit.setdefault(module.name, torch.zeros(module.shape))
        path = tmp_path / name
        ct.save_scores(circuit, path, format="eap_ig" if name == "x.json" else None)
        with pytest.raises(ct.FormatError, match=r"Scores of edges are read by ct\.load_scores"):
            ct.Trace.load(path)
    ct.score_edges(MODEL, PAIR, resume=tmp_path / "run.part")
    for load in (ct.Trace.load, ct.load_scores):
        with pytest.raises(ct.FormatError, match=r"what a run that may be resumed has left"):
            load(tmp_path / "run.part")
    for other in (trace, tmp_path / "x.pkl"):
        with pytest.raises(ct.FormatError, match=r"to resume|resume from"):
            ct.score_edges(MODEL, PAIR, resume=other)


def test_what_a_run_left_is_not_read_for_what_it_claims(tmp_path: Path) -> None:
    """A sum of 2 GiB, in holes, is refused by its shape."""
    path = tmp_path / "run.part"
    ct.score_edges(MODEL, PAIR, resume=path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header = {"__metadata__": header["__metadata__"]}
    header["sums"] = {"dtype": "F64", "shape": [2**28], "data_offsets": [0, 2**31]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + 2**31)
    with pytest.raises(ct.FormatError, match="does not hold the first of the run"):
        ct.score_edges(MODEL, PAIR, resume=path)
