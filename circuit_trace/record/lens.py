"""What a source's output means to the logits: it, through the final norm of that pass and `W_U`.

For the scale that it took in one pass the final norm is linear, so every output has its share of
each logit and the shares add up: direct logit attribution (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"), read token by token the logit lens (nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit_trace.anatomy import Unembed
from circuit_trace.errors import InputError
from circuit_trace.graph import Edge, whole_number
from circuit_trace.hooks.norms import LinearNorm
from circuit_trace.hooks.verify import tolerance_of
from circuit_trace.plan import Plan, flat_scores
from circuit_trace.record.compare import Pair
from circuit_trace.record.inputs import stream_at
from circuit_trace.record.positions import last_of
from circuit_trace.record.record import Record
from circuit_trace.record.rows import Rows
from circuit_trace.record.unembedding import Lens, SavedLenses

AT_ONCE = 64
"""How many vectors are unembedded at a time: each takes a number per token of the vocabulary."""

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Part of two vectors' norms that their difference may be where a pass computed one of them otherwise
(another batch, the parts of a head in another order) and nothing else differs."""

Tokens = list[tuple[str, float]]
"""Tokens and what is added to their logits."""


def lens_of(trace: Record, batch_idx: int) -> Lens:
    """The lens of one element of the traced batch.

    Raises:
        InputError: The model's anatomy names no unembedding, or its weights do not give the
            logits of that pass; or it was saved without.
    """
    unembed = trace.unembed
    if isinstance(unembed, SavedLenses):
        return unembed.lenses[batch_idx]
    if unembed is None:
        _check_saved(trace)
        raise InputError(
            "This model's anatomy does not say how its residual stream becomes logits "
            "(Anatomy.unembed), so outputs cannot be read as tokens. Give direction= as a "
            "vector, or choose another label."
        )
    weight = unembed.weight().detach()
    end = trace.graph.dests[-1]
    stream = stream_at(trace, end, batch_idx).to(weight)
    norm = LinearNorm.of(unembed.norm, stream)
    _check_linear(norm, stream.dtype)
    with torch.no_grad():
        normed = unembed.norm(stream)
    _check_logits(trace, unembed, batch_idx, normed, weight)
    # Where the stream is nothing, or not finite, outputs have no shares: they are NaN.
    return Lens(norm.gain.float(), norm.is_centred, norm.scale[:, 0].float(), weight.float())


def _check_saved(trace: Record) -> None:
    """Say how to save what a loaded trace does not have."""
    if trace.unembed is None and trace.about.written is not None:
        raise InputError(
            "This trace was saved without the unembedding, so outputs cannot be read as tokens. Save "
            "it where its model is with trace.save(path, unembed=True), give direction= as a vector, "
            "or choose another label."
        )


def _check_linear(norm: LinearNorm, dtype: torch.dtype) -> None:
    """Compare the norm with its linear form, where both are numbers."""
    if norm.relative.nan_to_num().max() > tolerance_of(dtype):
        raise InputError(
            "The final norm of this model is not a LayerNorm or RMSNorm: for a given scale it is "
            "not linear, so outputs have no shares of the logits. Give direction= as a vector, or "
            "choose another label."
        )


