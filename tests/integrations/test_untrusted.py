"""Files from strangers: nothing in them is run, nothing is made before it is known to be small."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuit_trace as ct
from circuit_trace.integrations import untrusted
from circuit_trace.integrations.untrusted import (
    check_items,
    decode,
    lines_of,
    load_torch,
    parse_json,
    read_bytes,
    told,
)
from tests.integrations.circuits import repacked

FORMAT = ct.FormatError


def packed(data: Any, **options: Any) -> bytes:
    saved = io.BytesIO()
    torch.save(data, saved, **options)
    return saved.getvalue()


PLAIN_DATA: dict[str, Any] = {
    "tensors": {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)},
    "other types": [torch.ones(2, dtype=dtype) for dtype in (torch.bool, torch.int8, torch.half)],
    "a parameter": {"a": torch.nn.Parameter(torch.ones(2))},
    "an ordered dict": OrderedDict({("a", (None, 1)): True}),
    "numbers and text": [1, 2.5, None, True, "text", (1, 2), 2**70],
    "nothing": {},
}


@pytest.mark.parametrize("kind", PLAIN_DATA)
def test_plain_data_is_read(kind: str) -> None:
    found = load_torch(packed(PLAIN_DATA[kind]))
    assert type(found) is type(PLAIN_DATA[kind])
    assert str(found) == str(PLAIN_DATA[kind])


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class Large:
    """Takes 100 GB when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**11,)


def test_code_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(FORMAT, match=r"^This file asks for 'posix\.mkdir', which is no plain data"):
        load_torch(packed({"a": Evil(tmp_path / "made")}))
    assert not (tmp_path / "made").exists()


