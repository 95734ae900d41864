"""The one builder of graphs: who writes to the residual stream and who reads it, in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from circuit_trace.graph.graph import Graph
from circuit_trace.graph.nodes import DestModule, DestNode, NodeKind, SrcNode


@dataclass(frozen=True)
class Writes:
    """Sources that write to the stream at one place: a layer's heads, an MLP, the embedding."""

    names: tuple[str, ...]
    kind: NodeKind
    depth: int
    layer: int | None


@dataclass(frozen=True)
class Reads:
    """Destinations that read the stream at one place: a layer's queries, an MLP, the stream's end."""

    module_name: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    kind: NodeKind
    depth: int
    n_sources: int
    has_heads: bool
    layer: int | None


def build_graph(
    sources: Iterable[Writes], dests: Iterable[Reads], seq_len: int | None = None
) -> Graph:
    """Name the nodes of what writes and reads, and number the edges between them.

    >>> start, end = Writes(("In",), "embed", 0, None), Writes(("Sum",), "mlp", 1, 0)
    >>> read = Reads("sum", ("Sum",), ("Sum",), "mlp", 1, 1, False, 0)
    >>> build_graph([start, end], [read]).edges
    <Edges: 1 (In->Sum)>
    """
    srcs: list[SrcNode] = []
    for site_idx, site in enumerate(sources):
        for slot, name in enumerate(site.names):
            head = slot if site.kind == "attention" else None
            srcs.append(
                SrcNode(name, len(srcs), site_idx, slot, site.kind, site.depth, site.layer, head)
            )
    modules: list[DestModule] = []
    offset = 0
    for site in dests:
        nodes = tuple(
            DestNode(
                name=name,
                unit=unit,
                module_name=site.module_name,
                slot=slot,
                n_sources=site.n_sources,
                kind=site.kind,
                depth=site.depth,
                layer=site.layer,
                head=slot if site.has_heads else None,
            )
            for slot, (name, unit) in enumerate(zip(site.names, site.units, strict=True))
        )
        modules.append(DestModule(site.module_name, nodes, site.n_sources, site.has_heads, offset))
        offset += modules[-1].n_edges
    return Graph(tuple(srcs), tuple(modules), seq_len)


@dataclass
class Stream:
    """A transformer's residual stream from its start to its end, under TransformerLens' names.

    >>> stream = Stream(n_heads=2, n_kv_heads=2)
    >>> reads, heads = stream.add_attention()
    >>> [read.names for read in reads], heads.names
    ([('A0.0.Q', 'A0.1.Q'), ('A0.0.K', 'A0.1.K'), ('A0.0.V', 'A0.1.V')], ('A0.0', 'A0.1'))
    >>> stream.end().n_sources
    3

    Args:
        n_heads: Query heads in each layer.
        n_kv_heads: Key-value heads; fewer where query heads share them.
        parallel: A layer's MLP reads what its heads read, not what they write.
        separate_qkv: A head's query, key and value inputs are told apart.
    """

    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    separate_qkv: bool = True
    sources: list[Writes] = field(
        default_factory=lambda: [Writes(("Resid Start",), "embed", 0, None)]
    )
    dests: list[Reads] = field(default_factory=list)
    _layer: int = -1
    _n_before_heads: int = 1

    @property
    def _n_sources(self) -> int:
        return sum(len(site.names) for site in self.sources)

    def add_attention(self) -> tuple[Sequence[Reads], Writes]:
        """Begin a layer: what its heads read, as queries, keys and values (or all of these), and what
        they write."""
        self._layer += 1
        self._n_before_heads = self._n_sources
        layer, depth = self._layer, self.sources[-1].depth + 1
        heads = tuple(f"A{layer}.{head}" for head in range(self.n_heads))
        inputs = {"attn_in": ("", self.n_heads)}
        if self.separate_qkv:
            counts = {"Q": self.n_heads, "K": self.n_kv_heads, "V": self.n_kv_heads}
            inputs = {
                f"{letter.lower()}_input": (f".{letter}", count) for letter, count in counts.items()
            }
        reads = [
            Reads(
                module_name=f"blocks.{layer}.hook_{name}",
                names=tuple(f"{head}{suffix}" for head in heads[:count]),
                units=heads[:count],
                kind="attention",
                depth=depth,
                n_sources=self._n_before_heads,
                has_heads=True,
                layer=layer,
            )
            for name, (suffix, count) in inputs.items()
        ]
        self.dests += reads
        self.sources.append(Writes(heads, "attention", depth, layer))
        return reads, self.sources[-1]

    def add_mlp(self) -> tuple[Reads, Writes]:
        """The layer's MLP: what it reads, and what it writes."""
        layer, depth, name = self._layer, self.sources[-1].depth + 1, (f"MLP {self._layer}",)
        seen = self._n_before_heads if self.parallel else self._n_sources
        module = f"blocks.{layer}.hook_mlp_in"
        self.dests.append(Reads(module, name, name, "mlp", depth, seen, False, layer))
        self.sources.append(Writes(name, "mlp", depth, layer))
        return self.dests[-1], self.sources[-1]

    def end(self) -> Reads:
        """The end of the stream, which reads all."""
        module, name = f"blocks.{self._layer}.hook_resid_post", ("Resid End",)
        depth = self.sources[-1].depth + 1
        self.dests.append(Reads(module, name, name, "output", depth, self._n_sources, False, None))
        return self.dests[-1]

    def graph(self, seq_len: int | None = None) -> Graph:
        """The graph of what was added."""
        return build_graph(self.sources, self.dests, seq_len)
