"""Plain data and tensors as a trace. Nothing in them is trusted: a field is checked, then used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import torch
from torch import Tensor

from circuit_trace.anatomy import HeadTensor
from circuit_trace.errors import FormatError, MaskError
from circuit_trace.graph import ARROW, DestModule, DestNode, Graph, NodeKind, SrcNode
from circuit_trace.hooks import N_DIRECTIONS, Read
from circuit_trace.plan import (
    AblationType,
    Plan,
    PruneScores,
    SiteOutput,
    SourceOutputs,
    check_scores,
)
from circuit_trace.record.about import MOST_NESTED, About, plain
from circuit_trace.record.outcome import MEASURED, Outcome, Patch
from circuit_trace.record.record import Record
from circuit_trace.record.saved.container import Content
from circuit_trace.record.saved.item import Item
from circuit_trace.record.saved.store import DTYPES
from circuit_trace.record.saved.vocabulary import NO_TOKEN, SavedIds, SavedStrings
from circuit_trace.record.unembedding import Lens, SavedLenses

FLOATS = tuple(DTYPES.values())
INTEGERS = (torch.int64, torch.int32)

MOST_PLANS = 1000
"""More contexts than anybody nests; with more, answers would take for ever."""
MOST_DEPTH = 100_000
"""A picture has a column for each depth."""
MOST_EDGES, EDGES_PER_NUMBER = 2**26, 1000
"""Masks of every edge are made when they are asked for: a small file must not ask for much memory."""

Shape = Sequence[int | tuple[int, ...] | None]
"""What each axis is long: a number, one of several, or anything."""


class _Tensors:
    """The tensors of a file; what shared memory when it was written shares it again."""

    def __init__(self, found: Mapping[str, Tensor]) -> None:
        self._found = found
        self._made: dict[tuple[str, str | None, tuple[int, ...]], Tensor] = {}

    def check_all_taken(self) -> None:
        """Raise FormatError where there are tensors that the record has no place for."""
        more = self._found.keys() - {name for name, _, _ in self._made}
        if more:
            raise FormatError(
                f"The file's tensor {min(more)[:60]!r} has no place in its record, as this circuit-trace "
                "reads it: was it changed after it was written, or by a later circuit-trace?"
            )

    def take(self, item: Item, dtypes: Sequence[torch.dtype], shape: Shape | None = None) -> Tensor:
        """The tensor that an item names, if it is of one of these dtypes and of this shape."""
        name = item["tensor"].text(tuple(self._found))
        stored = self._found[name]
        dtype = None if "dtype" not in item.value else item["dtype"].text(tuple(DTYPES))
        axes = tuple(range(stored.ndim))
        if "axes" in item.value:
            axes = tuple(one.whole(0) for one in item["axes"].entries())
            if sorted(axes) != list(range(stored.ndim)):
                item["axes"].refuse(f"the axes of a tensor of {stored.ndim} in some order")
        if (name, dtype, axes) not in self._made:
            back = sorted(range(len(axes)), key=axes.__getitem__)
            wide = stored if dtype is None else stored.to(DTYPES[dtype])
            self._made[name, dtype, axes] = wide.permute(back)
        tensor = self._made[name, dtype, axes]
        if tensor.dtype not in dtypes:
            item.refuse(f"a tensor of {_any_of(dtypes)}, not {tensor.dtype}")
        if shape is not None and not _fits(tensor.shape, shape):
            item.refuse(f"a tensor of the shape {_shown(shape)}, not {tuple(tensor.shape)}")
        return tensor

    def maybe(
        self, item: Item, dtypes: Sequence[torch.dtype], shape: Shape | None = None
    ) -> Tensor | None:
        """As `take`, None where the item is null."""
        return None if item.optional is None else self.take(item, dtypes, shape)


def _fits(found: Sequence[int], shape: Shape) -> bool:
    return len(found) == len(shape) and all(
        size > 0
        and (wanted is None or size == wanted or (isinstance(wanted, tuple) and size in wanted))
        for size, wanted in zip(found, shape, strict=True)
    )


def _within(numbers: Tensor, low: int, high: int) -> bool:
    """Whether all are; of an outline nothing is known."""
    return numbers.is_meta or (int(numbers.min()) >= low and int(numbers.max()) <= high)


def _numbers(tensor: Tensor) -> list:
    """A tensor's numbers; an outline has none."""
    return [] if tensor.is_meta else tensor.tolist()


