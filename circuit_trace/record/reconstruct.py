"""Does a record add up? The sum of what was received against what was really read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import NoTraceError
from circuit_trace.hooks import Read, directions
from circuit_trace.plan import Plan, SourceOutputs
from circuit_trace.record.record import Record


def reconstruction_error(trace: Record) -> float:
    """The largest relative difference over all destinations (see `Trace.reconstruction_error`).

    Sums are taken after projecting every source on the directions in which inputs were recorded:
    the projection is linear, so nothing of size `[sources, batch, seq, d_model]` is needed.
    """
    if not trace.reads:
        raise NoTraceError(
            "This trace holds no destination inputs to compare with; trace the pass again."
        )
    current = _projected(trace.current, trace.batch, trace.seq)
    biases = _bias_sums(trace)
    changes = [
        (plan, _projected(plan.patched, trace.batch, trace.seq) - current)
        for plan in trace.plans
        if plan.patched is not None
    ]
    errors = [
        _read_error(trace, read, dest, current, biases, changes)
        for read in trace.reads
        for dest in read.dests
    ]
    return float(torch.tensor(errors).max())  # NaN if any is


def _projected(
    outputs: SourceOutputs, batch: int, seq: int
) -> Float[Tensor, "source batch seq direction"]:
    parts = []
    for site in outputs.sites:
        code, weight = site.code.float(), site.live_weight
        basis = directions(site.d_model, code.device)
        basis = basis if site.gain is None else site.gain.float()[:, None] * basis
        if weight is None:
            part = code @ basis
        else:
            part = torch.einsum("bsnw,nwk->bsnk", code, weight.float() @ basis)
        parts.append(part.permute(2, 0, 1, 3).expand(-1, batch, seq, -1).cpu())
    return torch.cat(parts)


def _bias_sums(trace: Record) -> dict[int, Tensor]:
    """The projected sum of the biases written beside the first n sources, by n."""
    total, n_sources = torch.zeros(()), 0
    sums = {0: total}
    for site, bias in zip(trace.current.sites, trace.biases, strict=True):
        n_sources += site.code.shape[2]
        if bias is not None:
            total = total + (bias.float() @ directions(bias.shape[-1], bias.device)).cpu()
        sums[n_sources] = total
    return sums


def _read_error(
    trace: Record,
    read: Read,
    dest: int,
    current: Tensor,
    biases: dict[int, Tensor],
    changes: list[tuple[Plan, Tensor]],
) -> float:
    module = trace.graph.modules[dest]
    expected = current[: module.n_sources].sum(0) + biases[module.n_sources]
    if read.patched:
        heads = range(len(module.dests)) if read.heads is None else read.heads
        expected = expected + sum(
            _change(plan, module.name, difference, list(heads))
            for plan, difference in changes
            if module.name in plan.masks
        )
    if read.positions is not None:
        expected = expected[..., read.positions.cpu(), :]
    seen = read.seen.cpu()
    seen = seen if expected.ndim == seen.ndim else seen[None]
    tiny = torch.finfo(torch.float32).tiny
    return float((expected - seen).norm() / seen.norm().clamp_min(tiny))


def _change(
    plan: Plan, module_name: str, difference: Tensor, heads: list[int]
) -> Float[Tensor, "head batch seq direction"]:
    """Σ mask · (patched − current) for each head of a module, projected."""
    module = plan.graph.module_by_name[module_name]
    mask = plan.masks[module_name].detach().float().cpu()
    lead = (1,) if plan.graph.seq_len is None else (plan.graph.seq_len,)
    mask = mask.reshape(*lead, len(module.dests), module.n_sources)[:, heads]
    mask = mask.expand(difference.shape[2], -1, -1)
    return torch.einsum("shn,nbsk->hbsk", mask, difference[: module.n_sources])
