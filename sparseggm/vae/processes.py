"""One run over several processes, as torchrun starts them, on one machine or many; else a run of one process.

    torchrun --nproc-per-node 2 -m sparseggm train --posterior chain --out runs/chain

Every process draws the whole batch with all its noise, and takes its own rows: so the numbers are those of one process,
to rounding. The first process alone writes.
"""

from __future__ import annotations

import atexit
import os

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sparseggm.vae.errors import ConfigError


def count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def shared(model: nn.Module) -> nn.Module:
    """The model, whose gradients are means over the processes, by gloo, whose sums are of any device."""
    if count() == 1:
        return model
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
        atexit.register(distributed.destroy_process_group)
    return DistributedDataParallel(model)


def rows_of(batch: int) -> slice:
    """The rows of a batch that are this process's; sizes differ by one row at most."""
    return slice(*(batch * place // count() for place in (rank(), rank() + 1)))


def total(values: Tensor) -> Tensor:
    """The sum over all processes that train together."""
    if count() > 1 and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def mean_of_batch(rows: Tensor) -> Tensor:
    """The mean of (B, n) rows, (n,), with those that other processes have of the batch."""
    sums = total(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
    return sums[:-1] / sums[-1]


def any_signal(signal: int | None) -> int | None:
    """The largest number of a signal that came to one of the processes, so that all stop after the same step."""
    if count() == 1:
        return signal
    number = torch.tensor(signal or 0, device="cpu")
    distributed.all_reduce(number, distributed.ReduceOp.MAX)
    return int(number) or None


def require_enough(images: int, batch: int) -> None:
    """Raise a ConfigError unless every process has a row of every batch."""
    smallest = images % batch or min(images, batch)
    if smallest < count():
        raise ConfigError(f"{count()} processes need batches of at least {count()} images, got one of {smallest}.")
