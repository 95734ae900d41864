"""How well circuits of growing size did, as numbers: what tables and figures of faithfulness read."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import InputError


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric of circuits of growing size, a number for each prompt.

    `fractions` are the sizes asked for, as parts of all `n_all` edges, and `n_edges` how many edges
    the circuits have: as many, if there are so many connected ones. `clean` is the metric with no
    edge patched, `corrupt` with every edge patched.
    """

    metric: str
    patch: str
    circuit: str
    fractions: tuple[float, ...]
    n_edges: tuple[int, ...]
    n_all: int
    values: Float[Tensor, "size prompt"]
    clean: Float[Tensor, " prompt"]
    corrupt: Float[Tensor, " prompt"]

    @property
    def mean(self) -> Float[Tensor, " size"]:
        """The mean over the prompts."""
        return self.values.mean(1)

    @property
    def std(self) -> Float[Tensor, " size"]:
        """The standard deviation over the prompts (of a sample: n - 1); NaN for one prompt."""
        if self.values.shape[1] < 2:
            return torch.full_like(self.mean, float("nan"))
        return self.values.std(1)

    @property
    def standard_error(self) -> Float[Tensor, " size"]:
        """The standard error of the mean; NaN for one prompt."""
        return self.std / self.values.shape[1] ** 0.5

    @property
    def span(self) -> float:
        """The mean of `clean` less that of `corrupt`.

        Raises:
            InputError: It is 0, so that nothing can be measured by it.
        """
        span = float(self.clean.mean() - self.corrupt.mean())
        if abs(span) < 1e-9 * max(1.0, float(self.clean.abs().max())):
            raise InputError(
                f"The metric is the same, {self.clean.mean().item():.6g} in the mean, with no edge "
                "patched and with every edge patched, so faithfulness has no scale. Choose prompts or "
                "a metric that tell the two apart; .mean holds the metric as it is."
            )
        return span

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """(m(circuit) - m(corrupt)) / (m(clean) - m(corrupt)), of means over the prompts: 1 where the
        metric is as on the clean prompts, 0 where it is as with every edge patched."""
        return (self.mean - self.corrupt.mean()) / self.span

    @property
    def cpr(self) -> float:
        """MIB's integrated circuit performance ratio: the area under faithfulness over the circuit's
        fraction of all edges, by trapezoids between the sizes measured. Higher is better.

        Whichever sizes these are, it is the same area, the better known the closer they lie. To compare
        with MIB's numbers measure at its own, `sizes=MIB_SIZES`; its code takes so many edges and then
        prunes, so its circuits have fewer.

        Raises:
            InputError: Only the circuit was patched, or a single size was measured.
        """
        return self._area(self.faithfulness)

    @property
    def cmd(self) -> float:
        """MIB's integrated circuit-model distance: the area between faithfulness and 1, |1 - f|, over
        the circuit's fraction of all edges, by the same trapezoids. Lower is better, 0 is best.

        Raises:
            InputError: As `cpr`.
        """
        return self._area((1 - self.faithfulness).abs())

    def _area(self, heights: Float[Tensor, " size"]) -> float:
        if self.patch != "complement" or len(self.fractions) < 2:
            raise InputError(
                "CPR and CMD are areas over two or more sizes of circuits that are kept while all else "
                f"is patched; these are {len(self.fractions)} with patch={self.patch!r}. Call "
                "faithfulness(..., patch='complement')."
            )
        return float(torch.trapezoid(heights, torch.tensor(self.fractions, dtype=heights.dtype)))

    def table(self) -> pd.DataFrame:
        """A row for each size: fraction, edges in the circuit, the metric's mean, standard deviation
        and standard error over the prompts, and faithfulness."""
        return pd.DataFrame(
            {
                "fraction": self.fractions,
                "n_edges": self.n_edges,
                "mean": self.mean.numpy(),
                "std": self.std.numpy(),
                "standard_error": self.standard_error.numpy(),
                "faithfulness": self.faithfulness.numpy(),
            }
        )
