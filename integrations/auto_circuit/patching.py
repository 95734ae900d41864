"""`patch_mode`: patch with what the masks say at the time of each pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from numbers import Real
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

import circuit_trace as ct
from circuit_trace.errors import InputError
from circuit_trace.graph import EdgeSpec
from circuit_trace.hooks import Scope
from circuit_trace.plan import SiteOutput

from .model import PatchableModel


@contextmanager
def patch_mode(
    model: PatchableModel,
    patch_src_outs: Tensor | ct.SourceOutputs,
    edges: Collection[EdgeSpec] | None = None,
    curr_src_outs: None = None,
) -> Iterator[None]:
    """Patch edges in every pass of the model while the context is open.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> from circuit_trace.integrations.auto_circuit import patchable_model, src_ablations
    >>> model = patchable_model(ct.load_model("bundled"), factorized=True, separate_qkv=True)
    >>> with patch_mode(model, src_ablations(model, model.to_tokens(CORRUPT)), ["A1.0->Resid End"]):
    ...     logits = model(model.to_tokens(CLEAN))
    >>> model.last_trace.edges
    <Edges: 1 (A1.0->Resid End)>

    Args:
        model: The model, from `patchable_model`.
        patch_src_outs: What to patch in, `[n_srcs, batch, seq, d_model]` or `SourceOutputs`.
        edges: The edges to patch: all masks are set to 0 and theirs to 1, and stay so after the
            context. None leaves the masks as they are. A pass uses the values that they have when it
            starts.
        curr_src_outs: Not taken: it would start a pass in the middle of the model.

    Raises:
        EdgeError: There is no such edge.
        InputError: What is to be patched in does not fit, or a patch is open already.
    """
    if curr_src_outs is not None:
        raise InputError(
            "curr_src_outs starts a pass at a later layer, on source outputs of an earlier one; "
            "circuit_trace patches whole passes. Leave it out and run the model from its tokens."
        )
    if model.open_patch is not None:
        raise InputError(
            "patch_mode is open on this model already. Close it first; contexts that add up are "
            "model.patch(outputs, edges=[...])."
        )
    patched = as_source_outputs(model, patch_src_outs)
    if edges is not None:
        scores = model.circuit_prune_scores([edges] if isinstance(edges, str) else edges)
        for name, mask in model.patch_masks.items():
            mask.data.copy_(scores[name])
    patch = OpenPatch(model, patched)
    try:
        try:
            patch.open()
            yield
        finally:
            patch.close()
    except BaseException:
        patch.close()  # an interrupt may have come before it or in it
        raise


def set_all_masks(model: PatchableModel, val: float) -> None:
    """Set the mask of every edge: 0 leaves its current output, 1 patches it.

    Raises:
        InputError: The value is no finite number.
    """
    if not isinstance(val, Real) or not isfinite(val):
        raise InputError(f"The value of all masks must be a finite number; got {val!r}.")
    for mask in model.patch_masks.values():
        mask.data.fill_(val)


@contextmanager
def train_mask_mode(
    model: PatchableModel, requires_grad: bool = True
) -> Iterator[dict[str, nn.Parameter]]:
    """Let the masks require grad while the context is open, and yield them by their modules.

    The model is set to evaluate, and all gradients are cleared on the way in; those of the masks
    are kept on the way out.
    """
    model.eval()
    model.zero_grad()
    for mask in model.patch_masks.values():
        mask.grad = None
        mask.requires_grad_(requires_grad)
    try:
        yield dict(model.patch_masks)
    finally:
        for mask in model.patch_masks.values():
            mask.requires_grad_(False)


def as_source_outputs(
    model: PatchableModel, outputs: Tensor | ct.SourceOutputs
) -> ct.SourceOutputs:
    """What every source is to write, in our form.

    Raises:
        InputError: Neither form, or a tensor of another shape.
    """
    if isinstance(outputs, ct.SourceOutputs):
        return outputs
    engine = model.engine
    # A model without a configuration says how wide its stream is in its passes alone.
    d_model = getattr(engine.cfg, "d_model", None)
    is_tensor = isinstance(outputs, Tensor) and outputs.ndim == 4
    fits = is_tensor and outputs.shape[0] == len(engine.srcs)
    if not fits or d_model not in (None, outputs.shape[3]):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"patch_src_outs must be what src_ablations gives, a tensor [n_srcs, batch, seq, d_model] "
            f"of {len(engine.srcs)} sources × … × {d_model or 'd_model'}, or SourceOutputs; got {got}."
        )
    blocks = outputs.split([len(site.names) for site in engine.anatomy.sources])
    sites = tuple(SiteOutput(block.permute(1, 2, 0, 3)) for block in blocks)
    _, batch, seq, _ = outputs.shape
    return ct.SourceOutputs(engine.srcs, sites, batch, seq)


class OpenPatch:
    """A patch of the engine that is opened anew whenever the masks have changed.

    A script writes to the masks in ways that leave no mark (`mask.data[i] = 1`), so they are
    compared when a pass starts. Masks that require grad are read in each pass by the engine itself.
    """

    def __init__(self, model: PatchableModel, patched: ct.SourceOutputs) -> None:
        self._model = model
        self._patched = patched
        self._masks: dict[str, Tensor] = {}
        self._context: AbstractContextManager[Any] | None = None
        self._scope = Scope()
        self._thread = get_ident()

    def open(self) -> None:
        """Patch from now on; `close` undoes it, also where this was interrupted."""
        wrapped, tokens = self._model.wrapped_model, self._model.engine.anatomy.tokens
        self.sync()
        self._scope.before(wrapped, lambda *_: self.sync(), first=True)
        if tokens is not None:
            self._scope.before(tokens.module, lambda *_: self._check(), first=True)
        self._scope.open()
        self._model.open_patch = self

    def close(self) -> None:
        """Patch no more; twice does no harm."""
        self._model.open_patch = None
        self._scope.close()
        self._close()

    def sync(self) -> None:
        """Patch with the values that the masks have now; passes of other threads are not patched."""
        if self._thread != get_ident() or (self._context is not None and self._is_current()):
            return
        self._close()
        self._masks = {
            name: mask if _learns(mask) else mask.detach().clone()
            for name, mask in self._model.patch_masks.items()
        }
        context = self._model.engine.patch(self._patched, masks=self._masks)
        context.__enter__()
        self._context = context

    def _is_current(self) -> bool:
        masks = self._model.patch_masks
        return all(_is_same(masks[name], used) for name, used in self._masks.items())

    def _check(self) -> None:
        """The engine's hooks cannot be exchanged any more where a model starts at its `forward`."""
        if not self._is_current():
            raise InputError(
                "Masks were written to inside patch_mode, and then the bare model was run by another "
                "method than a call, so the pass would not see them. Run it through the patchable "
                "model: model(tokens), model.run_with_cache(tokens), ...."
            )

    def _close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)


def _learns(mask: Tensor) -> bool:
    return mask.requires_grad and torch.is_grad_enabled()


def _is_same(mask: Tensor, used: Tensor) -> bool:
    """Whether a patch that uses this tensor uses what the mask is now."""
    if _learns(mask) or used.requires_grad:
        return mask is used and _learns(mask)
    is_alike = (mask.shape, mask.dtype, mask.device) == (used.shape, used.dtype, used.device)
    return is_alike and torch.equal(mask, used)
