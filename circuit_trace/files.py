"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
