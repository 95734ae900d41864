"""Files that users name: paths are checked, refusals are told in our words, and what is written is
there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from circuit_trace.errors import CircuitTraceError, InputError

ADVICE = {
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "one of its folders is a file",
    errno.EEXIST: "one of its folders is a file",
    errno.EISDIR: "give the name of a file in it",
}
"""What to do about what a file system says, where that is not plain."""


def checked_path(
    path: Any,
    name: str = "path",
    example: str = "x.trace",
    refuse: type[CircuitTraceError] = InputError,
) -> Path:
    """The path that a user gives, if it can be one of any file.

    >>> checked_path("out/x.trace").name
    'x.trace'

    Args:
        path: What is given.
        name: How the user calls it.
        example: One that would do.
        refuse: What is raised.

    Raises:
        CircuitTraceError: `refuse`: it is no path, or holds what no name of a file can.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        shown = repr(path)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        raise refuse(f"{name} must be a path such as {example!r}; got {shown}.")
    try:
        os.fsencode(text)
        is_possible = "\0" not in text
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise refuse(
            f"{name} must not hold a zero character or half a character, which no name of a file can; "
            f"got {text[:60]!r}."
        )
    return Path(text)


@contextmanager
def refusing(refuse: type[CircuitTraceError], what: str) -> Iterator[None]:
    """Tell what the operating system refuses in the block as an error of ours.

    >>> with refusing(InputError, "Cannot read 'none.csv'"):
    ...     open("none.csv")
    Traceback (most recent call last):
    ...
    circuit_trace.errors.InputError: Cannot read 'none.csv': No such file or directory.
    """
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0)
        reason = error.strerror or str(error) or type(error).__name__
        raise refuse(f"{what}: {reason}{f'; {advice}' if advice else ''}.") from error


@contextmanager
def writing(path: Path, refuse: type[CircuitTraceError] = InputError) -> Iterator[Path]:
    """As `atomic_write`, in a folder that is made, with an error of ours where it cannot be."""
    with refusing(refuse, f"Cannot write {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            yield unfinished


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; when the block ends well, that file takes its place.

    Whatever happens before (an error, a full disk, a killed process), the old file stays whole. A
    link stays a link to the file that is replaced; permissions are those that `open(path, "w")`
    would leave.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with atomic_write(target) as unfinished:
    ...     length = unfinished.write_text("all of it")
    >>> target.read_text(), [file.name for file in target.parent.iterdir()]
    ('all of it', ['notes.txt'])

    Raises:
        OSError: The file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    # The name is cut to fit beside any other; the extension stays, since some writers go by it.
    stem = target.stem.lstrip(".")[:40]
    unfinished = target.with_name(f".{stem}-{secrets.token_hex(4)}{target.suffix}")
    handle = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode) if mode is None else mode
        os.close(handle)
        yield unfinished
        os.chmod(unfinished, mode)  # the block may have put a new file there
        _to_disk(unfinished, os.O_RDWR)
        os.replace(unfinished, target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    if os.name == "posix":
        with suppress(OSError):  # not every file system can; the file is in place either way
            _to_disk(target.parent, os.O_RDONLY)


def _mode_of(target: Path) -> int | None:
    """The permissions of a file that may be replaced, None where there is none yet."""
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(found):  # a device or a pipe would be gone
        raise OSError(errno.EINVAL, "Not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(found)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
