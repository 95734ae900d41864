"""What a file is, by how it begins: for one that was given to the wrong function."""

from __future__ import annotations

import json
from collections.abc import Mapping

TRACE = "circuit_trace.trace"
"""The format in the metadata of a trace."""

UNFINISHED = "circuit_trace unfinished scores"
"""The kind in the metadata of what `resume=` leaves."""

ENOUGH = 4096
"""Bytes that tell what a file is."""

SCORES = "Scores of edges are read by ct.load_scores, traces by ct.Trace.load."


def kind_of(data: bytes) -> str | None:
    """What a file is that begins so, as sentences; None where that cannot be told.

    >>> print(kind_of(b'[["a0.h1", "m1"]]'))
    It is JSON. Scores of edges are read by ct.load_scores, traces by ct.Trace.load.
    """
    if data.startswith(b"PK\x03\x04"):
        return f"It is an archive, such as torch.save writes. {SCORES}"
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "It is a Python pickle, which is not read, since it could run code. Where you trust it, load "
            "it yourself, and save what is in it by trace.save or ct.save_scores."
        )
    if is_safetensors(data):
        return safetensors_kind(_metadata(data))
    if data.lstrip()[:1] in (b"{", b"["):
        return f"It is JSON. {SCORES}"
    if data.lstrip()[:1] == b"<":
        return f"It is XML or HTML. {SCORES}"
    return None


def safetensors_kind(metadata: Mapping[str, str]) -> str:
    """What a safetensors file of this metadata is, as sentences."""
    if metadata.get("format") == TRACE:
        return (
            "It is a trace: ct.Trace.load(path) reads it, and .masks of that are PruneScores "
            "(`circuit-trace show` and `convert` take it as it is)."
        )
    if metadata.get("kind") == UNFINISHED:
        return (
            "It is what a run that may be resumed has left: score_edges(..., resume=path) goes on."
        )
    return f"It is a safetensors file of something else, such as a model's weights. {SCORES}"


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins as safetensors do: eight bytes that say how long the JSON behind is."""
    return data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") < 2**40


def _metadata(data: bytes) -> Mapping[str, str]:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return {}
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}
