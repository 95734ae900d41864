"""What a destination read: the sum of what it received and of the biases that no source owns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import InputError
from circuit_trace.graph import DestNode
from circuit_trace.hooks import Read
from circuit_trace.hooks.record import sketch
from circuit_trace.hooks.verify import tolerance_of
from circuit_trace.record.record import Record


def stream_at(trace: Record, dest: DestNode, batch_idx: int) -> Float[Tensor, "seq d_model"]:
    """The residual stream as a destination read it, for one element of the batch."""
    n_sources = len(trace.graph.srcs)
    is_before = (torch.arange(n_sources) < dest.n_sources).float()
    plans = [
        plan for plan in trace.plans if plan.patched is not None and dest.module_name in plan.masks
    ]
    masks = [_mask(plan.masks[dest.module_name], dest, n_sources) for plan in plans]
    rest = is_before - sum(masks, torch.zeros(1, n_sources))
    total = trace.current.weighted_sum(rest, batch_idx)
    for plan, mask in zip(plans, masks, strict=True):
        assert plan.patched is not None
        total = total + plan.patched.weighted_sum(mask, batch_idx).to(total)
    written = 0
    for site, bias in zip(trace.current.sites, trace.biases, strict=True):
        written += site.code.shape[2]
        if bias is not None and written <= dest.n_sources:
            own = bias.expand(trace.batch, trace.seq, -1)  # behind a norm each position has its own
            total = total + own[batch_idx].detach().to(total)
    return total


def input_of(trace: Record, dest: DestNode) -> Float[Tensor, "batch seq d_model"]:
    """The residual stream as a destination read it, checked against what was recorded there.

    Raises:
        InputError: The destination read something else: hooks changed the stream in that pass.
    """
    found = torch.stack([stream_at(trace, dest, element) for element in range(trace.batch)])
    place = trace.graph.modules.index(trace.graph.module_by_name[dest.module_name])
    for read in reversed(trace.reads):
        if place in read.dests and (read.heads is None or dest.slot in read.heads):
            dtype = trace.current.sites[0].code.dtype
            # A loaded trace may have been saved in half precision.
            _check(found, read, dest, dtype if trace.about.written is None else torch.bfloat16)
            break
    return found


def _mask(mask: Tensor, dest: DestNode, n_sources: int) -> Float[Tensor, "pos source"]:
    """The destination's masks, 0 for the sources that stand behind it."""
    own = mask.detach().float().cpu()
    own = own if dest.head is None else own[..., dest.slot, :]
    own = own.reshape(-1, dest.n_sources)
    return torch.nn.functional.pad(own, (0, n_sources - dest.n_sources))


def _check(found: Tensor, read: Read, dest: DestNode, dtype: torch.dtype) -> None:
    seen = read.seen if read.heads is None else read.seen[read.heads.index(dest.slot)]
    ours = sketch(found.cpu())
    if read.positions is not None:
        ours = ours[:, read.positions.cpu()]
    seen = seen.cpu()
    apart = (ours - seen).norm(dim=-1) / seen.norm(dim=-1).clamp_min(1e-30)
    worst = float(apart.nan_to_num(0.0, 0.0).max())
    if worst > max(tolerance_of(dtype), tolerance_of(torch.float32)):
        raise InputError(
            f"{dest.name} read something else than the sum of what its sources wrote (by {worst:.2g} "
            "relative to its size): hooks changed the stream in this pass. What each source wrote is "
            "in .current and .received."
        )