def _check_logits(
    trace: Record, unembed: Unembed, batch_idx: int, normed: Tensor, weight: Tensor
) -> None:
    """Compare what the norm gives with the logits of the pass, where they are numbers."""
    logits = trace.logits
    if logits is None or logits.ndim != 3 or logits.shape[1] != trace.seq:
        return
    bias = unembed.bias()
    ours = normed.detach() @ weight
    ours = unembed.finish(ours if bias is None else ours + bias.detach()).float()
    relative = _relative(ours, logits[batch_idx].detach().to(ours)).nan_to_num(0.0, 0.0)
    worst = int(relative.argmax())
    if relative[worst] > tolerance_of(weight.dtype):
        raise InputError(
            f"The end of the residual stream, the final norm and W_U give other logits at position "
            f"{worst} than this pass had (by {float(relative[worst]):.2g} relative to their size). "
            "Outputs cannot be read as tokens then: if weights were changed since or hooks change the "
            "stream, trace again without; if the model does more behind its stream than that (an "
            "adapter on the unembedding, a dense layer in its head), give direction= as a vector, or "
            "choose another label."
        )


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """The relative difference at each position."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)


@dataclass(frozen=True, eq=False)
class Direction:
    """What outputs are projected on: a vector of `d_model` numbers, or the difference of two tokens'
    logits in the pass, whose vector has a length for each position."""

    vector: Float[Tensor, " d_model"] | None
    tokens: tuple[int, int] | None
    name: str

    @classmethod
    def read(cls, trace: Record, given: Any) -> Direction:
        """What a user gives: a vector, or a pair of tokens as text or as ids.

        Raises:
            InputError: It is neither.
        """
        if isinstance(given, Direction):
            return given
        pair = _pair(given)
        if pair is not None:
            first, second = (_token_id(trace, one) for one in pair)
            if first == second:
                raise InputError(f"The two tokens of direction={given!r} are the same.")
            lens_of(trace, 0)  # what cannot be read as tokens is refused here
            names = [_strings(trace, [token])[0] for token in (first, second)]
            return cls(None, (first, second), f"logit({names[0]}) − logit({names[1]})")
        d_model = trace.current.sites[0].d_model
        try:
            vector = torch.as_tensor(given, dtype=torch.float32).detach().to_dense().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"direction must be a vector of numbers or a pair of tokens; got {given!r}."
            ) from error
        if vector.shape != (d_model,) or not bool(vector.isfinite().all()):
            got = f"the shape {tuple(vector.shape)}"
            if vector.shape == (d_model,):
                got = "one with NaN or infinity in it"
            raise InputError(
                f"direction must be a vector of {d_model} finite numbers (d_model), or a pair of "
                f"tokens such as (' Mary', ' John'); got {got}."
            )
        return cls(vector, None, "the direction")

    def at(self, trace: Record, batch_idx: int) -> Float[Tensor, "*seq d_model"]:
        """The vector, or one for each position, to take dot products with."""
        if self.tokens is None:
            assert self.vector is not None
            return self.vector
        return lens_of(trace, batch_idx).direction(*self.tokens).cpu()


def _pair(given: Any) -> list[str | int] | None:
    """Two tokens, as text or as ids of any kind of whole number; None for anything else."""
    if isinstance(given, Tensor) and given.shape == (2,) and not given.is_floating_point():
        given = given.tolist()
    if not isinstance(given, tuple | list) or len(given) != 2:
        return None
    read = [one.item() if isinstance(one, Tensor) and one.ndim == 0 else one for one in given]
    ids = [one if isinstance(one, str) else whole_number(one) for one in read]
    return None if None in ids else [one for one in ids if one is not None]


def _token_id(trace: Record, token: str | int) -> int:
    _check_saved(trace)
    unembed = trace.unembed
    n_tokens = None if unembed is None else unembed.weight().shape[1]
    if isinstance(token, int):
        if n_tokens is not None and not 0 <= token < n_tokens:
            raise InputError(f"There is no token {token}; this model knows 0 to {n_tokens - 1}.")
        return token
    if unembed is None or unembed.to_ids is None:
        raise InputError(f"Got the token {token!r}, but the model has no tokenizer: give its id.")
    ids = unembed.to_ids(token)
    if len(ids) != 1:
        pieces = _strings(trace, ids)
        raise InputError(
            f"direction needs single tokens, but {token!r} is {len(ids)} of them: {pieces}. Mind "
            "the space before a word, or give a token's id."
        )
    read = _strings(trace, ids)[0]
    if read.strip().casefold() != token.strip().casefold():
        raise InputError(f"The tokenizer does not know {token!r}: it reads {read!r}.")
    return ids[0]


def _strings(trace: Record, ids: Sequence[int]) -> list[str]:
    return (
        [str(one) for one in ids]
        if trace.to_strings is None
        else trace.to_strings(torch.tensor(ids))
    )


@torch.no_grad()
def top_tokens(
    trace: Record,
    edges: Sequence[Edge] | Rows,
    batch_idx: int | str,
    n: int,
    pair: Pair | None,
    at: Int[Tensor, " edge"],
) -> list[tuple[Tokens, Tokens]]:
    """For each edge the tokens whose logits the change of a pair raises most at its position, and
    those it lowers most; where there is no pair, what the current output does.

    None of either where the change is nothing, or rounding alone. At -1 each prompt's last position is
    meant; with `batch_idx="mean"` logits are means over the batch.

    Raises:
        InputError: As `Lens.of`.
    """
    rows = edges if isinstance(edges, Rows) else Rows.of(trace.graph, edges)
    if not len(rows):
        return []
    elements = range(trace.batch) if batch_idx == "mean" else [int(batch_idx)]
    last = last_of(trace.real_positions)
    masks = flat_scores(trace.graph, trace.masks)[rows.numbers].tolist()
    masks = masks if pair is not None and "received" in pair else [0.0] * len(rows)
    plans = trace.plan_of(rows.numbers.tolist())
    keys = list(zip(rows.src.tolist(), at.tolist(), map(id, plans), masks, strict=True))
    changes_of = dict(zip(keys, plans, strict=True))
    lenses = {element: lens_of(trace, element) for element in elements}
    changes = {
        element: _changes(trace, changes_of, element, pair, int(last[element]))
        for element in elements
    }
    found: list[tuple[Tokens, Tokens]] = []
    places = list(changes_of)
    for start in range(0, len(places), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        shares = []
        for element in elements:
            positions = [
                place if place >= 0 else int(last[element]) for _, place, _, _ in places[part]
            ]
            shares.append(lenses[element].logits(changes[element][part], positions))
        logits = torch.stack(shares).mean(0)
        is_change = torch.stack([changes[element][part].any(1) for element in elements]).any(0)
        most = min(n, logits.shape[1])
        up, down = logits.topk(most), (-logits).topk(most)
        for row in range(len(logits)):
            if not is_change[row]:
                found.append(([], []))
                continue
            raised = _named(trace, up.indices[row].tolist(), up.values[row].tolist())
            lowered = _named(trace, down.indices[row].tolist(), (-down.values[row]).tolist())
            found.append((raised, lowered))
    place = {key: number for number, key in enumerate(places)}
    return [found[place[key]] for key in keys]


def _named(trace: Record, ids: list[int], values: list[float]) -> Tokens:
    return list(zip(_strings(trace, ids), values, strict=True))


Key = tuple[int, int, int, float]
"""A source, a position (-1 for the last), the plan that patches there, and the mask."""


def _changes(
    trace: Record, plan_of: Mapping[Key, Plan | None], batch_idx: int, pair: Pair | None, last: int
) -> Float[Tensor, "row d_model"]:
    """The change of a pair at each key's position; where there is no pair, the current output."""
    indices = list({source: None for source, *_ in plan_of})
    srcs = [trace.graph.srcs[source] for source in indices]
    place = {source: number for number, source in enumerate(indices)}
    outputs = {id(one): one for one in (trace.current, trace.clean) if one is not None}
    outputs |= {
        id(plan.patched): plan.patched
        for plan in plan_of.values()
        if plan is not None and plan.patched is not None
    }
    vectors = {key: one.vectors(srcs, batch_idx).float() for key, one in outputs.items()}
    changes = []
    for (source, position, _, mask), plan in plan_of.items():
        at = place[source], position if position >= 0 else last
        patched = trace.current if plan is None or plan.patched is None else plan.patched
        found = {"current": vectors[id(trace.current)][at], "patched": vectors[id(patched)][at]}
        if trace.clean is not None:
            found["clean"] = vectors[id(trace.clean)][at]
        found["received"] = carried(torch.tensor(mask), found["current"], found["patched"])
        if pair is None:
            changes.append(found["current"])
            continue
        before, after = found[pair[0]], found[pair[1]]
        change = after - before
        norms = change.norm(), before.norm(), after.norm()
        changes.append(torch.zeros_like(change) if is_rounding(*norms) else change)
    return torch.stack(changes)


def is_rounding(change: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Whether a vector's change, of these norms, may be float32's rounding and nothing else."""
    return change <= ROUNDING * (before + after)


def carried(mask: Tensor, current: Tensor, patched: Tensor) -> Tensor:
    """(1 − mask) · current + mask · patched; what an edge does not carry must not show, be it
    infinite."""
    mixed = (1 - mask) * current + mask * patched
    return torch.where(mask == 0, current, torch.where(mask == 1, patched, mixed))
