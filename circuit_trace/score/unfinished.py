"""A long computation's state in a file, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuit_trace.errors import FormatError, InputError
from circuit_trace.files import atomic_write

SAVE_EVERY = 1.0
"""Seconds between two writes: what a killed run loses at most, beside the step it was in."""

KIND = "circuit_trace unfinished scores"


@dataclass(frozen=True, eq=False)
class State:
    """How far a run has come: its tensors, and how many steps of which batch are done."""

    tensors: Mapping[str, Tensor]
    batch: int
    step: int


class Unfinished:
    """The file of a run with these settings; `path` None keeps nothing."""

    def __init__(self, path: Any, settings: Mapping[str, Any]) -> None:
        if path is not None and not isinstance(path, str | PathLike):
            raise InputError(f"resume must be the path of a file, or None; got {path!r}.")
        self._path = None if path is None else Path(path)
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
        if self._path is None or not os.path.exists(self._path):
            return start
        if self._path.is_dir():
            raise InputError(
                f"resume must be the path of a file, but {str(self._path)!r} is a folder."
            )
        try:
            with safe_open(self._path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = json.loads(about.get("settings", "null"))
            batch, step = int(about.get("batch", 0)), int(about.get("step", 0))
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise FormatError(
                f"Cannot read {str(self._path)!r} to resume from: {error}."
            ) from error
        if about.get("kind") != KIND or not isinstance(found, dict) or min(batch, step) < 0:
            raise FormatError(
                f"{str(self._path)!r} is no file that such a run has left; name another one to resume."
            )
        if about.get("digest") != digest(tensors[name] for name in sorted(tensors)):
            raise FormatError(
                f"{str(self._path)!r} is damaged: its numbers are not those that were written. Delete "
                "it and begin anew."
            )
        for name in {**self.settings, **found}:
            mine, theirs = self.settings.get(name), found.get(name)
            if mine != theirs:
                raise InputError(
                    f"{str(self._path)!r} was left by a run with another {name}, {theirs!r}; this "
                    f"one has {mine!r}. Resume with what it was begun with, or name another file."
                )
        for name, tensor in start.tensors.items():
            kept = tensors.get(name)
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                raise FormatError(
                    f"{str(self._path)!r} does not hold the {name} of the run it says it is of; "
                    "delete it and begin anew."
                )
        return State(tensors, batch, step)

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
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as path:
                save_file({k: v.contiguous() for k, v in state.tensors.items()}, path, about)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"Cannot write {str(self._path)!r} to resume from: {error}."
            ) from error
        self._written_at = monotonic()


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
