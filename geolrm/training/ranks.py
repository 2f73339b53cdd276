"""Training spread over processes: one rank a GPU, as many as there are, on one machine or on several.

In: the environment that `torchrun` sets; where nothing is set, one process that talks to nobody. Out: `Ranks`: which of the
processes this is, and the few things that they must agree on. Convention: every rank takes the same steps and makes the same
calls in the same order; the first rank alone judges, writes and speaks. Trade: one reduction of a handful of numbers a step
beside the gradients (torch's DistributedDataParallel), so that each rank knows when all must stop. Verified by two processes
on one machine whose loss curve, gradients and samples are those of one (tests/training/test_ranks.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)  # how long a rank waits for another: longer than the first one ever judges or writes


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are averaged over the ranks at the end of each backward pass."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, to which gradients flow back from the loss of every rank."""
        return tensor if self.count == 1 else _Total.apply(tensor)

    def smallest(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return number if self.count == 1 else min(self.gathered(number))

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the ranks."""
        if self.count == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=own_device())
        dist.all_reduce(sums)
        return dict(zip(values, (sums / self.count).tolist(), strict=True))

    def gathered(self, value: Value) -> list[Value]:
        """What every rank has, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


class _Total(torch.autograd.Function):
    """Sum over the ranks; each rank's share receives the sum of the gradients that the ranks' losses have with respect to it.

    The loss of a batch is one number that every rank computes from the same sums, and the ranks' gradients are averaged
    afterwards: adding them up here makes that average the gradient of that one loss.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def own_device() -> torch.device:
    """The device of this process: the GPU of its number on this machine, or the CPU where torch sees no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def all_ranks() -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started, if it did, and leave them at the end."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
