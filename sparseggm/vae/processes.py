"""One run over several processes, as torchrun starts them, on one machine or many; else a run of one process.

    torchrun --nproc-per-node 2 -m sparseggm train --posterior chain --out runs/chain

Every process draws the whole batch with all its noise, and takes its own rows: so the numbers are those of one process,
to rounding. The first process alone writes.
"""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from torch import Tensor

from sparseggm.vae.config import Config
from sparseggm.vae.errors import ConfigError


def count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def started(config: Config) -> Fabric:
    """Fabric, connected to the other processes where there are some: by gloo, whose sums are of any device."""
    if count() == 1:
        return Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)  # type: ignore[arg-type]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=here,
        num_nodes=count() // here,
        strategy="ddp",
        precision=config.precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def rows_of(fabric: Fabric, batch: int) -> slice:
    """The rows of a batch that are this process's; sizes differ by one row at most."""
    return slice(*(batch * rank // fabric.world_size for rank in (fabric.global_rank, fabric.global_rank + 1)))


def total(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def mean_of_batch(rows: Tensor) -> Tensor:
    """The mean of (B, n) rows, (n,), with those that other processes have of the batch."""
    sums = torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums[:-1] / sums[-1]


def any_signal(fabric: Fabric, signal: int | None) -> int | None:
    """The largest number of a signal that came to one of the processes, so that all stop after the same step."""
    if fabric.world_size == 1:
        return signal
    number = torch.tensor(signal or 0, device=fabric.device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number) or None


def require_enough(images: int, batch: int) -> None:
    """Raise a ConfigError unless every process has a row of every batch."""
    smallest = images % batch or min(images, batch)
    if smallest < count():
        raise ConfigError(f"{count()} processes need batches of at least {count()} images, got one of {smallest}.")
