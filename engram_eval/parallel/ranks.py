"""The processes of one training run, as ``torchrun`` starts them."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from engram_eval.parallel.launched import launched

PATIENCE = datetime.timedelta(hours=1)
"""How long processes wait for one that builds a corpus, validates or writes alone."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: 0-based number of this process; 0 writes what is written once.
        world: how many there are.
        device: where this one computes.
        mesh: all of them, in one row.
    """

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of everybody's ``tensor``."""
        total = tensor.detach().to(self.device).clone()
        dist.all_reduce(total)
        return total

    def largest(self, values: list[float]) -> list[float]:
        """Return the largest of everybody's, number by number."""
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        largest: list[float] = found.tolist()
        return largest

    def share(self, value: Any) -> Any:
        """Return the first process's ``value``, which must pickle."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait for all others."""
        dist.barrier()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes while the block runs; alone where there are none.

    On GPUs by NCCL, one each; otherwise by gloo on the CPU. Inside of another such block, the
    processes are together already.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", _own_gpu()) if cuda else "cpu"
    ours = not dist.is_initialized()
    if ours:
        _meet("nccl" if cuda else "gloo", torch.device(device))
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        mesh = init_device_mesh("cuda" if cuda else "cpu", (world,))
        yield Ranks(rank, world, torch.device(device), mesh)
    finally:
        if ours:
            dist.destroy_process_group()


def _own_gpu() -> int:
    """Return the GPU that ``torchrun`` means, or that a process on its own is on already."""
    return int(os.environ["LOCAL_RANK"]) if launched() else torch.cuda.current_device()


def _meet(backend: str, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched():
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
