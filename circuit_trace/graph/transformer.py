"""The few numbers that fix a transformer's graph, so that a file can be read without the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from circuit_trace.errors import FormatError, InputError
from circuit_trace.graph.build import Stream
from circuit_trace.graph.grammar import whole_number
from circuit_trace.graph.graph import Graph
from circuit_trace.text import told

MOST_LAYERS, MOST_HEADS, MOST_EDGES = 1_000, 1_000, 50_000_000
"""More than these are no model, and are refused before anything is made for them."""

_MOST = {"n_layers": MOST_LAYERS, "n_heads": MOST_HEADS, "n_kv_heads": MOST_HEADS}

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
        stream = Stream(self.n_heads, self.n_kv_heads, self.parallel, self.separate_qkv)
        for _ in range(self.n_layers):
            stream.add_attention()
            if not self.attn_only:
                stream.add_mlp()
        stream.end()
        return stream.graph(seq_len)

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


def graph_of(model: Any) -> Graph | None:
    """The graph of what a user gives as a model: a `PatchableModel`, a `Trace` or a `Graph`.

    Raises:
        InputError: It is none of them.
    """
    if model is None:
        return None
    graph = model if isinstance(model, Graph) else getattr(model, "graph", None)
    if not isinstance(graph, Graph):
        raise InputError(
            f"model must be a wrapped model (ct.wrap(model)), a Trace or a Graph; got "
            f"{type(model).__name__}."
        )
    return graph


def graph_for(scores: Any, model: Any) -> Graph:
    """The model's graph, or without a model the one that scores know or are shaped for.

    Raises:
        FormatError, MaskError, InputError: The scores are none, or do not say what they are for.
    """
    graph = graph_of(model) or getattr(scores, "known_graph", None)
    if graph is not None:
        return graph
    if not isinstance(scores, Mapping) or not all(
        isinstance(score, Tensor) for score in scores.values()
    ):
        raise FormatError(
            "The scores must be PruneScores, a dict from a module's name to a tensor; got "
            f"{type(scores).__name__}."
        )
    shape, seq_len = Shape.of_scores(scores)
    return shape.graph(seq_len)