def _filled(tensor: Tensor) -> Tensor:
    """A tensor; for an outline, zeros of its shape that take no memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def _shown(shape: Shape) -> str:
    sizes = ["any" if one is None else one for one in shape]
    return f"[{', '.join(_any_of(one) if isinstance(one, tuple) else str(one) for one in sizes)}]"


def _any_of(values: Sequence[object]) -> str:
    return " or ".join(str(one) for one in dict.fromkeys(values))


def trace_of(content: Content) -> Record:
    """The trace that was written; of a file's outline (`read_file`) one without numbers.

    Raises:
        FormatError: A field is missing, of another kind, or at odds with the others.
    """
    data = Item(content.data, "record")
    tensors = _Tensors(content.tensors)
    n_numbers = sum(tensor.numel() for tensor in content.tensors.values())
    graph = _graph(data["graph"], n_numbers)
    current = _current(data["current"], graph, tensors)
    batch, seq = current.batch, current.seq
    tokens = tensors.maybe(data["tokens"], (*FLOATS, *INTEGERS))
    rows = _token_strings(data["token_strings"], tokens, batch, seq)
    unembed, texts = _unembed(data["unembed"], tensors, current)
    has_strings = rows or texts is not None
    trace = Record(
        graph=graph,
        current=current,
        plans=tuple(
            _plan(item, graph, current, tensors) for item in data["plans"].entries(0, MOST_PLANS)
        ),
        tokens=tokens,
        recorded_logits=tensors.maybe(data["logits"], FLOATS),
        reads=_reads(data["reads"], graph, batch, seq, tensors),
        biases=_biases(data["biases"], current, tensors, are_needed=bool(data["reads"].value)),
        to_strings=SavedStrings(rows, texts) if has_strings else None,
        unembed=unembed,
        head_tensors=_heads(data["heads"], current, tensors),
        about=_about(data["about"]),
        real=_real(data.maybe("real"), tensors, batch, seq),
        outcome=_outcome(data.maybe("outcome"), batch),
    )
    tensors.check_all_taken()
    return trace


def _real(item: Item | None, tensors: _Tensors, batch: int, seq: int) -> Tensor | None:
    """Which positions are no padding."""
    if item is None:
        return None
    real = tensors.take(item, INTEGERS, (batch, seq))
    if not _within(real, 0, 1) or not all(map(any, _numbers(real))):
        item.refuse("0 and 1, with a 1 for each prompt")
    return real.bool()


def _outcome(item: Item | None, batch: int) -> Outcome | None:
    """How a metric came out."""
    if item is None:
        return None
    values = {
        name: torch.tensor(
            [_number(one) for one in found.entries(batch, batch)], dtype=torch.float64
        )
        for name in MEASURED
        if (found := item.maybe(name)) is not None
    }
    if "clean" not in values:
        item.refuse("a metric of the clean prompts, at least")
    answers, patch = item.maybe("answers"), item.maybe("patch")
    pair = None if answers is None else [one.whole(0) for one in answers.entries(2, 2)]
    return Outcome(
        item["metric"].text(),
        patch=None if patch is None else cast(Patch, patch.text(get_args(Patch))),
        answers=None if pair is None else (pair[0], pair[1]),
        **values,
    )


def _number(item: Item) -> float:
    try:
        return float(item.text())
    except ValueError:
        item.refuse("a number, as text")


def _about(item: Item) -> About:
    model, model_class = item["model"].optional, item["model_class"].optional
    config = {name: one.value for name, one in item["config"].pairs()}
    if plain(config) != config:
        item["config"].refuse(f"values nested {MOST_NESTED} deep at most")
    return About(
        None if model is None else model.text(),
        None if model_class is None else model_class.text(),
        config,
        {name: version.text() for name, version in item["versions"].pairs()},
        item["written"].text(),
    )


def _graph(item: Item, n_numbers: int) -> Graph:
    srcs: list[SrcNode] = []
    for site, nodes in enumerate(item["sources"].entries(1)):
        for slot, node in enumerate(nodes.entries(1)):
            srcs.append(SrcNode(idx=len(srcs), site=site, slot=slot, **_node(node)))
    modules: list[DestModule] = []
    for module in item["modules"].entries(1):
        offset = modules[-1].offset + modules[-1].n_edges if modules else 0
        modules.append(_module(module, len(srcs), offset))
    seq_len = item["seq_len"].optional
    graph = Graph(tuple(srcs), tuple(modules), None if seq_len is None else seq_len.whole(1))
    for every, by_name in (
        (graph.srcs, graph.src_by_name),
        (graph.dests, graph.dest_by_name),
        (graph.modules, graph.module_by_name),
    ):
        if len(every) != len(by_name):
            item.refuse("a graph in which no name stands for two")
    if graph.n_edges > max(MOST_EDGES, EDGES_PER_NUMBER * n_numbers):
        item.refuse(f"fewer edges than {graph.n_edges:,}, for a file of this size")
    return graph


def _module(item: Item, n_srcs: int, offset: int) -> DestModule:
    name, has_heads = _name(item["name"]), item["has_heads"].flag()
    n_sources = item["n_sources"].whole(1, n_srcs)
    dests = []
    for slot, dest in enumerate(item["dests"].entries(1, None if has_heads else 1)):
        where = {"module_name": name, "slot": slot, "n_sources": n_sources}
        dests.append(DestNode(unit=_name(dest["unit"]), **where, **_node(dest)))
        if (dests[-1].head is not None) != has_heads:
            dest["head"].refuse("a number in a module that has heads, and null in others")
    return DestModule(name, tuple(dests), n_sources, has_heads, offset)


def _node(item: Item) -> dict:
    layer, head = item["layer"].optional, item["head"].optional
    return {
        "name": _name(item["name"]),
        "kind": item["kind"].text(get_args(NodeKind)),
        "depth": item["depth"].whole(0, MOST_DEPTH),
        "layer": None if layer is None else layer.whole(0, MOST_DEPTH),
        "head": None if head is None else head.whole(0, MOST_DEPTH),
    }


def _name(item: Item) -> str:
    name = item.text()
    if not name or not name.isprintable() or name != name.strip() or ARROW in name:
        item.refuse(f"a name, printable and without {ARROW!r}")
    return name


def _current(item: Item, graph: Graph, tensors: _Tensors) -> SourceOutputs:
    first = item["sites"].entries(1)[0]
    code = tensors.take(first["code"], FLOATS, (None,) * 4)
    batch, seq = code.shape[:2]
    if graph.seq_len not in (None, seq):
        first["code"].refuse(f"{graph.seq_len} positions, as the graph has, not {seq}")
    return _outputs(item, graph, tensors, ((batch,), (seq,)), None)


def _outputs(
    item: Item,
    graph: Graph,
    tensors: _Tensors,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    d_model: int | None,
) -> SourceOutputs:
    """What sources wrote; batch and seq of each code are among `lengths`, the first being all."""
    n_nodes = [0] * (graph.srcs[-1].site + 1)
    for src in graph.srcs:
        n_nodes[src.site] += 1
    sites: list[SiteOutput] = []
    for n, site in zip(n_nodes, item["sites"].entries(len(n_nodes), len(n_nodes)), strict=True):
        width = d_model if site["weight"].optional is None else None
        code = tensors.take(site["code"], FLOATS, (*lengths, n, width))
        weight = tensors.maybe(site["weight"], FLOATS, (n, code.shape[3], d_model))
        d_model = (code if weight is None else weight).shape[-1]
        sites.append(SiteOutput(code, weight, tensors.maybe(site["gain"], FLOATS, (d_model,))))
    ablation = AblationType[item["ablation"].text(tuple(AblationType.__members__))]
    (batch, *_), (seq, *_) = lengths
    return SourceOutputs(graph.srcs, tuple(sites), batch, seq, ablation)


def _plan(item: Item, graph: Graph, current: SourceOutputs, tensors: _Tensors) -> Plan:
    masks = _masks(item["masks"], graph, tensors)
    named = tensors.maybe(item["named"], INTEGERS, (None,))
    if named is not None and not _within(named, 0, graph.n_edges - 1):
        item["named"].refuse(f"numbers of edges, from 0 to {graph.n_edges - 1}")
    numbers = () if named is None else tuple(_numbers(named))
    # A mean or zero is the same for every prompt or position.
    lengths = (current.batch, 1), (current.seq, 1)
    patched, clean = (
        None if one is None else _outputs(one, graph, tensors, lengths, current.sites[0].d_model)
        for one in (item.maybe("patched"), item.maybe("clean"))
    )
    keeps = item.maybe("keeps")
    is_kept = keeps is not None and keeps.flag()
    return Plan(graph, masks, numbers, patched, clean=clean, keeps=is_kept)


def _masks(item: Item, graph: Graph, tensors: _Tensors) -> PruneScores:
    masks = {name: tensors.take(mask, FLOATS) for name, mask in item.pairs()}
    shown = {name: _filled(mask) for name, mask in masks.items()}
    try:
        checked = check_scores(graph, shown, "The masks")
    except MaskError as error:
        item.refuse(f"masks of this graph ({error})")
    return checked


def _token_strings(
    item: Item, tokens: Tensor | None, batch: int, seq: int
) -> dict[tuple[int, ...], list[str]]:
    """The strings of each row of tokens."""
    if item.optional is None:
        return {}
    if tokens is None or tokens.shape != (batch, seq) or tokens.is_floating_point():
        item.refuse(f"null, where there are no tokens of the shape [{batch}, {seq}]")
    rows = [[one.text() for one in row.entries(seq, seq)] for row in item.entries(batch, batch)]
    return {tuple(ids): row for ids, row in zip(_numbers(tokens), rows, strict=not tokens.is_meta)}


def _reads(item: Item, graph: Graph, batch: int, seq: int, tensors: _Tensors) -> tuple[Read, ...]:
    most = 8 * len(graph.modules)  # the streams, and each tensor that a patch changed
    return tuple(_read(one, graph, batch, seq, tensors) for one in item.entries(0, most))


def _read(item: Item, graph: Graph, batch: int, seq: int, tensors: _Tensors) -> Read:
    last = len(graph.modules) - 1
    dests = tuple(one.whole(0, last) for one in item["dests"].entries(1, last + 1))
    ends = [graph.modules[dest].n_sources for dest in dests]
    if any(after.slot > 0 for end in ends for after in graph.srcs[end : end + 1]):
        item["dests"].refuse("destinations that read all of a layer's heads or none, as biases do")
    n_heads = tuple(len(graph.modules[dest].dests) for dest in dests)
    heads = None
    if item["heads"].optional is not None:
        heads = tuple(one.whole(0, min(n_heads) - 1) for one in item["heads"].entries(1))
        n_heads = (len(heads),)
    positions = tensors.maybe(item["positions"], INTEGERS, (None,))
    if positions is not None and not _within(positions, 0, seq - 1):
        item["positions"].refuse(f"positions from 0 to {seq - 1}")
    n_positions = seq if positions is None else len(positions)
    alike = (batch, n_positions, N_DIRECTIONS)
    per_head = (n_heads[0], *alike) if len(set(n_heads)) == 1 else alike
    seen = tensors.take(item["seen"], (torch.float32,))
    if not (_fits(seen.shape, alike) or _fits(seen.shape, per_head)):
        item["seen"].refuse(f"a tensor of the shape {_shown(alike)}, alone or for each head")
    return Read(dests, seen, item["patched"].flag(), heads, positions)


def _biases(
    item: Item, current: SourceOutputs, tensors: _Tensors, *, are_needed: bool
) -> tuple[Tensor | None, ...]:
    """One for each site; a record made by hand may have none, unless reads are to be compared."""
    n_sites, d_model = len(current.sites), current.sites[0].d_model
    entries = item.entries(n_sites, n_sites) if are_needed or item.value else []
    found = [tensors.maybe(one, FLOATS) for one in entries]
    shape = (current.batch, 1), (current.seq, 1), d_model
    for one, bias in zip(entries, found, strict=True):
        if bias is not None and not (_fits(bias.shape, shape) or _fits(bias.shape, (d_model,))):
            one.refuse(f"a bias of {d_model} numbers, not of the shape {tuple(bias.shape)}")
    return tuple(found)


def _heads(
    item: Item, current: SourceOutputs, tensors: _Tensors
) -> dict[str, dict[HeadTensor, Tensor]]:
    """How the heads that were asked for attended."""
    known = {src.name for src in current.srcs if src.kind == "attention"}
    # After cached tokens there are more keys than positions.
    n_positions: dict[HeadTensor, int | None] = dict.fromkeys(get_args(HeadTensor))
    n_positions |= {"pattern": current.seq, "q": current.seq, "rot_q": current.seq}
    found: dict[str, dict[HeadTensor, Tensor]] = {}
    for name, shown in item.pairs():
        if name not in known or not {what for what, _ in shown.pairs()} <= set(n_positions):
            shown.refuse(f"tensors of a head, some of {', '.join(n_positions)}")
        found[name] = {
            what: tensors.take(shown[what], FLOATS, (current.batch, n, None))
            for what, n in n_positions.items()
            if what in shown.value
        }
    return found


def _unembed(
    item: Item, tensors: _Tensors, current: SourceOutputs
) -> tuple[SavedLenses | None, list[str] | None]:
    """How outputs are read as logits, and the vocabulary's strings."""
    if item.optional is None:
        return None, None
    d_model = current.sites[0].d_model
    gain = tensors.take(item["gain"], (torch.float32,), (d_model,))
    scale = tensors.take(item["scale"], (torch.float32,), (current.batch, current.seq))
    weight = tensors.take(item["weight"], FLOATS, (d_model, None)).float()
    is_centred = item["is_centred"].flag()
    lenses = tuple(Lens(gain, is_centred, one, weight) for one in scale)
    if item["vocabulary"].optional is None:
        return SavedLenses(lenses), None
    d_vocab = weight.shape[1]
    texts = [one.text() for one in item["vocabulary"].entries(d_vocab, d_vocab)]
    if item["ids"].optional is None:
        return SavedLenses(lenses), texts
    alone, spaced = (_ids(item["ids"][name], tensors, d_vocab) for name in ("alone", "spaced"))
    return SavedLenses(lenses, SavedIds(texts, alone, spaced)), texts


def _ids(item: Item, tensors: _Tensors, d_vocab: int) -> list[int]:
    found = tensors.take(item, INTEGERS, (d_vocab,))
    if not _within(found, NO_TOKEN, d_vocab - 1):
        item.refuse(f"tokens from 0 to {d_vocab - 1}, or {NO_TOKEN}")
    return _numbers(found)
