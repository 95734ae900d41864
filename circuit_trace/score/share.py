"""The share of a dataset that this process takes, when several score it together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data.distributed import DistributedSampler

from circuit_trace.errors import InputError

CPU = torch.device("cpu")


class OthersStopped(InputError):
    """The processes cannot go on together; all of them know it."""


@dataclass
class Share:
    """Every `world`-th batch, from number `rank` on; without torch.distributed that is all of them.

    All processes read all batches, and meet after each `world` of them: so an error in one stops all
    at once, none waits for long, and what must be the same for all is compared.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    """Where this process' model is."""
    _mark: Tensor = field(default_factory=lambda: torch.zeros(8), compare=False)

    @classmethod
    def here(cls, model: nn.Module | None = None) -> Share:
        """This process' share, as torch.distributed has set it up."""
        if distributed.is_available() and distributed.is_initialized():
            parameters = () if model is None else model.parameters()
            device = next((parameter.device for parameter in parameters), CPU)
            return cls(distributed.get_rank(), distributed.get_world_size(), device)
        n_started = os.environ.get("WORLD_SIZE", "")
        if n_started.isdecimal() and int(n_started) > 1:
            warnings.warn(
                f"{n_started} processes were started (WORLD_SIZE), but torch.distributed is not "
                "initialised, so each of them scores all batches. To share them call "
                "torch.distributed.init_process_group() or accelerate.PartialState() first.",
                stacklevel=3,
            )
        return cls()

    def __contains__(self, number: int) -> bool:
        return number % self.world == self.rank

    def file(self, resume: Any) -> Any:
        """The file that this process resumes from: its own."""
        if self.world == 1 or not isinstance(resume, str | os.PathLike):
            return resume
        return f"{os.fspath(resume)}.{self.rank}-of-{self.world}"

    def check(self, data: Any) -> None:
        """Refuse data that is divided among the processes already.

        Raises:
            InputError: It is.
        """
        is_divided = isinstance(getattr(data, "sampler", None), DistributedSampler)
        if self.world > 1 and (is_divided or type(data).__module__.startswith("accelerate.")):
            raise InputError(
                f"These batches are divided among {self.world} processes already, so none of them would "
                "see all that it needs. Give every process the same whole data: a DataLoader without "
                "DistributedSampler that accelerate has not prepared."
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Score batches inside, calling `meet` after each: what fails here stops all processes.

        Raises:
            OthersStopped: Another process failed, or has other data.
        """
        try:
            yield
        except OthersStopped:
            raise
        except Exception as error:
            if self.world > 1:
                self._meet(error=error)
            raise
        if self.world > 1:
            self._meet(has_ended=True)

    def meet(self, number: int, mark: Tensor) -> None:
        """Meet the other processes if that many batches are a round; `mark`, 8 whole numbers, tells
        what must be the same for all.

        Raises:
            OthersStopped: Another process failed, or has another mark.
        """
        self._mark = mark
        if self.world > 1 and number % self.world == self.world - 1:
            self._meet()

    def total(self, sums: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(sums, distributed.ReduceOp.SUM) if self.world > 1 else sums

    def _meet(self, *, error: Exception | None = None, has_ended: bool = False) -> None:
        state = torch.tensor([error is not None, has_ended, *self._mark.tolist()]).double()
        try:
            # The largest and, the sign turned, the smallest of all.
            found = self._reduced(torch.cat([state, -state]), distributed.ReduceOp.MAX)
        except Exception as failure:
            if error is not None:
                raise error from failure
            raise OthersStopped(
                f"The other processes no longer answer ({type(failure).__name__}); their own messages "
                "say why."
            ) from failure
        most, least = found[: len(state)], -found[len(state) :]
        if error is not None:
            return
        if most[0]:
            raise OthersStopped(
                "Another process failed to score its share of the batches; its own message says why."
            )
        if not torch.equal(most, least):
            raise OthersStopped(
                "The processes were given different data, models or options, so their scores cannot be "
                "added up. Give all of them the same model and the same whole data: a DataLoader that "
                "shuffles needs a generator with the same seed in each."
            )

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        # NCCL works on GPUs alone, each process on one of its own.
        device = self.device if distributed.get_backend() == "nccl" else CPU
        there = tensor.to(device, copy=True)
        distributed.all_reduce(there, op=how)
        return there.cpu()
