"""The processes of one training run, as ``torchrun`` starts them."""

import datetime
import os
import time
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

ALIKE = datetime.timedelta(minutes=1)
"""How long one that has failed waits for the others to fail alike."""

POLL_S = 0.1


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: 0-based number of this process; 0 writes what is written once.
        world: how many there are.
        device: where this one computes.
        mesh: all of them, in one row.
        store: what they tell each other beside their computations; None in a block inside of
            another.
    """

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh
    store: dist.Store | None = None

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

    def finish(self, stage: str, failed: bool) -> bool:
        """Wait for all others at the end of a stage; return whether they came there.

        Where a stage failed in this process alone, the others stand in the middle of it and wait
        for this one, which must leave: then ``torchrun`` ends them.

        Args:
            stage: names it; each is finished once.
            failed: whether it failed here: then others have a minute to fail alike.

        Raises:
            DistError: another process is gone.
        """
        if self.store is None:
            return True
        last = time.monotonic() + (ALIKE if failed else PATIENCE).total_seconds()
        try:
            there = self.store.add(stage, 1)
            while there < self.world and time.monotonic() < last:
                time.sleep(POLL_S)
                there = self.store.add(stage, 0)
        except dist.DistError:
            # The process that keeps the store may be the one that left.
            if not failed:
                raise
            return False
        return there == self.world


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes while the block runs; alone where there are none.

    On GPUs by NCCL, one each; otherwise by gloo on the CPU. Inside of another such block, the
    processes are together already.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", _own_gpu()) if cuda else "cpu"
    ours = not dist.is_initialized()
    store = _meet("nccl" if cuda else "gloo", torch.device(device)) if ours else None
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        mesh = init_device_mesh("cuda" if cuda else "cpu", (world,))
        yield Ranks(rank, world, torch.device(device), mesh, store)
    finally:
        if ours:
            dist.destroy_process_group()


def _own_gpu() -> int:
    """Return the GPU that ``torchrun`` means, or that a process on its own is on already."""
    return int(os.environ["LOCAL_RANK"]) if launched() else torch.cuda.current_device()


def _meet(backend: str, device: torch.device) -> dist.Store:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world = dist.HashStore(), 0, 1
    if launched():
        store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    return store
