"""A model that is no transformer, and its anatomy: any module with one stream can be described.

Two layers of two heads; a head multiplies what it reads elementwise, and every head's output is added
to the stream. There are no tokens: the input is the stream itself, `[batch, seq, 2]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from circuit_trace import Anatomy, DestSite, Point, Reader, SourceSite

FACTORS = ((1.0, 2.0), (3.0, 4.0))
"""What each head of a layer multiplies by."""


class ToyLayer(nn.Module):
    """`x + head0(x) + head1(x)`."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(FACTORS))
        self.stream, self.inputs, self.outputs = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream(x)
        read = self.inputs(x[:, :, None].expand(-1, -1, len(FACTORS), -1))
        wrote = self.outputs(read * self.factors)
        return x + wrote.sum(2)


class ToyModel(nn.Module):
    """Two such layers, one after the other."""

    def __init__(self, n_layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ToyLayer() for _ in range(n_layers))
        self.start, self.end = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = layer(x)
        return self.end(x)


def anatomy(model: nn.Module, *, separate_qkv: bool = True) -> Anatomy | None:
    """The toy's anatomy, None for anything else."""
    if not isinstance(model, ToyModel):
        return None
    sources = [SourceSite(("Resid Start",), "embed", 0, Point(model.start))]
    dests = []
    for number, layer in enumerate(model.layers):
        names = tuple(f"B{number}.{head}" for head in range(len(FACTORS)))
        dests.append(
            DestSite(
                module_name=f"layers.{number}.inputs",
                names=names,
                units=names,
                kind="attention",
                depth=number + 1,
                n_sources=1 + number * len(FACTORS),
                has_heads=True,
                stream=Point(layer.stream),
                readers=(Reader(Point(layer.inputs), _what_heads_read),),
                layer=number,
            )
        )
        sources.append(SourceSite(names, "attention", number + 1, Point(layer.outputs), number))
    end = Point(model.end)
    n_layers = len(model.layers)
    dests.append(
        DestSite(
            module_name="end",
            names=("Resid End",),
            units=("Resid End",),
            kind="output",
            depth=n_layers + 1,
            n_sources=1 + n_layers * len(FACTORS),
            has_heads=False,
            stream=end,
            readers=(Reader(end),),
        )
    )
    return Anatomy(
        sources=tuple(sources),
        dests=tuple(dests),
        example=lambda: torch.arange(1.0, 9.0).view(1, 4, 2),
        logits=end,
    )


def _what_heads_read(x: Tensor) -> Tensor:
    """A head reads the stream as it is."""
    return x
