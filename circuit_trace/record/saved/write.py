"""A trace as plain data and tensors.

What `content_of` writes `read.trace_of` reads: a field that a trace gets is a line in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from circuit_trace.anatomy import Unembed
from circuit_trace.errors import InputError
from circuit_trace.graph import DestModule, DestNode, Graph, SrcNode
from circuit_trace.hooks import Read
from circuit_trace.plan import Plan, SiteOutput, SourceOutputs, project
from circuit_trace.record.about import About
from circuit_trace.record.lens import lens_of
from circuit_trace.record.outcome import MEASURED, Outcome
from circuit_trace.record.record import Record
from circuit_trace.record.saved.container import Content
from circuit_trace.record.saved.store import TensorStore
from circuit_trace.record.saved.vocabulary import NO_TOKEN
from circuit_trace.record.unembedding import SavedLenses

ToStrings = Callable[[Tensor], list[str]]
ToIds = Callable[[str], list[int]]


@dataclass(frozen=True)
class Options:
    """What of a trace is saved, and how; see `Trace.save`."""

    logits: bool = True
    factored: bool | None = None
    dtype: torch.dtype | None = None
    unembed: bool = False

    def __post_init__(self) -> None:
        for name, value, what in (
            ("logits", self.logits, (True, False)),
            ("unembed", self.unembed, (True, False)),
            ("factored", self.factored, (None, True, False)),
        ):
            if not any(value is one for one in what):
                raise InputError(f"{name} must be one of {what}; got {value!r}.")
        if self.dtype not in (None, torch.float16, torch.bfloat16):
            raise InputError(
                f"dtype must be torch.float16, torch.bfloat16 or None; got {self.dtype!r}."
            )


def content_of(trace: Record, options: Options) -> Content:
    """A trace as it is written.

    Raises:
        InputError: The model's weights or the logits were changed since the pass, a number
            overflows `dtype`, or there is no unembedding.
    """
    store = TensorStore(options.dtype)
    outputs = _OutputsWriter(trace, store, options.factored)
    data = {
        "about": _about(trace.about),
        "graph": _graph(trace.graph),
        "current": outputs.write("current", trace.current),
        "plans": [
            _plan(f"plan {number}", plan, store, outputs) for number, plan in enumerate(trace.plans)
        ],
        "tokens": store.put("tokens", trace.tokens),
        "token_strings": _token_strings(trace),
        "logits": store.put("logits", trace.logits if options.logits else None, narrow=True),
        "reads": [_read(f"read {n}", read, store) for n, read in enumerate(trace.reads)],
        "biases": [
            store.put(f"bias {n}", bias, narrow=True) for n, bias in enumerate(trace.biases)
        ],
        "heads": {
            name: {
                what: store.put(f"{what} of {name}", tensor, narrow=True)
                for what, tensor in tensors.items()
            }
            for name, tensors in trace.head_tensors.items()
        },
        "unembed": _unembed(trace, store) if options.unembed else None,
        "real": store.put("real positions", None if trace.real is None else trace.real.int()),
        "outcome": None if trace.outcome is None else _outcome(trace.outcome),
    }
    return Content(data, store.tensors)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    values = {name: getattr(outcome, name) for name in MEASURED}
    return {
        "metric": outcome.metric,
        "patch": outcome.patch,
        "answers": None if outcome.answers is None else list(outcome.answers),
        # As text: JSON has no infinity.
        **{
            name: None if one is None else [repr(float(value)) for value in one]
            for name, one in values.items()
        },
    }


def _about(about: About) -> dict[str, Any]:
    return {
        "model": about.model,
        "model_class": about.model_class,
        "config": dict(about.config),
        "versions": dict(about.versions),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _graph(graph: Graph) -> dict[str, Any]:
    """What cannot be told from where a node stands."""
    by_site: dict[int, list[SrcNode]] = {}
    for src in graph.srcs:
        by_site.setdefault(src.site, []).append(src)
    return {
        "seq_len": graph.seq_len,
        "sources": [[_node(src) for src in nodes] for nodes in by_site.values()],
        "modules": [_module(module) for module in graph.modules],
    }


def _module(module: DestModule) -> dict[str, Any]:
    return {
        "name": module.name,
        "n_sources": module.n_sources,
        "has_heads": module.has_heads,
        "dests": [{**_node(dest), "unit": dest.unit} for dest in module.dests],
    }


def _node(node: SrcNode | DestNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "kind": node.kind,
        "depth": node.depth,
        "layer": node.layer,
        "head": node.head,
    }


class _OutputsWriter:
    """Writes what sources wrote, each site once, with its weight or multiplied by it."""

    def __init__(self, trace: Record, store: TensorStore, factored: bool | None) -> None:
        every = [trace.current, *(plan.patched for plan in trace.plans)]
        every += [plan.clean for plan in trace.plans]
        self._store = store
        self._sites = {
            id(site): site for outputs in every if outputs is not None for site in outputs.sites
        }
        for key in [] if factored else self._to_project(is_forced=factored is False):
            self._sites[key] = _projected(self._sites[key])

    def _to_project(self, *, is_forced: bool) -> list[int]:
        """The sites that take less room multiplied by their weight, which several may share."""
        by_weight: dict[tuple[int, torch.Size], list[int]] = {}
        for key, site in self._sites.items():
            if site.weight is not None:
                place = site.weight.data_ptr(), site.weight.shape
                by_weight.setdefault(place, []).append(key)
        chosen: list[int] = []
        for keys in by_weight.values():
            sites = [self._sites[key] for key in keys]
            codes = sum(site.code.nbytes for site in sites)
            shared = sites[0].weight
            assert shared is not None
            if is_forced or codes * shared.shape[2] / shared.shape[1] < codes + shared.nbytes:
                chosen += keys
        return chosen

    def write(self, where: str, outputs: SourceOutputs) -> dict[str, Any]:
        """The sites of one pass, and what was made of them."""
        names = [src.name for src in outputs.srcs if src.slot == 0]
        return {
            "ablation": outputs.ablation.name,
            "sites": [
                self._site(f"{where}, {name}", self._sites[id(site)])
                for name, site in zip(names, outputs.sites, strict=True)
            ],
        }

    def _site(self, where: str, site: SiteOutput) -> dict[str, Any]:
        parts = {"code": site.code, "weight": site.live_weight, "gain": site.gain}
        return {
            name: self._store.put(f"{where}, {name}", part, narrow=True)
            for name, part in parts.items()
        }


def _projected(site: SiteOutput) -> SiteOutput:
    vectors = project(site.code.detach(), site.live_weight, range(site.code.shape[2]))
    return SiteOutput(vectors.detach().permute(1, 2, 0, 3), None, site.gain)


def _plan(where: str, plan: Plan, store: TensorStore, outputs: _OutputsWriter) -> dict[str, Any]:
    named = torch.tensor(plan.named) if plan.named else None
    return {
        "masks": {
            name: store.put(f"{where}, mask of {name}", mask) for name, mask in plan.masks.items()
        },
        "named": store.put(f"{where}, named edges", named),
        "patched": None if plan.patched is None else outputs.write(where, plan.patched),
        "clean": None if plan.clean is None else outputs.write(f"{where}, clean", plan.clean),
        "keeps": plan.keeps,
    }


def _token_strings(trace: Record) -> list[list[str]] | None:
    rows = [trace.token_strings(element) for element in range(trace.batch)]
    return None if None in rows else [list(row) for row in rows if row is not None]


def _read(where: str, read: Read, store: TensorStore) -> dict[str, Any]:
    return {
        "dests": list(read.dests),
        "seen": store.put(f"{where}, seen", read.seen),
        "patched": read.patched,
        "heads": None if read.heads is None else list(read.heads),
        "positions": store.put(f"{where}, positions", read.positions),
    }


def _unembed(trace: Record, store: TensorStore) -> dict[str, Any]:
    """The final norm as the linear map that it was in this pass, `W_U`, and the vocabulary."""
    lenses = [lens_of(trace, element) for element in range(trace.batch)]
    assert trace.unembed is not None  # Lens.of refuses
    weight = trace.unembed.weight()
    vocabulary = _vocabulary(trace.to_strings, trace.unembed, weight.shape[1])
    return {
        "is_centred": lenses[0].is_centred,
        "gain": store.put("gain of the final norm", lenses[0].gain),
        "scale": store.put("scale of the final norm", torch.stack([lens.scale for lens in lenses])),
        "weight": store.put("W_U", weight, narrow=True),
        "vocabulary": vocabulary.texts,
        "ids": vocabulary.ids
        and {
            name: store.put(f"token of each text, {name}", ids)
            for name, ids in vocabulary.ids.items()
        },
    }


@dataclass(frozen=True)
class _Vocabulary:
    """The text of every token, and the token that each text is, alone and behind a space."""

    texts: list[str] | None = None
    ids: dict[str, Tensor] | None = None


_VOCABULARIES: WeakKeyDictionary[Unembed | SavedLenses, _Vocabulary] = WeakKeyDictionary()
"""By what traces of one model share: to ask a tokenizer for 50,000 tokens takes seconds."""


def _vocabulary(
    to_strings: ToStrings | None, unembed: Unembed | SavedLenses, d_vocab: int
) -> _Vocabulary:
    if to_strings is None:
        return _Vocabulary()
    if unembed not in _VOCABULARIES:
        texts = _texts(to_strings, d_vocab)
        ids = None if unembed.to_ids is None else _ids(texts, unembed.to_ids)
        _VOCABULARIES[unembed] = _Vocabulary(texts, ids)
    return _VOCABULARIES[unembed]


def _texts(to_strings: ToStrings, d_vocab: int) -> list[str]:
    try:
        return list(to_strings(torch.arange(d_vocab)))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"unembed=True saves the strings of the model's {d_vocab} tokens, but they cannot be had: "
            f"{type(error).__name__}: {error}. Save the trace without it."
        ) from error


def _ids(texts: Sequence[str], to_ids: ToIds) -> dict[str, Tensor]:
    """The token that each text is, alone and behind a space: tokenizers differ in what they make of
    the space, so each is asked."""
    known = set(texts)
    alone = [_single(to_ids, text, len(texts)) for text in texts]
    spaced = [
        NO_TOKEN
        if text.startswith(" ") or f" {text}" in known
        else _single(to_ids, f" {text}", len(texts))
        for text in texts
    ]
    return {
        name: torch.tensor(ids, dtype=torch.int32)
        for name, ids in (("alone", alone), ("spaced", spaced))
    }


def _single(to_ids: ToIds, text: str, d_vocab: int) -> int:
    """The one token that a text is, if it is one."""
    try:
        ids = to_ids(text)
    except (TypeError, ValueError):  # text that is no Unicode, or one that was not saved
        return NO_TOKEN
    return ids[0] if len(ids) == 1 and 0 <= ids[0] < d_vocab else NO_TOKEN
