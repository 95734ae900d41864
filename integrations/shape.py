"""The few numbers that fix a transformer's graph, so that a file can be read without the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, DestSite, NodeKind, Point, SourceSite
from circuit_trace.errors import FormatError
from circuit_trace.graph import DestNode, Graph, build_graph, whole_number

from .untrusted import told

MOST_LAYERS, MOST_HEADS, MOST_EDGES = 1_000, 1_000, 50_000_000
"""More than these are no model, and are refused before anything is made for them."""

_MOST = {"n_layers": MOST_LAYERS, "n_heads": MOST_HEADS, "n_kv_heads": MOST_HEADS}

_NOWHERE = Point(nn.Identity())
"""Stands where a model would say which of its tensors is meant."""

_KEY = re.compile(r"blocks\.(\d{1,4})\.hook_(q_input|k_input|v_input|attn_in|mlp_in|resid_post)")


@dataclass(frozen=True)
class Shape:
    """A transformer as its graph sees it: how many layers and heads, and how they are wired.

    >>> shape = Shape(n_layers=12, n_heads=12, n_kv_heads=12)
    >>> print(shape)
    12 layers of 12 heads and an MLP
    >>> shape.graph().n_edges
    32491

    Args:
        n_layers: Blocks.
        n_heads: Query heads in each.
        n_kv_heads: Key-value heads in each; fewer than query heads where these share them.
        attn_only: There are no MLPs.
        parallel: A layer's MLP reads what its heads read, not what they write.
        separate_qkv: A head's query, key and value inputs are told apart.

    Raises:
        FormatError: No model has such numbers.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    attn_only: bool = False
    parallel: bool = False
    separate_qkv: bool = True

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise _no_number(name, getattr(self, name))
        if self.n_heads % self.n_kv_heads:
            raise FormatError(
                f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly."
            )
        if self.parallel and self.attn_only:
            raise FormatError("A model without MLPs cannot have them parallel to its heads.")
        if not self.separate_qkv and self.n_heads != self.n_kv_heads:
            raise FormatError(
                f"Heads that are not split into Q, K and V need a key-value head each; got "
                f"{self.n_kv_heads} for {self.n_heads}."
            )
        if self.n_edges > MOST_EDGES:
            raise FormatError(
                f"A model of {self} has {self.n_edges:,} edges; at most {MOST_EDGES:,} are read."
            )

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, Any]) -> Shape:
        """The shape that a file says, whose values may be anything.

        >>> print(Shape.of_numbers({"n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "parallel": True}))
        2 layers of 4 heads and a parallel MLP

        Raises:
            FormatError: A value is missing, or is no number or truth that a model has.
        """
        known: dict[str, Any] = {}
        for field in fields(cls):
            value = numbers.get(field.name, None if field.name in _MOST else field.default)
            if field.name in _MOST:
                known[field.name] = whole_number(value)
                if known[field.name] is None:
                    raise _no_number(field.name, value)
            elif isinstance(value, bool):
                known[field.name] = value
            else:
                raise FormatError(f"{field.name} must be true or false; got {told(value)}.")
        return cls(**known)

    def __str__(self) -> str:
        heads = f"{self.n_heads} head{'s' * (self.n_heads > 1)}"
        if self.n_kv_heads != self.n_heads:
            heads += f" on {self.n_kv_heads} key-value head{'s' * (self.n_kv_heads > 1)}"
        mlp = "no MLP" if self.attn_only else f"{'a parallel' if self.parallel else 'an'} MLP"
        split = "" if self.separate_qkv else ", Q, K and V not told apart"
        return f"{self.n_layers} layer{'s' * (self.n_layers > 1)} of {heads} and {mlp}{split}"

    @property
    def n_edges(self) -> int:
        """How many edges its graph has at one position, without making it."""
        mlp = 0 if self.attn_only else 1
        inputs = self.n_heads + 2 * self.n_kv_heads if self.separate_qkv else self.n_heads
        before = sum(self.sources_before(layer) for layer in range(self.n_layers))
        to_mlps = before + (0 if self.parallel else self.n_layers * self.n_heads)
        return inputs * before + mlp * to_mlps + self.sources_before(self.n_layers)

    def sources_before(self, layer: int) -> int:
        """How many sources write before a layer's heads read."""
        return 1 + layer * (self.n_heads + (not self.attn_only))

    def graph(self, seq_len: int | None = None) -> Graph:
        """The graph that `ct.wrap` finds for a TransformerLens model of this shape.

        Raises:
            FormatError: It would be too large.
        """
        if seq_len is not None and not 1 <= seq_len <= MOST_EDGES // self.n_edges:
            raise FormatError(
                f"A model of {self} cannot be read at {seq_len:,} token positions: expected 1 to "
                f"{MOST_EDGES // self.n_edges:,}, so that its edges are at most {MOST_EDGES:,}."
            )
        sources = [SourceSite(("Resid Start",), "embed", 0, _NOWHERE)]
        dests: list[DestSite] = []
        depth = 0
        for layer in range(self.n_layers):
            before, depth = self.sources_before(layer), depth + 1
            heads = tuple(f"A{layer}.{head}" for head in range(self.n_heads))
            for module, names, units in self._heads_inputs(layer, heads):
                dests.append(_dest(module, names, units, "attention", depth, before, layer))
            sources.append(SourceSite(heads, "attention", depth, _NOWHERE, layer))
            if not self.attn_only:
                depth += 1
                seen, name = before + (0 if self.parallel else self.n_heads), (f"MLP {layer}",)
                module = f"blocks.{layer}.hook_mlp_in"
                dests.append(_dest(module, name, name, "mlp", depth, seen, layer))
                sources.append(SourceSite(name, "mlp", depth, _NOWHERE, layer))
        end, module = ("Resid End",), f"blocks.{self.n_layers - 1}.hook_resid_post"
        every = self.sources_before(self.n_layers)
        dests.append(_dest(module, end, end, "output", depth + 1, every, None))
        return build_graph(_anatomy(sources, dests), seq_len)

    def _heads_inputs(
        self, layer: int, heads: tuple[str, ...]
    ) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        if not self.separate_qkv:
            return [(f"blocks.{layer}.hook_attn_in", heads, heads)]
        counts = {"Q": self.n_heads, "K": self.n_kv_heads, "V": self.n_kv_heads}
        return [
            (
                f"blocks.{layer}.hook_{letter.lower()}_input",
                tuple(f"{head}.{letter}" for head in heads[:count]),
                heads[:count],
            )
            for letter, count in counts.items()
        ]

    @classmethod
    def of_graph(cls, graph: Graph) -> Shape:
        """Read the shape off a graph.

        Raises:
            FormatError: It is not the graph of a transformer of equal layers under
                TransformerLens' names.
        """
        found = None
        heads = [module for module in graph.modules if module.dests[0].layer == 0]
        counts = {module.name.rpartition(".")[2]: len(module.dests) for module in heads}
        n_heads = counts.get("hook_q_input", counts.get("hook_attn_in", 0))
        if n_heads:
            mlp = graph.module_by_name.get("blocks.0.hook_mlp_in")
            found = _shape_or_none(
                n_layers=1 + max((src.layer or 0) for src in graph.srcs),
                n_heads=n_heads,
                n_kv_heads=counts.get("hook_k_input", n_heads),
                attn_only=mlp is None,
                parallel=mlp is not None and mlp.n_sources == 1,
                separate_qkv="hook_q_input" in counts,
            )
        if found is not None:
            built = found.graph()
            if (built.srcs, built.modules) == (graph.srcs, graph.modules):
                return found
        raise FormatError(
            "This model's graph is not that of a transformer of equal layers under TransformerLens' "
            "names, which this format is for. PruneScores, GraphML, DOT and Mermaid hold any graph; "
            "they too need model= to be read."
        )

    @classmethod
    def of_scores(cls, scores: Mapping[str, Tensor]) -> tuple[Shape, int | None]:
        """Read the shape, and how many positions are told apart, off the keys and shapes of scores.

        >>> import circuit_trace as ct
        >>> model = ct.wrap(ct.load_model("bundled"), seq_len=2)
        >>> shape, seq_len = Shape.of_scores(model.trace("Mary").masks)
        >>> print(shape, "at", seq_len, "positions")
        2 layers of 4 heads and an MLP at 2 positions

        Raises:
            FormatError: They do not say it: other names, or modules that are left out.
        """
        sizes: dict[str, tuple[int, tuple[int, ...]]] = {}
        for key, tensor in scores.items():
            match = _KEY.fullmatch(key) if isinstance(key, str) else None
            if match is None:
                raise _cannot_tell(f"{told(key)} is not a module of TransformerLens'")
            layer, kind = match.groups()
            if kind not in sizes or int(layer) > sizes[kind][0]:
                sizes[kind] = (int(layer), tuple(tensor.shape))
        if "resid_post" not in sizes:
            raise _cannot_tell("they have no scores at the end of the stream (hook_resid_post)")
        last, ended = sizes["resid_post"]
        split = "q_input" in sizes
        of_heads = sizes.get("q_input", sizes.get("attn_in"))
        shared = sizes.get("k_input", sizes.get("v_input")) if split else of_heads
        if of_heads is None or shared is None:
            raise _cannot_tell("they leave out the heads' inputs")
        if len(ended) not in (1, 2) or {len(of_heads[1]), len(shared[1])} != {len(ended) + 1}:
            raise FormatError(
                "These scores have token positions in some modules only, or too many dimensions: "
                "expected [seq?] [head?] [n_sources]."
            )
        n_heads = of_heads[1][-2]
        attn_only = ended[-1] == 1 + (last + 1) * n_heads
        parallel = False
        if not attn_only:
            if "mlp_in" not in sizes:
                raise _cannot_tell("they leave out the MLPs' inputs")
            layer, sources = sizes["mlp_in"]
            parallel = sources[-1:] == (1 + layer * (n_heads + 1),)
        shape = cls(last + 1, n_heads, shared[1][-2], attn_only, parallel, split)
        return shape, ended[0] if len(ended) == 2 else None


