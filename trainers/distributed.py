"""Several GPUs through torchrun: who this process is, what it reads, how the model is wrapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainers.config import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; one process alone is rank 0 of 1."""

    rank: int
    count: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, averaging its gradients over the processes where there are several."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def share(self, items: Sequence[Any], batch_size: int) -> Sequence[Any]:
        """This process's part of each batch; an incomplete last batch is filled up, since all must step alike.

        Raises
        ------
        ConfigError : the batch size cannot be divided.
        """
        if self.count == 1:
            return items
        if batch_size % self.count:
            raise ConfigError(f"batch_size {batch_size} cannot be divided among {self.count} processes")
        each = batch_size // self.count
        first = range(self.rank * each, len(items) + self.rank * each, batch_size)
        return [items[(start + i) % len(items)] for start in first for i in range(each)]

    def tell(self, values: tuple[float, ...], device: torch.device) -> tuple[float, ...]:
        """The first process's `values`, in every process."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.broadcast(tensor, src=0)
        return tuple(tensor.tolist())


@contextmanager
def group(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, by its environment variables; alone without them."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, device)
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()