ASKS = {
    "a defaultdict": (defaultdict(dict, a={}), "collections.defaultdict"),
    "an array": (np.ones(2), "numpy"),
    "memory": (Large(), "__builtin__.bytearray"),
    "a module": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "a sparse tensor": (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
}


@pytest.mark.parametrize("kind", ASKS)
def test_what_is_no_plain_data_is_named(kind: str) -> None:
    data, name = ASKS[kind]
    with pytest.raises(FORMAT, match=rf"^This file asks for '{re.escape(name)}"):
        load_torch(packed(data))


GOOD = packed({"a": torch.arange(5.0)})


def with_pickle(pickled: bytes) -> bytes:
    return repacked(GOOD, lambda name, data: pickled if name.endswith("data.pkl") else data)


def test_names_on_the_stack_are_not_looked_up() -> None:
    for protocol in (4, 5):
        with pytest.raises(FORMAT, match=r"asks for 'STACK_GLOBAL'"):
            load_torch(with_pickle(pickle.dumps({"a": Evil(Path("x"))}, protocol)))


def test_a_tensor_that_claims_more_than_the_file_holds() -> None:
    # 5 numbers become 65,535, in the storage and in the shape.
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        pickled = archive.read("archive/data.pkl")
    assert pickled.count(b"K\x05") == 2
    large = pickled.replace(b"K\x05tq", b"M\xff\xfftq").replace(b"K\x05\x85", b"M\xff\xff\x85")
    with pytest.raises(FORMAT, match=r"^This file of torch\.save's is damaged"):
        load_torch(with_pickle(large))


def test_compressed_archives_are_refused() -> None:
    bomb = packed({"a": torch.zeros(3_000_000)})
    small = repacked(bomb, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert len(small) < len(bomb) / 100
    with pytest.raises(FORMAT, match=r"^This archive is compressed, which torch\.save never does"):
        load_torch(small)


def test_an_archive_that_says_it_holds_more() -> None:
    at = GOOD.index(b"PK\x01\x02")
    size = struct.pack("<I", 2**31)
    with pytest.raises(FORMAT, match=r"^This archive says that it holds more than it does"):
        load_torch(GOOD[: at + 24] + size + GOOD[at + 28 :])


def test_archives_that_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MOST_PICKLED", 100)
    with pytest.raises(FORMAT, match=r"^This file lists 162 bytes of names and numbers beside its"):
        load_torch(GOOD)
    monkeypatch.setattr(untrusted, "MOST_RECORDS", 3)
    with pytest.raises(FORMAT, match=r"^This archive has more than 3 entries"):
        load_torch(GOOD)


@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04", b"PK\x03\x04" + bytes(500), GOOD[:-1], GOOD[: len(GOOD) // 2], GOOD[40:]],
)
def test_broken_archives(data: bytes) -> None:
    with pytest.raises(FORMAT, match=r"damaged|not one of torch\.save's"):
        load_torch(data)


def test_other_archives() -> None:
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("xl/workbook.xml", "<a/>")
    with pytest.raises(FORMAT, match=r"^This is an archive, and not one of torch\.save's"):
        load_torch(other.getvalue())


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in (
        (tmp_path / "absent.pt", r"Cannot read .*: No such file"),
        (tmp_path, r"is not a file"),
        (Path(os.devnull), r"is not a file"),
        (tmp_path / ("x" * 300), r"Cannot read .*: File name too long"),
    ):
        with pytest.raises(FORMAT, match=message):
            read_bytes(path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FORMAT, match="is not a file"):
        read_bytes(tmp_path / "pipe.pt")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(FORMAT, match=r"has 0 bytes: expected a file of scores, of 1 to"):
        read_bytes(tmp_path / "a.pt")
    monkeypatch.setattr(untrusted, "MOST_BYTES", 10)
    (tmp_path / "a.pt").write_bytes(b"12345678901")
    with pytest.raises(FORMAT, match=r"has 11 bytes: expected a file of scores, of 1 to 10 bytes"):
        read_bytes(tmp_path / "a.pt")


def test_text_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode("\ufeffa→b".encode()) == "a→b"
    with pytest.raises(FORMAT, match=r"no text in UTF-8 \(byte 1\)"):
        decode(b"a\xff")
    monkeypatch.setattr(untrusted, "MOST_TEXT_BYTES", 3)
    with pytest.raises(FORMAT, match=r"This text has 4 bytes; at most 3"):
        decode(b"1234")


BAD_JSON = {
    "deep": ("[" * 200_000, r"^This begins like JSON and is not"),
    "cut off": ('{"a": 1', r"^This begins like JSON and is not"),
    "more behind": ("{} {}", r"Extra data"),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', r"^The key 'c' comes twice in one object"),
    "a long number": ("[" + "1" * 5_000 + "]", r"^This begins like JSON and is not"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_is_none(kind: str) -> None:
    text, message = BAD_JSON[kind]
    with pytest.raises(FORMAT, match=message):
        parse_json(text)


def test_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json("[[1, 2], {}]") == [[1, 2], {}]
    monkeypatch.setattr(untrusted, "MOST_ITEMS", 4)
    with pytest.raises(FORMAT, match=r"^This JSON has 5 items; at most 4 are read"):
        parse_json("[[1, 2], {}]")
    with pytest.raises(FORMAT, match=r"^This XML has 5 items"):
        check_items("<<<<<", "<", "XML")
    assert lines_of("a\n\nb", "DOT") == ["a", "", "b"]
    with pytest.raises(FORMAT, match=r"^This DOT has 5 items"):
        lines_of("\n" * 5, "DOT")


def doubling(times: int) -> list[Any]:
    """A list that holds another twice, and so on: `repr` of it is exponentially long."""
    found: list[Any] = []
    for _ in range(times):
        found = [found, found]
    return found


TOLD: dict[str, tuple[Any, str]] = {
    "text": ("A0.1", "'A0.1'"),
    "long text": ("x" * 999, f"'{'x' * 60}'…"),
    "a number": (0.5, "0.5"),
    "a long number": (-(10**5000), "a number of 16610 bits"),
    "nothing": (None, "None"),
    "a pair": (("a", (1, 2)), "('a', a tuple)"),
    "doubled lists": (doubling(60), "[a list, a list]"),
    "many": ([1] * 9, "a list"),
    "a dict": ({"a": 1, 2: 2}, "a dict with the keys 'a', 2"),
    "a tensor": (torch.ones(2), "a Tensor"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_values_are_told_in_few_words(kind: str) -> None:
    value, words = TOLD[kind]
    assert told(value) == words
