"""Tensors of a file: each is written once, and comes back with the layout and dtype that it had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.record.saved.container import digest

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""What numbers are recorded in."""


class TensorStore:
    """Collects the tensors of a file; `narrow` is a dtype that those marked so are narrowed to."""

    def __init__(self, narrow: torch.dtype | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._narrow = narrow
        self._refs: dict[tuple[Any, ...], tuple[Tensor, dict[str, Any]]] = {}
        self._names: dict[bytes, str] = {}
        self._storages: set[int] = set()

    def put(self, name: str, tensor: Tensor | None, *, narrow: bool = False) -> Any:
        """Keep a tensor under a name, or under that of an equal one, and return what finds it; None
        for none.

        Raises:
            InputError: It holds a number that overflows when it is narrowed.
        """
        if tensor is None:
            return None
        tensor = tensor.detach()
        key = (
            tensor.device,
            tensor.data_ptr(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            narrow,
        )
        if key not in self._refs:
            self._refs[key] = (
                tensor,
                self._put(name, tensor, narrow),
            )  # alive: its address is the key
        return self._refs[key][1]

    def _put(self, name: str, tensor: Tensor, narrow: bool) -> dict[str, Any]:
        # By strides, from the largest: a matrix product may round otherwise in another layout.
        axes = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
        stored = tensor.permute(axes)
        if not stored.is_contiguous():
            axes, stored = list(range(tensor.ndim)), tensor.contiguous()
        ref: dict[str, Any] = {}
        if axes != list(range(tensor.ndim)):
            ref["axes"] = axes
        if narrow and self._narrow is not None and tensor.itemsize > self._narrow.itemsize:
            ref["dtype"] = str(tensor.dtype).removeprefix("torch.")
            stored = _narrowed(name, stored, self._narrow)
        stored = stored.cpu()
        ref["tensor"] = self._names.setdefault(digest(stored), name)
        if ref["tensor"] not in self.tensors:
            self.tensors[name] = self._alone(stored)
        return ref

    def _alone(self, tensor: Tensor) -> Tensor:
        """The tensor in memory of its own: safetensors refuses those that share it."""
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in self._storages:
            return tensor.clone()
        self._storages.add(storage.data_ptr())
        return tensor


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrowed = tensor.to(dtype)
    if tensor.numel() == 0 or all(end.isfinite() for end in torch.aminmax(narrowed)):
        return narrowed
    lost = narrowed.isinf() & tensor.isfinite()
    if bool(lost.any()):
        largest = float(tensor[lost].abs().max())
        hint = "Save it with dtype=torch.bfloat16, which reaches as far as float32"
        if dtype is torch.bfloat16:
            hint = "Save it as it is"
        raise InputError(
            f"{name!r} of this trace goes up to {largest:.4g}, but {dtype} ends at "
            f"{torch.finfo(dtype).max:.4g}: it would become infinite. {hint}, or without dtype=."
        )
    return narrowed
