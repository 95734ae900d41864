"""What people do to a model after they have wrapped it: adapters, processed weights, spliced modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Undo = Callable[[], object]
Do = Callable[[Any], "Undo | None"]
"""Changes a model in place and returns what takes it back; None where there is no way back."""


class Lora(nn.Module):
    """A low-rank adapter, `base(x) + x A B` (Hu et al. 2021, "LoRA"). As in peft it shows the weight and
    the bias of what it wraps."""

    def __init__(self, base: Any, size: float = 0.3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        n_out, n_in = base.weight.shape
        self.base_layer = base
        self.a = nn.Parameter(torch.randn(n_in, 2, generator=generator).to(base.weight))
        self.b = nn.Parameter(torch.randn(2, n_out, generator=generator).to(base.weight) * size)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.a @ self.b

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias


class Bent(Lora):
    """An adapter that is not linear, so that no weights stand for it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + torch.tanh(x @ self.a) @ self.b


def bent(path: str) -> Do:
    """An adapter that is not linear is switched on in layer 1 of a bridge."""
    return lambda model: inside(model, path, Bent)


def merged(model: Any) -> Any:
    """The model with every adapter's product added to the weights that it stands beside."""
    for component in list(model.modules()):
        for name, one in list(component._modules.items()):
            if isinstance(one, Lora):
                with torch.no_grad():
                    one.base_layer.weight += (one.a @ one.b).T
                component._modules[name] = one.base_layer
    return model


class Quantised(nn.Module):
    """A stand-in for a quantised projection: it computes, but its weight has no heads to be read."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.compute = base.forward
        self.weight = nn.Parameter(torch.zeros(7, 1), requires_grad=False)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


class Splice(nn.Module):
    """Stands in a hook point's place as a sparse autoencoder does: other numbers pass on than came."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * x + 0.1


def inside(model: Any, path: str, make: Callable[[Any], nn.Module]) -> Undo:
    """Replace what a bridge's component wraps."""
    component = model.blocks[1].get_submodule(path)
    before = component._modules["_original_component"]
    component._modules["_original_component"] = make(before)
    return lambda: component._modules.update(_original_component=before)


def adapter(path: str) -> Do:
    """A trained adapter is switched on in layer 1 of a bridge."""
    return lambda model: inside(model, path, Lora)


def trained(path: str) -> Do:
    """An adapter that was there from the start, at its usual start of nothing, learns something."""

    def do(model: Any) -> Undo:
        one = model.blocks[1].get_submodule(path)._modules["_original_component"]
        learned = Lora(one.base_layer).b.detach()
        one.b.data.copy_(learned)
        return one.b.data.zero_

    return do


def with_adapters(model: Any) -> Any:
    """The model with an adapter at its usual start on the values of layer 1."""
    inside(model, "attn.v", lambda base: Lora(base, 0.0))
    return model


def quantised(path: str) -> Do:
    return lambda model: inside(model, path, Quantised)


def scaled_in_place(model: Any) -> Undo:
    """Every weight of an attention, where it is."""
    parameters = list(model.blocks[1].attn.parameters())
    before = [one.detach().clone() for one in parameters]
    for one in parameters:
        one.data.mul_(1.25)
    return lambda: [one.data.copy_(was) for one, was in zip(parameters, before, strict=True)]


def put(place: nn.Module, name: str, new: nn.Module) -> None:
    """Another module under that name, also where a bridge keeps it twice."""
    before = getattr(place, name)
    for module in (place, place._modules.get("_original_component")):
        for key, one in list(module._modules.items()) if module is not None else ():
            if one is before:
                module._modules[key] = new


def _put(model: Any, place: nn.Module, name: str, new: nn.Module) -> None:
    setattr(place, name, new)
    model.setup()  # HookedTransformer lists its hook points once


def spliced(place: str, name: str) -> Do:
    """A module in the place of a hook point of layer 1; a new hook point is put there after it."""

    def do(model: Any) -> Undo:
        from transformer_lens.hook_points import HookPoint

        where = model.blocks[1].get_submodule(place)
        _put(model, where, name, Splice())
        return lambda: _put(model, where, name, HookPoint())

    return do


def attention_copied(model: Any) -> Undo:
    """An attention is replaced by an equal one."""
    block = model.blocks[1]
    before = block.attn
    _put(model, block, "attn", copy.deepcopy(before))
    return lambda: _put(model, block, "attn", before)


def processed(model: Any) -> None:
    """Norms are folded into weights, so that other modules stand in their places."""
    model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)


def compatible(model: Any) -> None:
    model.enable_compatibility_mode(disable_warnings=True)


def ungrouped(model: Any) -> Undo:
    model.set_ungroup_grouped_query_attention(True)
    return lambda: model.set_ungroup_grouped_query_attention(False)


def in_half_precision(model: Any) -> Undo:
    """The weights as bfloat16 has them, then in float32 again, since bfloat16 would differ anyhow."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(torch.bfloat16)
    model.to(torch.float32)
    return lambda: model.load_state_dict(before)


def on_meta(model: Any) -> None:
    model.to("meta")
