"""What every source wrote in one pass, stored as narrow as the model computed it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.errors import EdgeError, InputError
from circuit_trace.graph import SrcNode
from circuit_trace.plan.ablation import AblationType


@dataclass(frozen=True, eq=False)
class SiteOutput:
    """What one source site wrote: a code per node, and the weight that makes it a stream vector.

    A node's vector is `(code @ weight) * gain`, without the factors that are None; `gain` is the
    weight of a norm that stands between the node and the stream, its scale being in the code.
    `code` may have length 1 along batch or seq where the value is the same for all of them.
    """

    code: Float[Tensor, "batch seq node width"]
    weight: Float[Tensor, "node width d_model"] | None = None
    gain: Float[Tensor, " d_model"] | None = None
    weight_mark: tuple[int | None, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_mark", _mark(self.weight))

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return (self.code if self.weight is None else self.weight).shape[-1]

    def detach(self) -> SiteOutput:
        """The same without the graph of gradients."""
        weight = None if self.weight is None else self.weight.detach()
        gain = None if self.gain is None else self.gain.detach()
        return SiteOutput(self.code.detach(), weight, gain)

    def project(self, slots: Sequence[int]) -> Float[Tensor, "chosen batch seq d_model"]:
        """Compute the stream vectors of these nodes, `z[:, :, h] @ W_O[h]` for heads.

        Raises:
            InputError: The model's weights were changed since the pass.
        """
        return project(self.code, self.live_weight, slots, self.gain)

    @property
    def live_weight(self) -> Float[Tensor, "node width d_model"] | None:
        """The weight, if it is still the one of the pass."""
        version, sample = _mark(self.weight)
        then, sample_then = self.weight_mark
        differs = sample is not None and not torch.allclose(
            sample, sample_then, rtol=0, atol=0, equal_nan=True
        )
        if version != then or differs:
            raise InputError(
                "The model's output weights were changed in place after this pass was recorded, "
                "so what its heads wrote can no longer be computed: a record keeps them as narrow as "
                "the model does (hook_z). Make tables, figures and tensors before such a step, or "
                "trace again."
            )
        return self.weight

    def shares_weight(self, other: SiteOutput) -> bool:
        """Whether both sites' codes are turned into vectors by one and the same weights."""
        mine, theirs = self.live_weight, other.weight
        if self.gain is None or other.gain is None:
            same_gain = self.gain is other.gain
        else:
            same_gain = torch.equal(self.gain, other.gain.to(self.gain))
        if mine is None or theirs is None:
            return mine is theirs and same_gain
        if not same_gain:
            return False
        return mine.data_ptr() == theirs.data_ptr() and mine.stride() == theirs.stride()


def project(
    code: Float[Tensor, "batch seq node width"],
    weight: Float[Tensor, "node width d_model"] | None,
    slots: Sequence[int],
    gain: Float[Tensor, " d_model"] | None = None,
    out: Tensor | None = None,
) -> Float[Tensor, "chosen batch seq d_model"]:
    """Turn the codes of some nodes into stream vectors, into `out` where it is given."""
    batch, seq, n_nodes, _ = code.shape
    index = list(slots)
    # A batched product wants the nodes first; all of them need no gather.
    chosen = (code if len(index) == n_nodes else code[:, :, index]).permute(2, 0, 1, 3)
    if weight is None:
        vectors = chosen if gain is None else chosen * gain
        return vectors if out is None else out.copy_(vectors)
    matrix = weight if len(index) == n_nodes else weight[index]
    rows = chosen.reshape(len(index), batch * seq, -1).to(matrix.dtype)
    if out is not None and (out.dtype, out.device) == (matrix.dtype, matrix.device):
        torch.bmm(rows, matrix, out=out.view(len(index), batch * seq, -1))
        return out if gain is None else out.mul_(gain)
    vectors = torch.bmm(rows, matrix).view(len(index), batch, seq, -1)
    vectors = vectors if gain is None else vectors * gain
    return vectors if out is None else out.copy_(vectors)


