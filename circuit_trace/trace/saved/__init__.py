"""A trace as a file: written whole or not at all, read without trust, with no model at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_trace.errors import FormatError, InputError
from circuit_trace.trace.saved.container import Content, read_file, write_file
from circuit_trace.trace.saved.read import trace_of
from circuit_trace.trace.saved.write import Options, content_of

if TYPE_CHECKING:
    from circuit_trace.trace.trace import Trace


def save(trace: Trace, path: Any, options: Options) -> None:
    """Write a trace to a file (see `Trace.save`)."""
    path = _checked(path)
    content = content_of(trace, options)
    try:
        trace_of(content)  # what could not be loaded is not written
    except FormatError as error:
        raise InputError(f"This trace cannot be saved. {error}") from error
    try:
        write_file(path, content)
    except OSError as error:
        raise InputError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error


def load(path: Any) -> Trace:
    """Read a trace from a file (see `Trace.load`)."""
    return trace_of(read_file(_checked(path)))


def pickled(trace: Trace) -> tuple[Callable[[Content], Trace], tuple[Content]]:
    """What a trace is pickled as: what `save` keeps with all that reads it, if that can be had.

    Raises:
        InputError: The model's weights or the logits were changed since the pass.
    """
    try:
        return trace_of, (content_of(trace, Options(factored=True, unembed=True)),)
    except InputError:  # its outputs cannot be read as tokens; all else can
        return trace_of, (content_of(trace, Options(factored=True)),)


def _checked(path: Any) -> Path:
    if not isinstance(path, str | PathLike) or "\0" in os.fsdecode(path):
        raise InputError(f"Expected a path such as 'x.trace'; got {path!r}.")
    return Path(os.fsdecode(path))
