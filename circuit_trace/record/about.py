"""What a trace was taken from: the model, its configuration, and the versions of what ran it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

PACKAGES = ("circuit-trace", "torch", "transformer-lens")
"""Those whose versions a record names, where they are installed."""

NOT_HASHED = ("device", "n_devices")
"""Where a model lies does not make it another model."""

MOST_NESTED = 8
"""Values within values, at most: a configuration may hold itself."""


@dataclass(frozen=True)
class About:
    """A model's name, class and configuration, and the versions of the software that traced it.

    `config` holds the plain values of the model's `cfg`, dtypes and devices as text. `written` is
    when the trace was saved (UTC, ISO 8601), None for one that was not loaded from a file.

    >>> import circuit_trace as ct
    >>> trace = ct.wrap(ct.load_model("bundled")).trace("When Mary and John went")
    >>> trace.about.config["n_layers"], len(trace.about.config_hash), trace.about.written
    (2, 16, None)
    """

    model: str | None = None
    model_class: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict)
    written: str | None = None

    @classmethod
    def of(cls, model: nn.Module, cfg: Any) -> About:
        """What there is to say of a model with this configuration, now."""
        config = plain(cfg if isinstance(cfg, Mapping) else getattr(cfg, "__dict__", {}))
        name = config.get("model_name")
        return cls(
            name if isinstance(name, str) else None,
            type(model).__qualname__,
            config,
            dict(_versions()),
        )

    @cached_property
    def config_hash(self) -> str:
        """16 digits that tell configurations apart; the device does not count."""
        counted = {name: value for name, value in self.config.items() if name not in NOT_HASHED}
        return sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


_LEFT_OUT = object()


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot hold is left out.

    >>> plain({"d_model": 64, "dtype": torch.float32, "scale": math.inf, "tokenizer": object()})
    {'d_model': 64, 'dtype': 'torch.float32', 'scale': 'inf'}
    """
    found = _plain(value)
    return None if found is _LEFT_OUT else found


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > MOST_NESTED:
        return _LEFT_OUT
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        pairs = {str(name): _plain(one, depth + 1) for name, one in value.items()}
        return {name: one for name, one in pairs.items() if one is not _LEFT_OUT}
    if isinstance(value, list | tuple):
        entries = [_plain(one, depth + 1) for one in value]
        return [one for one in entries if one is not _LEFT_OUT]
    return _LEFT_OUT


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    """Versions by the packages' own metadata: nothing is imported for them."""
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)
