"""Is the model in this pass the one that its anatomy describes? At one position, and nearly for free.

An anatomy is checked when a model is wrapped. What changes the model's arithmetic later (an adapter
that is trained or switched on, weights that were quantised) would make patches wrong in silence: heads
are recomputed, and their outputs projected, by weights that are read from the model. So each pass
computes both for the last position of its first prompt too, as it runs, and compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from circuit_trace.anatomy import DestSite, Reader, SourceSite
from circuit_trace.errors import AnatomyError, CircuitTraceError, InputError

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest relative difference of one product that rounding explains (some norms round float64 to
float32). Seen at most: 1e-6 in float32, 8e-3 in bfloat16. What passes unseen below it may still be as
large as one edge's effect, so it is narrow."""

PROBE = slice(-1, None)
"""The position that is compared: the last, since models put huge numbers on the first one."""


class PassCheck:
    """What one pass computed, compared with what the anatomy makes of the same inputs.

    Differences are kept as tensors and looked at when the pass ends, so that a GPU need not wait. With
    `is_on=False` nothing but shapes is compared.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._codes: dict[SourceSite, Tensor] = {}
        self._compared: list[tuple[str, Tensor, torch.dtype]] = []

    @torch.no_grad()
    def read(
        self, dest: DestSite, reader: Reader, heads: Sequence[int], stream: Tensor, tensor: Tensor
    ) -> None:
        """What some heads make of the stream, `[batch, seq, d_model]`, against the tensor that passes.

        Raises:
            AnatomyError: The tensor is of another number of heads, or the weights cannot be read.
        """
        names = _span([dest.names[head] for head in heads])
        probe = stream.detach()[:1, PROBE]
        with self.reading(f"{names} computes from the residual stream"):
            ours = reader.project(probe.expand(len(heads), *probe.shape), heads)[:, 0, 0]
        if tensor[0, 0].numel() != len(dest.names) * ours.shape[-1]:
            raise AnatomyError(
                f"{_span(dest.names)} were to compute {len(dest.names)} heads × {ours.shape[-1]} "
                f"numbers at each position, but this pass has the shape {tuple(tensor.shape)}. If the "
                "model's settings were changed after it was wrapped (ungrouped key-value heads, for "
                "instance), wrap it again or change them back."
            )
        theirs = tensor.detach()[0, PROBE].reshape(len(dest.names), -1)[list(heads)]
        self._compare(f"what {names} computes from the residual stream", ours, theirs, stream.dtype)

    def wrote(self, site: SourceSite, code: Tensor) -> None:
        """What a site's nodes computed, `[batch, seq, node, width]`, before it is projected."""
        if self._is_on and site.total is not None:
            self._codes[site] = code.detach()[0, PROBE]

    @torch.no_grad()
    def summed(self, site: SourceSite, tensor: Tensor) -> None:
        """The sum of what those nodes write passes, `[batch, seq, d_model]`.

        Raises:
            AnatomyError: The weights cannot be read.
        """
        code = self._codes.pop(site, None)
        if code is None:
            return
        names = _span(site.names)
        with self.reading(f"{names} writes"):
            weight, bias = site.weight(), site.bias()
            if weight is None:
                ours = code.sum(1)
            else:
                ours = code.to(weight.dtype).flatten(1) @ weight.flatten(0, 1)
            ours = ours if bias is None else ours + bias
        self._compare(f"what {names} writes", ours, tensor.detach()[0, PROBE], code.dtype)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Tell in our words where the model's weights cannot be read or used as when it was wrapped.

        Whatever a model raises then (a quantised weight that has no heads, a module that is gone);
        that there is no memory left is not about weights.

        Raises:
            AnatomyError: They cannot.
        """
        try:
            yield
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            is_ours = isinstance(error, CircuitTraceError | torch.OutOfMemoryError)
            if is_ours or not self._is_on:
                raise
            raise AnatomyError(
                f"What {what} cannot be computed, since its weights cannot be read as when the model "
                f"was wrapped ({type(error).__name__}: {error}). Take the change back, or wrap the "
                "model again."
            ) from error

    def settle(self) -> None:
        """Look at what was compared.

        Raises:
            AnatomyError: Something differed: what, and by how much.
        """
        compared, self._compared = self._compared, []
        for what, relative, dtype in compared:
            found, allowed = float(relative), rounding_of(dtype, relative.device)
            if found > allowed:
                raise AnatomyError(
                    f"In this pass {what} differs by {found:.2g} (relative to its size; allowed for "
                    f"{dtype}: {allowed:g}) from what its weights give: the model was changed after "
                    "it was wrapped (an adapter trained or switched on, weights processed or "
                    "quantised), or a hook changes what comes between (inside ln1, at hook_q_input). "
                    "A patch would be wrong. Take the change back, or wrap the model again."
                )

    def _compare(self, what: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
        """Keep the largest relative difference of any row; what is no number on both sides has none."""
        if not self._is_on:
            return
        expected = theirs.to(torch.promote_types(theirs.dtype, torch.float32))
        relative = (ours.to(expected) - expected).norm(dim=-1) / expected.norm(dim=-1)
        coarsest = max((dtype, ours.dtype, theirs.dtype), key=lambda one: torch.finfo(one).eps)
        self._compared.append((what, relative.nan_to_num(0.0).max(), coarsest))


def rounding_of(dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative difference of one product in this precision that rounding explains."""
    is_tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    if is_tf32 and dtype == torch.float32:
        dtype = torch.float16  # the ten bits that it multiplies with
    return ROUNDING.get(dtype, max(ROUNDING.values()))


def did_not_run(dest: str, wanted: str = "patched") -> InputError:
    """What to say where a destination's hook point was not reached."""
    return InputError(
        f"The input of {dest!r} was to be {wanted}, but that part of the model did not run. If the pass "
        "stopped early (stop_at_layer), run the whole model; if the model was rebuilt after it was "
        "wrapped (weights folded, modules replaced), wrap it again."
    )


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
