"""A trace as a file: written whole or not at all, read without trust, with no model at hand."""

from __future__ import annotations

from typing import Any

from circuit_trace.errors import FormatError, InputError
from circuit_trace.files import checked_path
from circuit_trace.record.record import Record
from circuit_trace.record.saved.container import Content, read_file, write_file
from circuit_trace.record.saved.read import trace_of
from circuit_trace.record.saved.write import Options, content_of


def save(trace: Record, path: Any, options: Options) -> None:
    """Write a trace to a file (see `Trace.save`)."""
    path = checked_path(path)
    content = content_of(trace, options)
    try:
        trace_of(content)  # what could not be loaded is not written
    except FormatError as error:
        raise InputError(f"This trace cannot be saved. {error}") from error
    write_file(path, content)


def load(path: Any) -> Record:
    """Read a trace from a file (see `Trace.load`)."""
    return trace_of(read_file(checked_path(path), check=trace_of))


def kept_of(trace: Record) -> Content:
    """What is kept of a trace that is pickled: what `save` keeps with all that reads it, if that can be
    had.

    Raises:
        InputError: The model's weights or the logits were changed since the pass.
    """
    try:
        return content_of(trace, Options(factored=True, unembed=True))
    except InputError:  # its outputs cannot be read as tokens; all else can
        return content_of(trace, Options(factored=True))
