"""The share of a dataset that this process takes, when several score it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data.distributed import DistributedSampler

from circuit_trace.errors import InputError


@dataclass(frozen=True)
class Share:
    """Every `world`-th batch, from number `rank` on; without torch.distributed that is all of them."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Share:
        """This process' share, as `torchrun` or `accelerate launch` has set it up."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def __contains__(self, number: int) -> bool:
        return number % self.world == self.rank

    def check(self, data: Any) -> None:
        """Refuse data that is divided among the processes already.

        Raises:
            InputError: It is.
        """
        is_divided = isinstance(getattr(data, "sampler", None), DistributedSampler)
        if self.world > 1 and (is_divided or type(data).__module__.startswith("accelerate.")):
            raise InputError(
                f"These batches are divided among {self.world} processes already, and would be "
                "divided twice. Give every process the same whole data: a DataLoader without "
                "DistributedSampler that accelerate has not prepared."
            )

    def total(self, sums: Tensor, error: BaseException | None) -> Tensor:
        """The sum over all processes; an error in one of them stops all.

        Raises:
            InputError: Another process failed. An error of this one is raised as it is.
        """
        if self.world > 1:
            failed = torch.tensor([float(error is not None)], dtype=sums.dtype)
            whole = torch.cat([sums, failed])
            # NCCL sums on the GPU alone.
            on_gpu = distributed.get_backend() == "nccl"
            whole = whole.cuda() if on_gpu else whole
            distributed.all_reduce(whole)
            sums, failed = whole.cpu().split([len(sums), 1])
            if failed and error is None:
                raise InputError(
                    "Another process failed to score its share of the batches; its own message says "
                    "why."
                )
        if error is not None:
            raise error
        return sums
