"""Two passes of one model, compared edge by edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import Edges
from circuit_trace.plan import EdgesArg, Plan, flat_scores, select
from circuit_trace.record.numbers import BatchIdx, edge_numbers
from circuit_trace.record.positions import largest_of, last_of, read_at
from circuit_trace.record.record import Record
from circuit_trace.record.rows import Rows
from circuit_trace.record.table import names_of, top_rows


@dataclass(frozen=True, eq=False, repr=False)
class RecordDiff:
    """What changed from one pass to another, by the numbers of both."""

    trace: Record
    other: Record

    def __post_init__(self) -> None:
        if not isinstance(self.other, Record):
            raise InputError(
                f"A trace is compared with another trace; got {type(self.other).__name__}."
            )
        check_same_graph(self.trace, self.other)
        shapes = [
            f"{one.batch} × {one.seq} × {one.current.sites[0].d_model}"
            for one in (self.trace, self.other)
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"The two traces must be of one shape, [batch, seq, d_model]; got {shapes[0]} and "
                f"{shapes[1]}."
            )

    def table(
        self, edges: EdgesArg | Edges | None = None, *, batch_idx: BatchIdx = 0, at: Any = None
    ) -> pd.DataFrame:
        """One row per edge: what each pass had, and by how much the other differs.

        Columns: edge, src, dest, layer, head, dest_layer, dest_head, seq_idx, token and
        other_token; mask, current_norm and received_norm of this pass, the same of the other as
        other_mask, other_current_norm and other_received_norm; current_change and received_change,
        the norms ‖other − this‖ of what the source wrote and of what the destination received. Norms
        are those at position `at`.

        Args:
            edges: The edges to list, as in `Trace.table`; when omitted those that either pass
                patched or named, and where none did, all.
            batch_idx: An element of the batch, or "mean".
            at: In a model wrapped without `seq_len`, the position that a row speaks of: a number,
                "last", or "largest" (when omitted): where what it received changed most.

        Raises:
            EdgeError: There is no such edge.
            InputError: There is no such batch element.
        """
        self.trace.check_batch_idx(batch_idx)
        graph = self.trace.graph
        chosen = self._edges if edges is None else edges
        rows = Rows.of(graph, select(graph, chosen))
        strings = [
            None if batch_idx == "mean" else one.token_strings(batch_idx)
            for one in (self.trace, self.other)
        ]
        where = self._where(rows, batch_idx, at)
        columns = names_of(rows, strings[0], where.numpy())
        columns["other_token"] = names_of(rows, strings[1], where.numpy())["token"]
        for prefix, one in (("", self.trace), ("other_", self.other)):
            numbers = edge_numbers(one, rows, batch_idx, at=where)
            for name in ("mask", "current_norm", "received_norm"):
                columns[prefix + name] = getattr(numbers, name).numpy()
        changes = [self._products(rows, b).changes(where) for b in self._elements(batch_idx)]
        columns["current_change"], columns["received_change"] = torch.stack(changes).mean(0).numpy()
        return pd.DataFrame(columns)

    def top(
        self,
        n: int = 20,
        by: str = "received_change",
        *,
        edges: EdgesArg | Edges | None = "*->*",
        batch_idx: BatchIdx = 0,
        at: Any = None,
    ) -> pd.DataFrame:
        """The edges that changed most: the rows of `table` with the largest values in a column.

        Raises:
            InputError: There is no such column, or `n` is no number of rows.
        """
        return top_rows(self.table(edges, batch_idx=batch_idx, at=at), n, by)

    @property
    def _edges(self) -> Edges:
        graph = self.trace.graph
        numbers = sorted({n for one in (self.trace, self.other) for n in one.edges.numbers})
        return Edges(graph, numbers) if numbers else graph.edges

    def changed_most(self, rows: Rows, batch_idx: BatchIdx = 0) -> Int[Tensor, " edge"]:
        """The position of each edge, or, where it has none of its own, that at which what its
        destination received changed most."""
        return self._where(rows, batch_idx, None)

    def _where(self, rows: Rows, batch_idx: BatchIdx, at: Any) -> Int[Tensor, " edge"]:
        wanted = read_at(at, self.trace.seq, self.trace.graph.seq_len)
        elements = self._elements(batch_idx)
        real = self.trace.real_positions[elements] & self.other.real_positions[elements]
        if wanted is None:
            return rows.position
        if wanted == "largest":
            return self._largest(rows, elements, real)
        last = int(last_of(real).max()) if wanted == "last" else int(wanted)
        return torch.full((len(rows),), last)

    def _largest(
        self, rows: Rows, elements: list[int], real: Bool[Tensor, "element seq"]
    ) -> Int[Tensor, " edge"]:
        found = [self._products(rows, element) for element in elements]
        # Edges of one source with the same masks and plans change alike.
        key = torch.cat([found[0].which[:, None].double(), found[0].weights], dim=1)
        once, places = torch.unique(key, dim=0, return_inverse=True)
        alike = [
            _Products(one.products, once[:, 0].long(), once[:, 1:]).received() for one in found
        ]
        return largest_of(torch.stack(alike).mean(0), real)[places]

    def _elements(self, batch_idx: BatchIdx) -> list[int]:
        return list(range(self.trace.batch)) if batch_idx == "mean" else [int(batch_idx)]

    def _products(self, rows: Rows, batch_idx: int) -> _Products:
        """What both changes follow from, for one element of the batch.

        What is received is `C + m (P − C)`, so the change is `c + m' d' − m d` for the changes
        `c = C' − C`, `d = P − C` and `d' = P' − C'`: its norm follows from their six products, which
        are kept for each source and position, in double precision.
        """
        graph, seq = self.trace.graph, self.trace.seq
        both = (self.trace, self.other)
        plans = [_plans(one, rows) for one in both]
        keys = list(zip(rows.src.tolist(), *(map(id, found) for found in plans), strict=True))
        pairs = dict(zip(keys, zip(*plans, strict=True), strict=True))
        place = {key: number for number, key in enumerate(pairs)}
        products = torch.zeros(len(pairs), 3, 3, seq, dtype=torch.float64)
        for number, (key, owners) in enumerate(pairs.items()):
            src = [graph.srcs[key[0]]]
            current = [one.current.vectors(src, batch_idx)[0].cpu().double() for one in both]
            patched = [
                now if plan is None else plan.patched.vectors(src, batch_idx)[0].cpu().double()
                for now, plan in zip(current, owners, strict=True)
            ]
            deltas = [then - now for then, now in zip(patched, current, strict=True)]
            vectors = torch.stack([current[1] - current[0], deltas[1], -deltas[0]])
            products[number] = torch.einsum("isd,jsd->ijs", vectors, vectors)
        which = torch.tensor([place[key] for key in keys], dtype=torch.long)
        masks = [flat_scores(graph, one.masks)[rows.numbers].double() for one in both]
        weights = torch.stack([torch.ones_like(masks[0]), masks[1], masks[0]], dim=1)
        return _Products(products, which, weights)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._edges):,} edges of {self.trace!r} and {self.other!r}>"


@dataclass(frozen=True, eq=False)
class _Products:
    """Products of the three changes for each source and plans, where each edge's are among them, and
    the weights that an edge's received change has of the three."""

    products: Float[Tensor, "key 3 3 seq"]
    which: Int[Tensor, " edge"]
    weights: Float[Tensor, "edge 3"]

    def changes(self, at: Int[Tensor, " edge"]) -> Float[Tensor, "2 edge"]:
        """‖change‖ of what was written and of what was received, at each edge's position."""
        found = self.products[self.which, :, :, at]
        received = torch.einsum("ei,eij,ej->e", self.weights, found, self.weights)
        return torch.stack([found[:, 0, 0], received]).clamp_min(0).sqrt()

    def received(self) -> Float[Tensor, "edge seq"]:
        """‖change‖ of what was received, at every position."""
        found = self.products[self.which]
        square = torch.einsum("ei,eijs,ej->es", self.weights, found, self.weights)
        return square.clamp_min(0).sqrt()


def check_same_graph(trace: Record, other: Record) -> None:
    """Raise InputError where two traces are not of one model, with the same positions told apart."""
    if trace.graph is not other.graph and trace.graph.nodes != other.graph.nodes:
        raise InputError(
            f"The two traces are of different models: {len(trace.graph.nodes)} nodes and "
            f"{len(other.graph.nodes)}."
        )
    if trace.graph.seq_len != other.graph.seq_len:
        raise InputError(
            "The two traces must tell the same positions apart: their models were wrapped with "
            f"seq_len={trace.graph.seq_len} and {other.graph.seq_len}."
        )


def _plans(trace: Record, rows: Rows) -> list[Any]:
    """For each edge the plan whose outputs it is patched with, None where there is none."""
    return [
        plan if isinstance(plan, Plan) and plan.patched is not None else None
        for plan in trace.plan_of(rows.numbers.tolist())
    ]
