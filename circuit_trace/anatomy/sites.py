"""What the core knows of a model: where it writes to its residual stream and where it reads it.

An `Anatomy` is plain data and small functions; the hooks that use it are attached elsewhere. Any
module whose units read from and add to one stream can be described this way (see
`tests/anatomy/toy.py` for a model that is not even a transformer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuit_trace.graph import Graph, NodeKind, Reads, Writes, build_graph

HeadTensor = Literal["pattern", "q", "k", "v", "rot_q", "rot_k"]
"""What a head's attention is made of; `circuit_trace.trace.HeadRecord` says what each is."""


def nothing() -> None:
    """Stand for an absent weight or bias."""
    return None


@dataclass(frozen=True, eq=False)
class Point:
    """A tensor that passes by: the first input of a module's forward pass, or its output."""

    module: nn.Module
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True, eq=False)
class HeadsPoint:
    """Where a tensor of a layer's heads passes: `[batch, seq, head, width]`, or the two last as one.

    With `heads_first` it is `[batch, head, seq, width]`, as attention patterns are. `n_heads` is how
    many heads it has: the key-value heads where query heads share them.
    """

    point: Point
    n_heads: int
    heads_first: bool = False


@dataclass(frozen=True, eq=False)
class PostNorm:
    """A norm between what a layer computes and the residual stream (Gemma 2 and 3, OLMo 2).

    `before` and `after` are where its input and output pass, and `apply` computes it without firing
    a hook. It must scale each position by one number and each feature by another, as RMSNorm does.
    """

    before: Point
    after: Point
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SourceSite:
    """A place that writes to the residual stream: a layer's heads, an MLP, the embedding.

    What passes at `point` is stored as it is, the *code*, reshaped to
    `[batch, seq, node, width]`; node `i` writes `code[:, :, i] @ weight()[i]`, or the code itself
    where `weight()` is None. For a layer's heads the code is `hook_z` (`d_head` wide) and the
    weight `W_O`, so that no `[batch, seq, head, d_model]` is ever built. `bias()` is what the site
    adds to the stream beside its nodes (`b_O`); it belongs to no node. What stands between these and
    the stream is part of what a node writes: the `norm`, with the scale of the same pass, and
    `scale`, a constant (Granite's residual multiplier). `total` is where the sum of what its nodes
    write and the bias passes, before `norm` and `scale`, so that each pass can tell whether `weight`
    is still what the model multiplies by. `attention` is where a layer's heads show how they attend;
    without it that cannot be recorded.
    """

    names: tuple[str, ...]
    kind: NodeKind
    depth: int
    point: Point
    layer: int | None = None
    weight: Callable[[], Float[Tensor, "node width d_model"] | None] = nothing
    bias: Callable[[], Float[Tensor, " d_model"] | None] = nothing
    norm: PostNorm | None = None
    scale: float = 1.0
    total: Point | None = None
    attention: Mapping[HeadTensor, HeadsPoint] = field(default_factory=dict)

    @property
    def nodes(self) -> Writes:
        """What the graph knows of it."""
        return Writes(self.names, self.kind, self.depth, self.layer)


@dataclass(frozen=True, eq=False)
class Reader:
    """A tensor that a destination computes from the residual stream.

    For head `i` it is `norm(x) @ weight()[i] + bias()[i]`, without the factors that are None, as
    `hook_q` is; `norm` fires no hook. Where `norm` is None the tensor at `point` is the stream itself.
    """

    point: Point
    norm: Callable[[Tensor], Tensor] | None = None
    weight: Callable[[], Float[Tensor, "head d_model width"] | None] = nothing
    bias: Callable[[], Float[Tensor, "head width"] | None] = nothing

    def project(
        self, x: Float[Tensor, "head batch pos d_model"], heads: Sequence[int]
    ) -> Float[Tensor, "head batch pos width"]:
        """What some heads compute, each from its own input."""
        read = x if self.norm is None else self.norm(x)
        weight, bias = self.weight(), self.bias()
        if weight is None:
            return read
        index, are_all = list(heads), len(heads) == len(weight)
        rows = read.to(weight.dtype).flatten(1, 2)
        if are_all:
            computed = torch.bmm(rows, weight)
        elif weight.device.type == "cpu":
            # One by one: to gather weights into one tensor costs a CPU more than it saves.
            computed = torch.stack(
                [row @ weight[one] for row, one in zip(rows, index, strict=True)]
            )
        else:
            computed = torch.bmm(rows, weight[index])
        computed = computed.unflatten(1, x.shape[1:3])
        if bias is None:
            return computed
        return computed + (bias if are_all else bias[index])[:, None, None]


