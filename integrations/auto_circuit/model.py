"""`patchable_model` and the model it makes: our engine, and masks that a script may write to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

import circuit_trace as ct
from circuit_trace.errors import AnatomyError, InputError
from circuit_trace.graph import EdgeSpec, Graph
from circuit_trace.model import OutputSlice
from circuit_trace.plan.masks import mask_makers, score_shape
from circuit_trace.score.scores import EdgeScores

from .absent import why_absent
from .nodes import (
    DestNode,
    Edge,
    EdgeList,
    EdgesByName,
    InOrder,
    Node,
    NodeTable,
    SrcNode,
    in_transformer_lens,
)


def patchable_model(
    model: nn.Module,
    factorized: bool,
    slice_output: OutputSlice | None = None,
    seq_len: int | None = None,
    separate_qkv: bool | None = None,
    kv_caches: Sequence[Any] | None = (None,),
    device: torch.device | str = "cpu",
    *,
    anatomy: ct.Anatomy | None = None,
) -> PatchableModel:
    """Make a model's computation graph patchable, as auto-circuit's function of that name.

    >>> import circuit_trace as ct
    >>> model = patchable_model(ct.load_model("bundled"), factorized=True, separate_qkv=True)
    >>> len(model.edges), model.edge_name_dict[None]["A0.1->Resid End"].patch_idx
    (110, (2,))

    Args:
        model: A HookedTransformer, a TransformerBridge, or any module with an anatomy. It is left as
            it is, and needs none of the flags `use_attn_result`, `use_split_qkv_input`, ….
        factorized: Must be True.
        slice_output: What `out_slice` selects; see `circuit_trace.wrap`.
        seq_len: How many positions to tell apart, None for none.
        separate_qkv: Whether a head's query, key and value inputs are told apart; None does.
        kv_caches: Caches of a prefix, from `load_datasets_from_json(tail_divergence=True)`.
        device: Where the masks lie.
        anatomy: What the model computes, for one that none fits; see `circuit_trace.Anatomy`.

    Raises:
        AnatomyError: The model cannot be patched, or is patchable already.
        InputError: An option is out of range, or asks for what is not here.
    """
    if isinstance(model, PatchableModel):
        raise AnatomyError("This model is patchable already; its .wrapped_model can be wrapped.")
    if not factorized:
        raise InputError(
            "factorized=False asks for the residual graph, in which only neighbouring layers are "
            "connected; circuit_trace has the factorized graph alone. Pass factorized=True, and "
            "patch all edges of a node with model.patch(outputs, nodes=['A5.2'])."
        )
    is_split = separate_qkv is None or separate_qkv
    engine = ct.wrap(
        model,
        separate_qkv=is_split,
        seq_len=seq_len,
        slice_output=slice_output,
        anatomy=anatomy,
    )
    return PatchableModel(engine, is_split, kv_caches or (), torch.device(device))


class PatchableModel(nn.Module):
    """A model with masks on its edges; made by `patchable_model`.

    `engine` is the same model as `circuit_trace.wrap` makes it. What this class does not have
    comes from there (`patch`, `trace`, `last_trace`, …) or from the wrapped model (`tokenizer`,
    `to_tokens`, `blocks`, `add_hook`, …).
    """

    is_factorized = True
    seq_dim = ct.PatchableModel.seq_dim

    def __init__(
        self,
        engine: ct.PatchableModel,
        separate_qkv: bool,
        kv_caches: Sequence[Any],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.wrapped_model = engine.wrapped_model
        self.engine = engine
        self.separate_qkv = separate_qkv
        self.kv_caches = _by_batch_size(kv_caches)
        self.open_patch: Any = None  # that of `patch_mode`, while one is open
        dtype = _dtype(engine.wrapped_model)
        graph = engine.graph
        self.patch_masks = {
            module.name: nn.Parameter(
                torch.zeros(score_shape(module, graph.seq_len), dtype=dtype, device=device),
                requires_grad=False,
            )
            for module in graph.modules
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "engine" not in self.__dict__:
            raise AttributeError(name)
        if name in self._modules:
            return self._modules[name]
        self._sync()
        try:
            return getattr(self.engine, name)
        except AttributeError as error:
            raise AttributeError(why_absent(name) or str(error)) from None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped model, behind the cached prefix where there is one."""
        self._sync()
        return self.wrapped_model(*args, **self._with_cache(args, kwargs))

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's `run_with_cache`, behind the cached prefix where there is one."""
        self._sync()
        return self.engine.run_with_cache(*args, **self._with_cache(args, kwargs))

    def _sync(self) -> None:
        """Let an open patch read the masks, in which a script may have written."""
        if self.open_patch is not None:
            self.open_patch.sync()

    def _with_cache(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if "past_kv_cache" in kwargs or not args:
            return kwargs
        return {**self.prefix_of(args[0]), **kwargs}

    def prefix_of(self, tokens: Any) -> dict[str, Any]:
        """The argument that puts the cached prefix before a batch; none where no cache is.

        Raises:
            InputError: There are caches, but none for a batch of this size.
        """
        if self.kv_caches is None:
            return {}
        batch = 1 if isinstance(tokens, str) else len(tokens)
        if batch not in self.kv_caches:
            raise InputError(
                f"The model has caches of its prefix for batches of {sorted(self.kv_caches)} "
                f"prompts, but was given {batch}: pass past_kv_cache=None to run without, or wrap "
                "it with a cache of that batch size in kv_caches."
            )
        return {"past_kv_cache": self.kv_caches[batch]}

    @property
    def graph(self) -> Graph:
        """The computation graph."""
        return self.engine.graph

    @property
    def last_trace(self) -> ct.Trace:
        """The record of the last pass inside `patch_mode`."""
        return self.engine.last_trace

    @cached_property
    def _table(self) -> NodeTable:
        if self.is_transformer:
            return NodeTable.of(self.graph, in_transformer_lens)
        modules = {module: name for name, module in self.wrapped_model.named_modules()}
        sites = self.engine.anatomy.sources
        return NodeTable.of(self.graph, lambda src: modules.get(sites[src.site].point.module, ""))

    @property
    def is_transformer(self) -> bool:
        """Whether it reads tokens; other models have an anatomy of their own."""
        return self.engine.anatomy.tokens is not None

    @property
    def srcs(self) -> InOrder[SrcNode]:
        """Every source, in order."""
        return InOrder(self._table.srcs)

    @property
    def dests(self) -> InOrder[DestNode]:
        """Every destination, in order."""
        return InOrder(tuple(self._table.dests.values()))

    @property
    def nodes(self) -> InOrder[Node]:
        """Every source, then every destination."""
        return InOrder((*self.srcs, *self.dests))

    @property
    def edges(self) -> InOrder[Edge]:
        """Every edge, in the graph's order and made when asked for: `len` is free."""
        return InOrder(EdgeList(self.graph.edges, self._table))

    @property
    def n_edges(self) -> int:
        """How many edges there are, each position counted."""
        return self.graph.n_edges

    @property
    def edge_dict(self) -> dict[int | None, EdgeList]:
        """The edges at each position; all of them under None without `seq_len`."""
        n, edges = self.graph.n_edges_per_position, self.graph.edges
        return {
            at: EdgeList(edges[n * (at or 0) : n * ((at or 0) + 1)], self._table)
            for at in self._positions
        }

    @property
    def edge_name_dict(self) -> dict[int | None, EdgesByName]:
        """The edges at each position by their names."""
        return {at: EdgesByName(self.graph, self._table, at) for at in self._positions}

    @property
    def _positions(self) -> Sequence[int | None]:
        return (None,) if self.graph.seq_len is None else range(self.graph.seq_len)

    @property
    def wrappers(self) -> InOrder[PatchWrapper]:
        """What holds the masks of each destination module."""
        return InOrder(tuple(PatchWrapper(self, name) for name in self.patch_masks))

    dest_wrappers = wrappers

    def dest_wrapper(self, module_name: str) -> PatchWrapper:
        """What holds the masks of one destination module.

        Raises:
            InputError: There is no such module.
        """
        if module_name not in self.patch_masks:
            raise InputError(
                f"No destination has the module {module_name!r}; they run from "
                f"{next(iter(self.patch_masks))!r} to {list(self.patch_masks)[-1]!r}."
            )
        return PatchWrapper(self, module_name)

    def new_prune_scores(self, init_val: float = 0.0) -> ct.PruneScores:
        """Scores of every edge, all of one value."""
        return EdgeScores(
            {name: torch.full_like(mask.data, init_val) for name, mask in self.patch_masks.items()}
        )

    def circuit_prune_scores(
        self,
        edges: Collection[EdgeSpec] | None = None,
        edge_dict: Mapping[EdgeSpec, float] | None = None,
        bool: bool = False,
    ) -> ct.PruneScores:
        """Scores that are 1 (or the given number) on some edges and 0 on all others.

        Args:
            edges: Names or edges; with positions, a name means the edge at every position.
            edge_dict: Names or edges with their scores, instead.
            bool: Give boolean tensors.

        Raises:
            EdgeError: There is no such edge.
            InputError: Neither or both were given.
        """
        if (edges is None) == (edge_dict is None):
            raise InputError("Give either edges, for scores of 1, or edge_dict, with their scores.")
        if isinstance(edges, Mapping):
            raise InputError(
                "edges gives every edge the value 1 and takes no values of its own. For others, make "
                "scores with circuit_prune_scores(edge_dict=...) or use "
                "model.patch(outputs, edges={...})."
            )
        makers, _ = mask_makers(self.graph, edges if edge_dict is None else edge_dict)
        scores = self.new_prune_scores()
        for name, make in makers.items():
            scores[name].copy_(make())
        if bool:
            return EdgeScores({name: score.bool() for name, score in scores.items()})
        return scores

    def current_patch_masks_as_prune_scores(self) -> ct.PruneScores:
        """The masks as they are now; the tensors share their memory."""
        return EdgeScores({name: mask.data for name, mask in self.patch_masks.items()})

    def __repr__(self) -> str:
        return repr(self.engine)


@dataclass(frozen=True)
class PatchWrapper:
    """The masks of one destination module, with the attributes that scripts read."""

    model: PatchableModel
    module_name: str
    is_dest = True
    is_src = False

    @property
    def patch_mask(self) -> nn.Parameter:
        """The masks, `[seq?] [head?] [n_sources]`; a pass uses the values that they have then."""
        return self.model.patch_masks[self.module_name]

    @property
    def in_srcs(self) -> slice:
        """The sources before this module."""
        return slice(0, self.model.graph.module_by_name[self.module_name].n_sources)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(why_absent(name) or f"A PatchWrapper has no attribute {name!r}.")

    def __repr__(self) -> str:
        return f"<PatchWrapper {self.module_name}: {tuple(self.patch_mask.shape)}>"


def module_by_name(model: Any, module_name: str) -> Any:
    """The masks of a destination module of that name, else the model's own module.

    Raises:
        InputError: There is neither.
    """
    if isinstance(model, PatchableModel):
        if module_name in model.patch_masks:
            return model.dest_wrapper(module_name)
        model = model.wrapped_model
    try:
        return model.get_submodule(module_name)
    except AttributeError as error:
        raise InputError(f"The model has no module {module_name!r}: {error}.") from error


def _dtype(model: nn.Module) -> torch.dtype:
    """What the weights are kept in, the quantized ones aside; the usual one where there are none."""
    kept_in = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return next(kept_in, torch.get_default_dtype())


def _by_batch_size(kv_caches: Sequence[Any]) -> dict[int, Any] | None:
    caches = [cache for cache in kv_caches if cache is not None]
    return {len(cache.previous_attention_mask): cache for cache in caches} or None
