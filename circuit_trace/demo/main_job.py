"""The main job, end to end: which edges move the name, and what flowed along them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from circuit_trace.demo.prompts import Prompts
from circuit_trace.errors import FigureError, InputError
from circuit_trace.graph import Edge
from circuit_trace.model import PatchableModel, wrap
from circuit_trace.plan import EdgesArg, SourceOutputs
from circuit_trace.trace import Trace

EXHAUSTIVE_UP_TO = 1000
"""Models with up to so many edges have each of them patched alone; larger ones are narrowed first."""
KEPT_NODES = 12
"""Sources, and twice as many destinations, whose edges are tried in a larger model."""
KEPT_EDGES = 24
"""Edges that are tried position by position."""


@dataclass(frozen=True)
class Found:
    """An edge at one position and how much patching it alone changes the logit difference."""

    edge: Edge
    effect: float


@dataclass(frozen=True)
class Report:
    """What the demo found: the trace of the strongest edges, its table, and the files written."""

    trace: Trace
    table: pd.DataFrame
    differences: dict[str, float]
    n_passes: int
    saved: Path
    html: Path
    explorer: Path
    png: Path | None
    no_png: str | None


class _Task:
    """A prompt pair on one model: patch edges, read off the logit difference."""

    def __init__(self, wrapped: PatchableModel, prompts: Prompts) -> None:
        clean, corrupt = (wrapped.to_tokens(text) for text in (prompts.clean, prompts.corrupt))
        if clean.shape != corrupt.shape:
            raise InputError(
                f"The two prompts must have as many tokens: the clean one has {clean.shape[1]}, the "
                f"corrupt one {corrupt.shape[1]}. Change a word so that they agree."
            )
        self.tokens = clean
        self.model = wrap(
            wrapped.wrapped_model, seq_len=clean.shape[1], verify=False, anatomy=wrapped.anatomy
        )
        if len(set(prompts.answers)) < 2:
            raise InputError(
                f"The two answers must differ, got {prompts.answers[0]!r} twice: the effect of an "
                "edge is how it moves the logits of one against the other."
            )
        self.answers = [_answer_token(wrapped, text) for text in prompts.answers]
        self.patched: SourceOutputs = self.model.source_outputs(corrupt)
        self.clean_difference = self.difference(self.model.trace(clean).logits)
        self.corrupt_difference = self.difference(self.model.trace(corrupt).logits)
        self.n_passes = 0

    def difference(self, logits: Tensor | None) -> float:
        """The logit of the right name less that of the wrong one, at the last position."""
        assert logits is not None
        right, wrong = self.answers
        return (logits[0, -1, right] - logits[0, -1, wrong]).item()

    def effect(self, edges: EdgesArg) -> float:
        """The change of the logit difference when these edges are patched, and only these."""
        self.n_passes += 1
        return self.difference(self.trace(edges).logits) - self.clean_difference

    def trace(self, edges: EdgesArg) -> Trace:
        """The clean prompt's pass with these edges patched from the corrupt one."""
        return self.model.trace(self.tokens, patched=self.patched, edges=edges)


def run_demo(
    hooked: torch.nn.Module, prompts: Prompts, *, n_edges: int, folder: Path, bar: bool = True
) -> Report:
    """Find the edges that matter, patch the strongest together, and draw what flowed.

    Every edge is patched alone at all positions, the strongest ones then position by position; in
    a large model only edges between nodes that matter as a whole are tried.

    Raises:
        InputError: The prompts do not fit each other or the model's vocabulary.
    """
    task = _Task(wrap(hooked), prompts)
    found = _find_edges(task, bar=bar)[:n_edges]
    edges = [one.edge for one in found]
    trace = task.trace(edges)
    differences = {
        "clean": task.clean_difference,
        "corrupt": task.corrupt_difference,
        "patched": task.difference(trace.logits),
    }
    effects = {str(one.edge): one.effect for one in found}
    table = trace.table()
    table["effect"] = [effects[str(edge)] for edge in trace.edges]
    table = table.sort_values("effect", key=abs, ascending=False, ignore_index=True)
    names = ("circuit.trace", "circuit.html", "circuit.png", "explorer.html")
    saved, html, png, page = (folder / name for name in names)
    trace.save(saved)
    trace.draw(file_path=html)
    trace.explore(direction=task.answers, file_path=page)
    why_no_png = None
    try:
        trace.draw(file_path=png)
    except FigureError as error:
        why_no_png = str(error)
    drawn = None if why_no_png else png
    return Report(trace, table, differences, task.n_passes, saved, html, page, drawn, why_no_png)


def _answer_token(model: PatchableModel, word: str) -> int:
    ids = model.tokenizer.encode(word, add_special_tokens=False)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if len(ids) != 1 or (ids[0] == unknown and word != model.tokenizer.unk_token):
        raise InputError(
            f"The answer {word!r} must be one token of the model's vocabulary; it is {len(ids)} "
            f"({model.tokenizer.convert_ids_to_tokens(ids)})."
        )
    return int(ids[0])


def _find_edges(task: _Task, *, bar: bool) -> list[Found]:
    """Edges at single positions, the strongest effect first."""
    graph = task.model.graph
    candidates = [edge.name for edge in task.model.edges[: graph.n_edges_per_position]]
    if len(candidates) > EXHAUSTIVE_UP_TO:
        candidates = _between_strong_nodes(task, bar=bar)
    effects = _measure(task, candidates, lambda name: [name], "each edge alone", bar=bar)
    strongest = sorted(candidates, key=lambda name: -abs(effects[name]))[:KEPT_EDGES]
    at_positions = [
        (position, name) for name in strongest for position in range(graph.seq_len or 1)
    ]
    by_position = _measure(task, at_positions, lambda one: [one], "at each position", bar=bar)
    found = [
        Found(graph.edge(name, position), by_position[(position, name)])
        for position, name in at_positions
    ]
    return sorted(found, key=lambda one: -abs(one.effect))


def _between_strong_nodes(task: _Task, *, bar: bool) -> list[str]:
    """Edges from the sources to the destinations that matter most when all their edges go."""
    graph = task.model.graph
    leaving = {
        src.name: [f"{src}->{d}" for d in graph.dests if src.idx < d.n_sources]
        for src in graph.srcs
    }
    entering = {d.name: [f"{src}->{d}" for src in graph.srcs[: d.n_sources]] for d in graph.dests}
    from_source = _measure(task, list(leaving), leaving.__getitem__, "each source", bar=bar)
    into_dest = _measure(task, list(entering), entering.__getitem__, "each destination", bar=bar)
    sources = sorted(leaving, key=lambda name: -abs(from_source[name]))[:KEPT_NODES]
    dests = sorted(entering, key=lambda name: -abs(into_dest[name]))[: 2 * KEPT_NODES]
    return [
        f"{src}->{dest}" for dest in dests for src in sources if f"{src}->{dest}" in entering[dest]
    ]


def _measure(task: _Task, items: Sequence, edges_of: Callable, what: str, *, bar: bool) -> dict:
    progress = tqdm(items, desc=f"patching {what}", unit="pass", disable=not bar, leave=False)
    return {item: task.effect(edges_of(item)) for item in progress}
