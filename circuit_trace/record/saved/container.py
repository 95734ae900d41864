"""The file itself: safetensors, with the record's JSON, its version and a checksum in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from circuit_trace.errors import FormatError, InputError
from circuit_trace.file_kinds import ENOUGH, is_safetensors, kind_of, safetensors_kind
from circuit_trace.file_kinds import TRACE as FORMAT
from circuit_trace.files import refusing, writing

VERSION = 1
"""Raised when an older version of this library would misread what is written."""

WRONG_BYTES = (SafetensorError, RuntimeError, ValueError, TypeError, LookupError)
"""What safetensors and torch raise for a file that they cannot read."""


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""What a trace holds, as safetensors call it."""


MOST_TEXT = 100_000_000
"""Bytes of a safetensors file's header, which holds all text."""


@dataclass(frozen=True, eq=False)
class Content:
    """A record as plain data, and the tensors that it names."""

    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_file(path: Path, content: Content) -> None:
    """Write a file whole, or leave the one that is there.

    Raises:
        InputError: It has more text than safetensors takes, or cannot be written.
    """
    text = json.dumps(content.data, allow_nan=False, separators=(",", ":"))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "checksum": _checksum(text, content.tensors),
        "trace": text,
    }
    too_long = InputError(
        "This trace cannot be written as safetensors: its nodes and the strings of its tokens take "
        f"{len(text) / 1e6:.0f} MB, and there is room for {MOST_TEXT / 1e6:.0f} MB. Save fewer prompts."
    )
    try:
        data = to_bytes(dict(content.tensors), metadata)
    except SafetensorError as error:
        raise too_long from error
    if int.from_bytes(data[:8], "little") > MOST_TEXT:  # old versions write what none reads
        raise too_long
    with writing(path) as unfinished:
        unfinished.write_bytes(data)


def read_file(path: Path, check: Callable[[Content], object] = lambda outline: None) -> Content:
    """Read a file and check that every byte that counts is as it was written.

    Args:
        path: The file.
        check: Refuses a record by its outline, whose tensors have dtypes and shapes and no numbers:
            it is asked before any number is read, of which a small file may claim to have many.

    Raises:
        FormatError: There is no such file, it is none of ours, of a later version, or damaged.
    """
    cannot = f"Cannot load a trace from {str(path)!r}"
    with refusing(FormatError, cannot):
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise FormatError(f"{cannot}: it {what}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                _check_is_ours(path, metadata)
                text = metadata.get("trace", "")
                data = _record(path, text)
                check(Content(data, {name: _outline(name, file) for name in file.keys()}))  # noqa: SIM118
                mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if metadata.get("checksum") != _checksum(text, mapped):
                    raise FormatError(
                        f"The trace in {str(path)!r} is damaged: its checksum does not match. It was "
                        "changed after it was written; use another copy, or trace again."
                    )
                # Copies: what lies in a mapped file would change, or go, with the file.
                return Content(data, {name: tensor.clone() for name, tensor in mapped.items()})
        except FormatError:
            raise
        except WRONG_BYTES as error:
            with path.open("rb") as other:
                start = other.read(ENOUGH)
            kind = None if is_safetensors(start) else kind_of(start)
            reason = kind or (
                f"It is not a whole safetensors file ({error}). Expected a file that Trace.save wrote; "
                "was it cut off on its way?"
            )
            raise FormatError(f"{cannot}. {reason}") from error


def _record(path: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"The trace in {str(path)!r} holds no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise FormatError(f"The trace in {str(path)!r} is no record but a {type(data).__name__}.")
    return data


def _outline(name: str, file: Any) -> Tensor:
    """A tensor of a file without its numbers."""
    found = file.get_slice(name)
    if found.get_dtype() not in DTYPES:
        raise FormatError(
            f"The file's tensor {name[:60]!r} is of {found.get_dtype()}: expected one of "
            f"{', '.join(DTYPES)}, which Trace.save writes."
        )
    return torch.empty(found.get_shape(), dtype=DTYPES[found.get_dtype()], device="meta")


def _check_is_ours(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise FormatError(
            f"{str(path)!r} is not a trace: expected a file that Trace.save wrote. "
            f"{safetensors_kind(metadata)}"
        )
    version = metadata.get("version", "")
    if version != str(VERSION):
        hint = "Upgrade circuit-trace to read it." if version.isdecimal() else ""
        raise FormatError(
            f"The trace in {str(path)!r} is of the file version {version!r}; this circuit-trace reads "
            f"version {VERSION}. {hint}".rstrip()
        )


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def digest(tensor: Tensor) -> bytes:
    """What tells a tensor's dtype, shape and bytes from any other's."""
    found = sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    found = sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        found.update(sha256(name.encode()).digest() + digest(tensors[name]))
    return found.hexdigest()
