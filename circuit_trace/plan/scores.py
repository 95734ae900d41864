"""Scores of a model's edges as they are handed out: `PruneScores` that say in a line what they hold."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import Any

from torch import Tensor

Signs = tuple[str, str]
"""What a positive score says of an edge, and a negative one, such as ("patching it raises the loss",
"patching it lowers the loss")."""


class EdgeScores(dict[str, Tensor]):
    """A dict from a destination module's name to its edges' scores, shown in one line.

    >>> import torch
    >>> scores = EdgeScores({"blocks.0.hook_mlp_in": torch.tensor([0.0, -2.5])})
    >>> scores
    <EdgeScores: 2 edges, 1 not zero, largest |score| 2.5>
    >>> scores == {**scores}, type(scores.copy()).__name__
    (True, 'EdgeScores')
    """

    signs: Signs | None = None
    """None where it is not known: the scores come from a file, or were made by hand."""

    def meaning(self, signs: Signs | None) -> EdgeScores:
        """These scores, with what their signs say."""
        self.signs = signs
        return self

    def copy(self) -> EdgeScores:
        """Scores of the same tensors."""
        return EdgeScores(self).meaning(self.signs)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> EdgeScores:
        copied = EdgeScores({name: deepcopy(score, memo) for name, score in self.items()})
        return copied.meaning(self.signs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a dict that every tool can read, and torch with `weights_only=True`."""
        return OrderedDict, (), None, None, iter(self.items())

    def __repr__(self) -> str:
        if not all(isinstance(score, Tensor) for score in self.values()):
            return super().__repr__()
        held = [score.detach() for score in self.values() if score.numel()]
        n_edges = sum(score.numel() for score in held)
        n_chosen = sum(int(score.count_nonzero()) for score in held)
        largest = max((float(score.double().abs().max()) for score in held), default=0.0)
        return (
            f"<{type(self).__name__}: {n_edges:,} edges, {n_chosen:,} not zero, "
            f"largest |score| {largest:.3g}>"
        )
