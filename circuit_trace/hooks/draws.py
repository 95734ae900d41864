"""Passes that draw random numbers, as dropout does in training mode: no two of them agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from circuit_trace.errors import InputError


@contextmanager
def same_every_time(model: nn.Module) -> Iterator[None]:
    """Refuse passes that draw random numbers: a source's output would be another one each time, and
    the noise would count as the effect of a patch.

    It shows in the generators' states, however deep it is hidden; they are put back.

    >>> dropout = nn.Dropout(0.5).eval()
    >>> with same_every_time(dropout):
    ...     dropout(torch.ones(2))
    tensor([1., 1.])

    Raises:
        InputError: The passes that ran meanwhile have drawn some.
    """
    devices = {p.device for p in model.parameters() if p.is_cuda}
    before = _states(devices)
    try:
        yield
    finally:
        is_same = all(map(torch.equal, before, _states(devices)))
        if not is_same:
            torch.set_rng_state(before[0])
            for state, device in zip(before[1:], devices, strict=True):
                torch.cuda.set_rng_state(state, device)
    if not is_same:
        raise InputError(
            "The model draws random numbers as it runs (dropout in training mode?), so no two passes "
            "agree: call model.eval() first."
        )


def _states(devices: set[torch.device]) -> list[Tensor]:
    """The states of the generators of the CPU and of these GPUs."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
