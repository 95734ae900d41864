"""A model whose modules or settings were changed after it was wrapped: its anatomy is made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import AnatomyError
from circuit_trace.hooks.verify import verify

CHANGED = "This model's modules or settings were changed after it was wrapped"


def remade(
    model: nn.Module, before: Anatomy, make: Callable[[nn.Module], Anatomy] | None
) -> Anatomy:
    """The anatomy of the model as it is now, verified if it was before; its edges are the same.

    Raises:
        AnatomyError: It cannot be made, fails the check, or has other edges.
    """
    if make is None:
        raise AnatomyError(
            f"{CHANGED}, with an anatomy of your own, which names the modules that it had then. Take the "
            "change back, or wrap it again with the anatomy that it has now."
        )
    try:
        now = make(model)
        if before.verified:
            verify(model, now)
    except AnatomyError as error:
        raise AnatomyError(
            f"{CHANGED}, and as it is now it cannot be traced. Take the change back, or wrap it again "
            f"when it can. ({error})"
        ) from error
    if _nodes(now) != _nodes(before):
        raise AnatomyError(
            f"{CHANGED}, and it has other nodes now, so the edges are not the same. Wrap it again, or "
            "take the change back."
        )
    return replace(now, verified=before.verified)


def _nodes(anatomy: Anatomy) -> tuple[object, ...]:
    """What a graph is made of."""
    dests = tuple((site.module_name, site.names, site.n_sources) for site in anatomy.dests)
    return (*(site.names for site in anatomy.sources), *dests)
