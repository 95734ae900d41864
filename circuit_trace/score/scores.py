"""Scores of a model's edges as they are handed out: `PruneScores` that know their graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import EdgeError, FormatError, InputError
from circuit_trace.graph import Edge, Edges, Graph, graph_for, graph_of
from circuit_trace.plan import (
    EdgesArg,
    check_scores,
    flat_scores,
    n_not_zero,
    select,
    unflat_scores,
)
from circuit_trace.record.rows import Rows
from circuit_trace.record.table import names_of, top_rows
from circuit_trace.score.choose import Choice, choose, named
from circuit_trace.score.ranking import CircuitMethod, RankBy
from circuit_trace.warn import warn

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMATS = "circuit_trace.formats"
"""The group of entry points of what reads and writes files of scores, `load_scores` and `save_scores`."""

Signs = tuple[str, str]
"""What a positive score says of an edge, and a negative one, such as ("patching it raises the loss",
"patching it lowers the loss")."""


class EdgeScores(dict[str, Tensor]):
    """A score for each edge of a model: a dict from a destination module's name to a tensor `[seq?]
    [head?] [n_sources]` (`PruneScores`), which knows the graph that it is of.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
    >>> scores
    <EdgeScores: 110 edges, 104 not zero, largest |score| 9.8>
    >>> scores.top(3)["edge"].tolist()
    ['Resid Start->A0.0.V', 'Resid Start->A0.2.V', 'A1.0->Resid End']
    >>> round(scores["A1.0->Resid End"], 2), tuple(scores["blocks.1.hook_resid_post"].shape)
    (-7.25, (11,))
    >>> scores.circuit(n_edges=24)
    <Circuit: 24 edges; 1 dropped, first 'MLP 0->A1.2.V' (-0.716)>

    Args:
        scores: The tensors by their modules' names; modules that are left out score 0.
        graph: Whose edges they are. When omitted, that of the transformer which names and shapes tell.
        signs: What a positive and a negative score say.

    Raises:
        InputError: The graph is none. Whether the tensors fit it is checked where they are used.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor] | None = None,
        *,
        graph: Graph | None = None,
        signs: Signs | None = None,
    ) -> None:
        super().__init__({} if scores is None else scores)
        self.signs = signs
        self.known_graph = graph_of(graph)
        """The graph that they were made with, if any."""

    @cached_property
    def graph(self) -> Graph:
        """The graph whose edges are scored.

        Raises:
            FormatError: It was not given, and names and shapes do not tell it.
        """
        return graph_for(dict(self), None) if self.known_graph is None else self.known_graph

    def __getitem__(self, key: Any) -> Any:
        """A module's tensor by its name; an edge's score, a number, or one for each position, by what
        names one elsewhere: `"A5.2->A7.1.Q"`, `(3, "A5.2->A7.1.Q")`, an `Edge`.

        Raises:
            KeyError: There is no such module. EdgeError: No such edge.
        """
        if not _names_edge(key) or super().__contains__(key):
            return super().__getitem__(key)
        edge = self.graph.edge(key)
        numbers = list(self.graph.numbers(edge))
        found = self._flat[torch.tensor(numbers)]
        return float(found[0]) if len(numbers) == 1 else found

    def get(self, key: Any, default: Any = None) -> Any:
        """As `[]`, the default where there is no such module or edge."""
        try:
            return self[key]
        except (KeyError, EdgeError):
            return default

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        return _names_edge(key) and bool(self.graph.known_numbers(key))

    def __setitem__(self, key: Any, value: Tensor) -> None:
        if _names_edge(key):
            raise InputError(
                f"An edge's score cannot be set by its name, {key!r}; write into its module's tensor, "
                "scores[module][..., source]."
            )
        super().__setitem__(key, value)

    @property
    def _flat(self) -> Float[Tensor, " edge"]:
        """The score of every edge, in the graph's order."""
        return flat_scores(self.graph, check_scores(self.graph, dict(self), "The scores"))

    def table(self, edges: EdgesArg | Edges | None = None) -> pd.DataFrame:
        """A row for each edge: edge, src, dest; layer and head of both; seq_idx, and score.

        Args:
            edges: The edges to list, globs too ("*->*" for all); when omitted those that score other
                than 0.

        Raises:
            EdgeError: There is no such edge.
        """
        flat = self._flat
        scored = Edges(self.graph, flat.nonzero()[:, 0].tolist())
        rows = Rows.of(self.graph, scored if edges is None else select(self.graph, edges))
        named_columns = names_of(rows)
        del named_columns["token"]
        return pd.DataFrame({**named_columns, "score": flat[rows.numbers].numpy()})

    def top(self, n: int = 20, *, edges: EdgesArg | Edges | None = None) -> pd.DataFrame:
        """The rows of `table` with the largest |score|, the largest first.

        Raises:
            InputError: `n` is no number of rows.
        """
        return top_rows(self.table(edges), n, "score")

    def above(self, threshold: float) -> EdgeScores:
        """These scores where |score| is this or more, and 0 elsewhere.

        Raises:
            InputError: The threshold is no number, or below 0.
        """
        try:
            least = float(threshold)
        except (TypeError, ValueError):
            least = -1.0
        if not least >= 0:
            raise InputError(f"threshold must be a number, 0 or more; got {threshold!r}.")
        kept = {name: score.masked_fill(score.abs() < least, 0) for name, score in self.items()}
        return EdgeScores(kept, graph=self.known_graph, signs=self.signs)

    def circuit(
        self,
        *,
        n_edges: int | None = None,
        threshold: float | None = None,
        fraction: float | None = None,
        method: CircuitMethod = "top",
        rank_by: RankBy = "absolute",
        prune: bool = True,
    ) -> Circuit:
        """Choose the edges of a circuit by these scores; `circuit_trace.circuit` says how.

        Raises:
            InputError, MaskError: As there.
        """
        return Circuit.of(
            self.graph,
            self,
            n_edges=n_edges,
            threshold=threshold,
            fraction=fraction,
            method=method,
            rank_by=rank_by,
            prune=prune,
        )

    def draw(self, **options: Any) -> go.Figure:
        """Draw these scores with `draw_seq_graph`, which lists the options; not displayed besides."""
        from circuit_trace.visualize import draw_seq_graph

        return draw_seq_graph(self.graph, self, **{"display_ipython": False, **options})

    def diff(self, other: Mapping[str, Tensor]) -> ScoresDiff:
        """Compare these scores with others of the same graph: a table, and a picture.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
        >>> model, pair = ct.wrap(ct.load_model("bundled")), (CLEAN, CORRUPT, *ANSWERS)
        >>> estimated = ct.score_edges(model, pair, method="eap-ig")
        >>> estimated.diff(ct.exact_scores(model, pair)).top(1)["edge"].tolist()
        ['MLP 0->A1.0.Q']

        Raises:
            MaskError: The other ones do not fit this graph.
        """
        checked = check_scores(self.graph, dict(other), "The other scores")
        return ScoresDiff(self, EdgeScores(checked, graph=self.graph))

    def save(self, path: Any, **options: Any) -> None:
        """Write these scores as a file; `circuit_trace.save_scores` lists the options. A .pt file holds
        them as they are unless another `format` is asked for.

        Raises:
            FormatError, InputError: As there.
        """
        if str(path).endswith(".pt"):
            options = {"format": "prune_scores", **options}
        _formats().save_scores(self, path, self.known_graph, **options)

    @classmethod
    def load(cls, path: Any, model: Any = None, **options: Any) -> EdgeScores:
        """Read scores from a file of this or another tool; `circuit_trace.load_scores` lists the options.

        Raises:
            FormatError, MaskError, InputError: As there.
        """
        return _formats().load_scores(path, model, **options)

    def copy(self) -> EdgeScores:
        """Scores of the same tensors."""
        return EdgeScores(self, graph=self.known_graph, signs=self.signs)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> EdgeScores:
        copied = {name: deepcopy(score, memo) for name, score in self.items()}
        return EdgeScores(copied, graph=self.known_graph, signs=self.signs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a dict that every tool can read, and torch with `weights_only=True`."""
        return OrderedDict, (), None, None, iter(self.items())

    def __repr__(self) -> str:
        if not all(isinstance(score, Tensor) for score in self.values()):
            return super().__repr__()
        held = [score.detach() for score in self.values() if score.numel()]
        n_edges = sum(score.numel() for score in held)
        n_chosen = sum(int(score.count_nonzero()) for score in held)
        largest = max((float(score.double().abs().max()) for score in held), default=0.0)
        return (
            f"<{type(self).__name__}: {n_edges:,} edges, {n_chosen:,} not zero, "
            f"largest |score| {largest:.3g}>"
        )


class Circuit(EdgeScores):
    """The edges of a circuit as `PruneScores`: 1 in the circuit, 0 out of it. Made by `circuit`.

    `n_edges` is how many there are. `dropped` are those that their scores alone would put into it, the
    strongest first, and `dropped_scores` these scores.
    """

    def __init__(self, graph: Graph, choice: Choice) -> None:
        super().__init__(unflat_scores(graph, choice.chosen.float()), graph=graph)
        self.dropped = Edges(graph, choice.dropped.tolist())
        self.dropped_scores = choice.dropped_scores
        self._choice = choice

    @classmethod
    def of(cls, graph: Graph, scores: Any, **options: Any) -> Circuit:
        """The circuit that `choose` finds; what a user should know of it is warned of."""
        found = choose(graph, scores, **options)
        if found.said:
            warn(found.said, UserWarning)
        return cls(graph, found)

    @property
    def n_edges(self) -> int:
        """How many edges it has."""
        return n_not_zero(self)

    def dropped_table(self) -> pd.DataFrame:
        """A row for each edge that was dropped: its name, its ends, its position and its score.

        >>> import circuit_trace as ct
        >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
        >>> model = ct.wrap(ct.load_model("bundled"))
        >>> scores = ct.exact_scores(model, (CLEAN, CORRUPT, *ANSWERS))
        >>> ct.circuit(scores, n_edges=12)
        <Circuit: 12 edges; 2 dropped, first 'Resid Start->A0.3.V' (-3.81)>
        >>> ct.circuit(scores, n_edges=12).dropped_table()["edge"].tolist()
        ['Resid Start->A0.3.V', 'A1.3->Resid End']
        """
        rows = Rows.of(self.dropped.graph, self.dropped)
        return pd.DataFrame({**names_of(rows, None), "score": self.dropped_scores.numpy()})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it with what was dropped."""
        return _circuit, (self.graph, self._choice, dict(self))

    def copy(self) -> Circuit:
        """The same circuit in tensors of its own."""
        return _circuit(self.graph, self._choice, {k: v.clone() for k, v in self.items()})

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Circuit:
        return self.copy()

    def __repr__(self) -> str:
        more = ""
        if self.dropped:
            more = f"; {len(self.dropped):,} dropped, first {named(self.graph, self._choice)}"
        return f"<Circuit: {self.n_edges:,} edges{more}>"


@dataclass(frozen=True, eq=False, repr=False)
class ScoresDiff:
    """Two sets of scores of one graph, edge by edge. Made by `EdgeScores.diff`."""

    scores: EdgeScores
    other: EdgeScores

    def table(self, edges: EdgesArg | Edges | None = None) -> pd.DataFrame:
        """A row for each edge, as `EdgeScores.table`, with score, other_score, and change: other_score
        less score. When omitted, `edges` are those that either scores other than 0.

        Raises:
            EdgeError: There is no such edge.
        """
        graph = self.scores.graph
        either = self.scores._flat.abs() + self.other._flat.abs()
        chosen = Edges(graph, either.nonzero()[:, 0].tolist()) if edges is None else edges
        table = self.scores.table(chosen)
        table["other_score"] = self.other.table(chosen)["score"]
        table["change"] = table["other_score"] - table["score"]
        return table

    def top(self, n: int = 20, *, edges: EdgesArg | Edges | None = None) -> pd.DataFrame:
        """The rows of `table` that changed most.

        Raises:
            InputError: `n` is no number of rows.
        """
        return top_rows(self.table(edges), n, "change")

    def draw(self, **options: Any) -> go.Figure:
        """Draw both with `draw_difference`, which lists the options; not displayed besides."""
        from circuit_trace.visualize import draw_difference

        options = {"display_ipython": False, "model": self.scores.graph, **options}
        return draw_difference(self.scores, self.other, **options)

    def __repr__(self) -> str:
        return f"<ScoresDiff: {self.scores!r} and {self.other!r}>"


def _names_edge(key: object) -> bool:
    """Whether a key is an edge rather than a module's name."""
    return isinstance(key, Edge | tuple) or (isinstance(key, str) and "->" in key)


def _circuit(graph: Graph, choice: Choice, held: Mapping[str, Tensor]) -> Circuit:
    """A circuit with the tensors that one holds now."""
    found = Circuit(graph, choice)
    found.update(held)
    return found


def _formats() -> Any:
    """What reads and writes files of scores, among what installed packages offer."""
    for point in entry_points(group=FORMATS):
        return point.load()
    raise FormatError(
        f"No installed package reads files of scores (entry-point group {FORMATS!r}); is circuit-trace "
        "installed?"
    )
