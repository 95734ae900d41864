"""How well it did: a metric of the pass beside those of the clean and the corrupt prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Patch = Literal["circuit", "complement"]
"""What a pass patches: the edges asked for, or everything else."""


MEASURED = ("clean", "corrupt", "circuit", "complement")
"""What may be measured, in the order in which it is told."""


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """A metric, a number for each prompt: of the `clean` prompt, with every edge patched (`corrupt`),
    with the edges asked for patched (`circuit`), and with everything else patched (`complement`).

    Each of the last three is None where it was not measured. `patch` says which of the last two this
    pass is, None where it patched nothing; `answers` are the ids of the right and the wrong token
    where there is one of each.

    That `circuit` is near `corrupt` says that the task runs through these edges, which a single edge
    near the start may bring about just as well. That `complement` is near `clean` says that these
    edges alone suffice for the task: `faithfulness` is the evidence for a circuit (Wang et al. 2022;
    Hanna et al. 2024).
    """

    metric: str
    clean: Float[Tensor, " batch"]
    corrupt: Float[Tensor, " batch"] | None = None
    circuit: Float[Tensor, " batch"] | None = None
    complement: Float[Tensor, " batch"] | None = None
    patch: Patch | None = None
    answers: tuple[int, int] | None = None

    @property
    def explained(self) -> float | None:
        """How far patching the edges asked for goes from clean (0) to corrupt (1); None where that is
        not known. Of means over the prompts."""
        return _part(self.circuit, self.clean, self.corrupt)

    @property
    def faithfulness(self) -> float | None:
        """How far the metric stays at clean (1) rather than corrupt (0) with everything else patched;
        None where that is not known. Of means over the prompts."""
        return _part(self.complement, self.corrupt, self.clean)

    def __str__(self) -> str:
        found = [f"clean {_value(self.clean)}"]
        if self.corrupt is not None:
            found.append(f"corrupt {_value(self.corrupt)}")
        if self.circuit is not None:
            found.append(f"these edges patched {_value(self.circuit)}{_share(self.explained)}")
        if self.complement is not None:
            part = self.faithfulness
            said = "" if part is None else f" (faithfulness {part:.2f})"
            found.append(f"everything else patched {_value(self.complement)}{said}")
        n = len(self.clean)
        means = f" (means over {n} prompts)" if n > 1 else ""
        return f"{self.metric}{means}: {', '.join(found)}"

    def __repr__(self) -> str:
        return f"<Outcome: {self}>"


def _value(values: Tensor) -> str:
    return f"{float(values.mean()):+.2f}".replace("-", "−")


def _share(part: float | None) -> str:
    return "" if part is None else f" ({100 * part:.0f} % of the way from clean to corrupt)"


def _part(value: Tensor | None, start: Tensor | None, end: Tensor | None) -> float | None:
    """How far a mean is on its way from one to the other."""
    if value is None or start is None or end is None:
        return None
    first, last = float(start.mean()), float(end.mean())
    if abs(last - first) < 1e-9 * max(1.0, abs(first)):
        return None
    return (float(value.mean()) - first) / (last - first)