def _no_number(name: str, value: Any) -> FormatError:
    return FormatError(
        f"{name} must be a whole number from 1 to {_MOST[name]:,}; got {told(value)}."
    )


def _shape_or_none(**numbers: int | bool) -> Shape | None:
    try:
        return Shape(**numbers)  # pyright: ignore[reportArgumentType]
    except FormatError:
        return None


def _cannot_tell(why: str) -> FormatError:
    return FormatError(
        f"These scores do not say what model they are for ({why}). Pass it, as model=, or save "
        "scores of all its modules."
    )


def _dest(
    module: str,
    names: tuple[str, ...],
    units: tuple[str, ...],
    kind: NodeKind,
    depth: int,
    n_sources: int,
    layer: int | None,
) -> DestSite:
    with_heads = kind == "attention"
    return DestSite(module, names, units, kind, depth, n_sources, with_heads, _NOWHERE, (), layer)


def _anatomy(sources: list[SourceSite], dests: list[DestSite]) -> Anatomy:
    """An anatomy without a model: `build_graph` names and numbers its nodes all the same."""
    return Anatomy(tuple(sources), tuple(dests), _no_example, _NOWHERE)


def _no_example() -> Tensor:
    raise FormatError("A shape has no model to run.")


def check_fits(shape: Shape, graph: Graph, what: str, *, grouped: bool = False) -> None:
    """Check that a file for a model of that shape, without token positions, fits a model's graph.

    Args:
        shape: What the file says.
        graph: The model's.
        what: What the file is called in the message.
        grouped: The file tells key and value inputs apart for each query head; which of them share
            a key-value head is not its matter.

    Raises:
        FormatError: It does not; both are told in words.
    """
    mine = Shape.of_graph(graph)
    compared = replace(mine, n_kv_heads=mine.n_heads) if grouped else mine
    if compared != shape:
        raise FormatError(f"{what} is for a model of {shape}; the model given is one of {mine}.")
    check_no_positions(graph, what)


def check_no_positions(graph: Graph, what: str) -> None:
    """Check that a model's graph tells no positions apart, since the file does not either.

    Raises:
        FormatError: It does.
    """
    if graph.seq_len is not None:
        raise FormatError(
            f"{what} has no token positions, and the model given was wrapped with "
            f"seq_len={graph.seq_len}. Give the model wrapped without it; where one score shall count "
            f"at every position: {{name: s.expand({graph.seq_len}, *s.shape) for name, s in …}}."
        )


def letter(dest: DestNode) -> str:
    """Which input of a head a destination is: "Q", "K" or "V", or "" where it is none of them.

    >>> letter(Shape(1, 1, 1).graph().dest_by_name["A0.0.K"])
    'K'
    """
    return dest.name[len(dest.unit) + 1 :]