def _mark(weight: Tensor | None) -> tuple[int | None, Tensor | None]:
    """What tells that a weight was written in place: torch's count of writes, and a few entries
    spread over it for writes that torch does not count (through `.data`)."""
    if weight is None:
        return None, None
    width, d_model = weight.shape[1:]
    sample = weight.detach()[:, :: max(1, width // 4), :: max(1, d_model // 4)].clone()
    return None if weight.is_inference() else weight._version, sample


@dataclass(frozen=True, eq=False, repr=False)
class SourceOutputs(Mapping[str, Tensor]):
    """What each source wrote: an ordered mapping from its name to `[batch, seq, d_model]`.

    Heads are stored as the model computes them (`hook_z`, `d_head` wide) and projected by `W_O`
    when one is asked for, so a record is as small as the pass.

    >>> import circuit_trace as ct
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> outputs = model.source_outputs("When Mary and John went")
    >>> list(outputs)[:2], tuple(outputs["A0.1"].shape), tuple(outputs.stack().shape)
    (['Resid Start', 'A0.0'], (1, 6, 64), (11, 1, 6, 64))
    """

    srcs: tuple[SrcNode, ...]
    sites: tuple[SiteOutput, ...]
    batch: int
    seq: int
    ablation: AblationType = AblationType.RESAMPLE

    @cached_property
    def _by_name(self) -> dict[str, SrcNode]:
        return {src.name: src for src in self.srcs}

    def __getitem__(self, name: str) -> Float[Tensor, "batch seq d_model"]:
        if not isinstance(name, str) or name not in self._by_name:
            raise EdgeError(
                f"There is no source {name!r}; the sources run from {self.srcs[0].name!r} to "
                f"{self.srcs[-1].name!r}."
            )
        src = self._by_name[name]
        written = self._full(self.sites[src.site].project([src.slot]))[0]
        return written.to(self._device).clone()  # writing to it must not change the record

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.srcs)

    def __repr__(self) -> str:
        return (
            f"<SourceOutputs: {len(self)} sources, batch {self.batch}, seq {self.seq}, "
            f"{self.ablation}>"
        )

    def stack(self) -> Float[Tensor, "n_srcs batch seq d_model"]:
        """All sources in one tensor, in source order."""
        every = [self._full(site.project(range(site.code.shape[2]))) for site in self.sites]
        return torch.cat([one.to(self._device) for one in every])

    def vectors(
        self, srcs: Sequence[SrcNode], batch_idx: int
    ) -> Float[Tensor, "source seq d_model"]:
        """What some sources wrote for one element of the batch, computed for that element alone."""
        first = self.sites[0]
        out = first.code.new_empty((len(srcs), self.seq, first.d_model))
        by_site: dict[int, list[int]] = {}
        for place, src in enumerate(srcs):
            by_site.setdefault(src.site, []).append(place)
        for site_idx, places in by_site.items():
            site = self.sites[site_idx]
            row = batch_idx if site.code.shape[0] > 1 else 0
            slots = [srcs[place].slot for place in places]
            values = project(site.code[row : row + 1], site.live_weight, slots, site.gain)
            out[places] = values[:, 0].to(out)
        return out

    def weighted_sum(
        self, weights: Float[Tensor, "pos source"], batch_idx: int
    ) -> Float[Tensor, "seq d_model"]:
        """The sum of all sources for one element of the batch, each times its weight at a position
        (or at all, where `weights` has one row). What has the weight 0 is left out, be it infinite.
        """
        total = torch.zeros(self.seq, self.sites[0].d_model, device=self._device)
        start = 0
        for site in self.sites:
            n_nodes = site.code.shape[2]
            own = weights[:, start : start + n_nodes, None].to(site.code.device)
            start += n_nodes
            code = site.code[batch_idx if site.code.shape[0] > 1 else 0].float()
            code = torch.where(own == 0, torch.zeros(()).to(code), code * own)
            weight = site.live_weight
            part = (
                code.sum(1) if weight is None else torch.einsum("pnw,nwd->pd", code, weight.float())
            )
            total = total + (part if site.gain is None else part * site.gain.float()).to(total)
        return total

    @property
    def _device(self) -> torch.device:
        """Where vectors are given: the embedding's device, if layers are on several."""
        return self.sites[0].code.device

    def _full(self, values: Tensor) -> Tensor:
        return values.expand(values.shape[0], self.batch, self.seq, values.shape[-1])

    def fitted(self, batch: int, seq: int, what: str = "patched") -> SourceOutputs:
        """These outputs for a pass of that shape; `what` they are called where they are refused.

        Zeros and means are the same for every prompt, so they fit any number of them.

        Raises:
            InputError: They are for another number of prompts or tokens.
        """
        fits = all(
            size == wanted or (size == 1 and self.ablation is not AblationType.RESAMPLE)
            for site in self.sites[:1]
            for size, wanted in zip(site.code.shape[:2], (batch, seq), strict=True)
        )
        if not fits:
            raise InputError(
                f"The {what} outputs ({self.ablation}) are for a batch of {self.batch} × "
                f"{self.seq} tokens, but this pass runs {batch} × {seq}. Clean and corrupt prompts "
                "must have the same number of prompts and of tokens."
            )
        return replace(self, batch=batch, seq=seq)