@dataclass(frozen=True, eq=False)
class DestSite:
    """A place that reads the residual stream: a layer's queries, keys or values, an MLP, the end.

    `module_name` is its key in `PruneScores`, `units` the node that each destination is an input
    of ("A7.1" for "A7.1.Q"), `n_sources` how many sources, counted from the first, stand before
    it, and `has_heads` whether its scores have a head dimension.
    """

    module_name: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    kind: NodeKind
    depth: int
    n_sources: int
    has_heads: bool
    stream: Point
    readers: tuple[Reader, ...]
    layer: int | None = None

    @property
    def nodes(self) -> Reads:
        """What the graph knows of it."""
        return Reads(
            self.module_name,
            self.names,
            self.units,
            self.kind,
            self.depth,
            self.n_sources,
            self.has_heads,
            self.layer,
        )


@dataclass(frozen=True, eq=False)
class Unembed:
    """How the end of the stream becomes logits: `finish(norm(stream) @ weight() + bias())`.

    `norm` is the final norm, computed without firing a hook; for its scale in one pass it must be
    linear, as LayerNorm and RMSNorm are. `to_ids` turns text into token ids without adding any; it
    is None where the model has no tokenizer.
    """

    norm: Callable[[Tensor], Tensor]
    weight: Callable[[], Float[Tensor, "d_model d_vocab"]]
    bias: Callable[[], Float[Tensor, " d_vocab"] | None] = nothing
    finish: Callable[[Tensor], Tensor] = lambda logits: logits
    to_ids: Callable[[str], list[int]] | None = None


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model seen as sources that write to one stream and destinations that read it.

    `sources` and `dests` stand in the order in which the model runs them. `tokens` is where the
    token ids come in (None for a model without tokens), `logits` where the output passes and
    `finish_logits` what the model still does to it. `example` makes the tiny input that the
    anatomy is verified with. `to_tokens` and `to_strings` turn text into tokens and a row of
    tokens into its strings; they are None where the model has no tokenizer. With `unembed` what a
    source writes can be read as logits; without, a trace says that it cannot. `settings` reads those
    of the model's settings that the anatomy was made by: where they change, it is made again.
    `verified` says that the model was found to compute what the anatomy says; then each pass is
    compared with it too.
    """

    sources: tuple[SourceSite, ...]
    dests: tuple[DestSite, ...]
    example: Callable[[], Tensor]
    logits: Point
    tokens: Point | None = None
    finish_logits: Callable[[Tensor], Tensor] = lambda logits: logits
    to_tokens: Callable[[str | list[str]], Int[Tensor, "batch seq"]] | None = None
    to_strings: Callable[[Int[Tensor, " seq"]], list[str]] | None = None
    unembed: Unembed | None = None
    cfg: Any = None
    without_logits: Mapping[str, Any] = field(default_factory=dict)
    """Options of a pass whose logits nobody needs, to leave out a costly unembedding."""
    pad_token: int = 0
    """What fills up the shorter ones of several prompts; any token will do, since it is masked."""
    settings: Callable[[], Any] = nothing
    verified: bool = False

    def graph(self, seq_len: int | None = None) -> Graph:
        """Its nodes and edges, at so many positions that are told apart."""
        return build_graph(
            [site.nodes for site in self.sources], [site.nodes for site in self.dests], seq_len
        )

    def points(self) -> Iterator[Point]:
        """Every place in the model that it names."""
        for site in self.sources:
            yield site.point
            yield from (shown.point for shown in site.attention.values())
            yield from (site.norm.before, site.norm.after) if site.norm else ()
            yield from (site.total,) if site.total else ()
        for dest in self.dests:
            yield dest.stream
            yield from (reader.point for reader in dest.readers)
        yield self.logits
        yield from (self.tokens,) if self.tokens else ()

    caveats: tuple[str, ...] = ()
    """Sentences on what is unusual about the model, said where the check finds that it does not fit."""
