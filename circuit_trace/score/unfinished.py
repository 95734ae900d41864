"""A long computation's state in a file, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from circuit_trace.errors import CircuitTraceError, FormatError, InputError
from circuit_trace.file_kinds import ENOUGH, is_safetensors, kind_of, safetensors_kind
from circuit_trace.file_kinds import UNFINISHED as KIND
from circuit_trace.files import checked_path, refusing, writing

SAVE_EVERY = 1.0
"""Seconds between two writes: what a killed run loses at most, beside the step it was in."""


@dataclass(frozen=True, eq=False)
class State:
    """How far a run has come: its tensors, and how many steps of which batch are done."""

    tensors: Mapping[str, Tensor]
    batch: int
    step: int


class Unfinished:
    """The file of a run with these settings; `path` None keeps nothing."""

    def __init__(self, path: Any, settings: Mapping[str, Any]) -> None:
        self._path = None if path is None else checked_path(path, "resume", "run.part")
        self.settings = json.loads(json.dumps(settings))
        self._written_at = float("-inf")

    @property
    def keeps(self) -> bool:
        """Whether there is a file at all."""
        return self._path is not None

    def load(self, start: State) -> State:
        """What an earlier run has left, or where there is no file yet the state to start from.

        Raises:
            FormatError: The file is none of these.
            InputError: It is of another model or of other settings.
        """
        path = self._path
        if path is None:
            return start
        cannot = f"Cannot read {str(path)!r} to resume from"
        with refusing(FormatError, cannot):
            if not path.exists():
                return start
            if path.is_dir():
                raise InputError(
                    f"resume must be the path of a file, but {str(path)!r} is a folder."
                )
            try:
                with safe_open(path, "pt") as file:
                    about = file.metadata() or {}
                    batch, step = self._progress(path, about)
                    # Before any number is read, of which a small file may claim to have many.
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                    _check_alike(path, shapes, {k: list(v.shape) for k, v in start.tensors.items()})
                    tensors = {name: file.get_tensor(name) for name in shapes}
            except CircuitTraceError:
                raise
            except (SafetensorError, ValueError, RecursionError) as error:
                raise FormatError(f"{cannot}. {_other_kind(path) or f'{error}.'}") from error
        dtypes = [{k: v.dtype for k, v in one.items()} for one in (tensors, start.tensors)]
        _check_alike(path, *dtypes)
        if about.get("digest") != digest(tensors[name] for name in sorted(tensors)):
            raise FormatError(
                f"{str(path)!r} is damaged: its numbers are not those that were written. Delete it and "
                "begin anew."
            )
        return State(tensors, batch, step)

    def _progress(self, path: Path, about: Mapping[str, str]) -> tuple[int, int]:
        """The batch and step that a run of these settings had come to."""
        found = json.loads(about.get("settings", "null"))
        batch, step = int(about.get("batch", 0)), int(about.get("step", 0))
        if about.get("kind") != KIND or not isinstance(found, dict) or min(batch, step) < 0:
            raise FormatError(
                f"{str(path)!r} is no file that such a run has left; name another one to resume. "
                f"{safetensors_kind(about)}"
            )
        for name in {**self.settings, **found}:
            mine, theirs = self.settings.get(name), found.get(name)
            if mine != theirs:
                raise InputError(
                    f"{str(path)!r} was left by a run with another {name}, {theirs!r}; this one has "
                    f"{mine!r}. Resume with what it was begun with, or name another file."
                )
        return batch, step

    def save(self, state: State, *, now: bool = False) -> None:
        """Write the state, if the last writing is a while ago or `now`."""
        if self._path is None or not (now or monotonic() - self._written_at >= SAVE_EVERY):
            return
        about = {
            "kind": KIND,
            "settings": json.dumps(self.settings),
            "batch": str(state.batch),
            "step": str(state.step),
            "digest": digest(state.tensors[name] for name in sorted(state.tensors)),
        }
        with writing(self._path) as path:
            path.write_bytes(to_bytes({k: v.contiguous() for k, v in state.tensors.items()}, about))
        self._written_at = monotonic()


def _check_alike(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise FormatError where a file holds other tensors than such a run has."""
    for name in sorted({**found, **wanted}):
        if name not in found or name not in wanted or found[name] != wanted[name]:
            raise FormatError(
                f"{str(path)!r} does not hold the {name[:60]} of the run it says it is of; delete it "
                "and begin anew."
            )


def _other_kind(path: Path) -> str | None:
    """What a file is that is no safetensors file, if that can be told."""
    with path.open("rb") as file:
        start = file.read(ENOUGH)
    return None if is_safetensors(start) else kind_of(start)


def digest(tensors: Iterable[Tensor | None]) -> str:
    """16 digits that tell tensors apart from others, by every number in them."""
    found = blake2b(digest_size=8)
    for tensor in tensors:
        if tensor is None:
            found.update(b"none")
            continue
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def mark_of(settings: Mapping[str, Any]) -> Tensor:
    """Eight bytes that tell settings apart from others."""
    found = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).digest()
    return torch.tensor(list(found), dtype=torch.uint8)


def name_of(value: Any) -> str:
    """How a metric is called in the settings of a run."""
    if isinstance(value, str):
        return value
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"
