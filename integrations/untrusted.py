"""Open files from strangers: bounded in size, and without running anything that is in them.

What torch saved is read with `weights_only=True`, after its list of contents and the names that it asks
for were looked at; a compressed archive, which torch never writes, is refused. Text is counted before it
is parsed.
"""

from __future__ import annotations

import io
import json
import pickletools
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from circuit_trace.errors import FormatError
from circuit_trace.files import refusing
from circuit_trace.text import told

MOST_BYTES = 2**29
"""A file of 50 million edges in double precision is smaller than this."""

MOST_TEXT_BYTES = 2**28
"""JSON of 3 million edges is smaller than this."""

MOST_ITEMS = 10_000_000
"""Numbers, lists and the like that a text may hold; each costs some hundred bytes when it is read."""

MOST_RECORDS, MOST_PICKLED = 100_000, 2**25
"""Tensors in a file, and bytes of what says how they belong together; some 500,000 edges of ACDC's."""

ZIP_START = b"PK\x03\x04"
"""What a file begins with that `torch.save` wrote."""

_NUMBERS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")

_PLAIN_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in _NUMBERS),
}
"""What a saved dict of tensors asks for. torch's own list is longer, and some of it allocates."""


def read_bytes(path: Path) -> bytes:
    """Everything that is in a file.

    Raises:
        FormatError: There is no such file, it is empty, too large or none that can be read.
    """
    with refusing(FormatError, f"Cannot read {str(path)!r}"):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{str(path)!r} is not a file.")
        if not 1 <= found.st_size <= MOST_BYTES:
            raise FormatError(
                f"{str(path)!r} has {found.st_size:,} bytes: expected a file of scores, of 1 to "
                f"{MOST_BYTES:,} bytes."
            )
        return path.read_bytes()


def decode(data: bytes) -> str:
    """The text of a file in UTF-8.

    Raises:
        FormatError: It is not, or it is too large.
    """
    if len(data) > MOST_TEXT_BYTES:
        raise FormatError(
            f"This text has {len(data):,} bytes; at most {MOST_TEXT_BYTES:,} are read. Save larger "
            "scores as tensors (.pt)."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"This is no text in UTF-8 (byte {error.start:,}), nor a file of torch.save's."
        ) from error


def lines_of(text: str, what: str) -> list[str]:
    """The lines of a text.

    Raises:
        FormatError: There are too many.
    """
    check_items(text, "\n", what)
    return text.split("\n")


def check_items(text: str, marks: str, what: str) -> None:
    """Check that a text holds no more than can be read into memory.

    Raises:
        FormatError: It does.
    """
    count = sum(text.count(mark) for mark in marks)
    if count > MOST_ITEMS:
        raise FormatError(
            f"This {what} has {count:,} items; at most {MOST_ITEMS:,} are read. Save larger scores as "
            "tensors (.pt)."
        )


def parse_json(text: str) -> Any:
    """What a text says in JSON, in which no object has a key twice.

    Raises:
        FormatError: It is not JSON.
    """
    check_items(text, "[{,", "JSON")
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"This begins like JSON and is not: {str(error)[:120]}.") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise FormatError(
            f"The key {told(twice)} comes twice in one object: give each edge one score."
        )
    return found


def load_torch(data: bytes) -> Any:
    """What `torch.save` put into a file: tensors, text, numbers, and dicts, lists and tuples of them.

    Raises:
        FormatError: The file is damaged, or holds anything else.
    """
    try:
        records = _records(data)
        name = _only_pickle(records)
        if len(records[name]) > MOST_PICKLED:
            raise FormatError(
                f"This file lists {len(records[name]):,} bytes of names and numbers beside its tensors; "
                f"at most {MOST_PICKLED:,} are read."
            )
        _check_names(records[name])
        return torch.load(_archive(records), weights_only=True, map_location="cpu")
    except FormatError:
        raise
    except Exception as error:  # damaged files fail in every way there is, in three libraries
        raise FormatError(
            f"This file of torch.save's is damaged ({type(error).__name__})."
        ) from error


def _records(data: bytes) -> dict[str, bytes]:
    if data.count(b"PK\x01\x02") > MOST_RECORDS:
        raise FormatError(f"This archive has more than {MOST_RECORDS:,} entries.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise FormatError(
                "This archive is compressed, which torch.save never does, so it is not read."
            )
        if sum(entry.file_size for entry in entries) > len(data):
            raise FormatError("This archive says that it holds more than it does.")
        return {entry.filename: archive.read(entry) for entry in entries}


def _only_pickle(records: dict[str, bytes]) -> str:
    names = [name for name in records if name.endswith("/data.pkl")]
    if len(names) != 1 or any(name.endswith("/constants.pkl") for name in records):
        raise FormatError(
            "This is an archive, and not one of torch.save's with scores in it (a saved model, a "
            "spreadsheet, …)."
        )
    return names[0]


def _archive(records: dict[str, bytes]) -> io.BytesIO:
    """The same records in a new archive: torch shall read those that were looked at, and no others."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    packed.seek(0)
    return packed


def _check_names(pickled: bytes) -> None:
    """Check what a pickle asks for by name, without loading it."""
    for name in _names_in(pickled):
        if name not in _PLAIN_NAMES:
            asked = name.replace(" ", ".")
            raise FormatError(
                f"This file asks for {asked[:80]!r}, which is no plain data, so it is not read: "
                "loading it could run code or fill the memory. Where you trust it, load it yourself "
                "and save dicts of tensors with torch.save (dict(…) of a defaultdict, torch.tensor(…) "
                "of a NumPy array)."
            )


def _names_in(pickled: bytes) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            yield opcode.name


def is_pickle(data: bytes) -> bool:
    """Whether a file begins like a pickle of Python's own, or like what torch saved before 1.6."""
    return data[:1] == b"\x80" and 2 <= data[1] <= 5 if len(data) > 1 else False


def refuse_pickle() -> FormatError:
    """What to say of a pickle."""
    return FormatError(
        "This is a plain Python pickle (or a file of torch before 1.6). Tensors in one are rebuilt by "
        "calling functions that the file names, so it cannot be read safely. Where you trust it, load "
        "it yourself, with pickle.load or torch.load, and write it again with torch.save."
    )
