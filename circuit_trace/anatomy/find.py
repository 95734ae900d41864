"""Find the anatomy of a model among those that installed packages offer."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from torch import nn

from circuit_trace.anatomy.sites import Anatomy
from circuit_trace.errors import AnatomyError

GROUP = "circuit_trace.anatomies"

AnatomyBuilder = Callable[..., "Anatomy | None"]
"""`builder(model, separate_qkv=True)` returns the model's anatomy, or None if it does not know it."""


def find_anatomy(model: nn.Module, *, separate_qkv: bool) -> Anatomy:
    """Ask each anatomy of the entry-point group `circuit_trace.anatomies`, in order of their names.

    Raises:
        AnatomyError: No installed anatomy knows a model of this class. Where one says why it does
            not, its reason.
    """
    offered = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    refusals: list[AnatomyError] = []
    for point in offered:
        builder: AnatomyBuilder = point.load()
        try:
            anatomy = builder(model, separate_qkv=separate_qkv)
        except AnatomyError as error:  # another may know it all the same
            refusals.append(error)
            continue
        if anatomy is not None:
            return anatomy
    if refusals:
        raise refusals[0]
    raise AnatomyError(
        f"No anatomy fits a {type(model).__module__}.{type(model).__qualname__}. Expected a "
        "HookedTransformer, a TransformerBridge, or a module for which an installed package "
        f"registers an anatomy under the entry-point group {GROUP!r} (asked here: "
        f"{', '.join(point.name for point in offered) or 'none; is circuit-trace installed?'}). "
        "An anatomy can also be passed directly: wrap(model, anatomy=...)."
    )
