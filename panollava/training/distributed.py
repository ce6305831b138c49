"""One process or many: what torchrun says, and the sums across ranks that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Place of this process among those of the run.

    Attributes:
        rank: 0 is the only one that writes and logs.
        world_size: number of processes.
        local_rank: place on this machine, which chooses the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and logs."""
        return self.rank == 0

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Adds named numbers across processes; every rank must call it with the same names."""
        if self.world_size == 1 or not values:
            return dict(values)
        names = sorted(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return dict(zip(names, tensor.tolist(), strict=True))

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the group torchrun started, if it started one, and leaves it at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Processes(int(os.environ["RANK"]), world_size, local_rank)
    finally:
        dist.destroy_process_group()
