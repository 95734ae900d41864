"""A file is written whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

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
