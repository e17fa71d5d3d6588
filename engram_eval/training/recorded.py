"""Work on a batch that a GPU does again by itself, without being told each kernel anew.

A training step of a small model is a thousand kernels. To ask for them one by one takes a
processor about as long as a fast GPU needs for them, so that it often waits.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from engram_eval.models.block_sparse_attention import BlockSparseAttention
from engram_eval.models.moe import MoE
from engram_eval.models.offload import HostTable
from engram_eval.training.data import Batch
from engram_eval.training.lookup import Lookup

PLAIN = 3
"""Times that work is done plainly first, while compilers and libraries set themselves up."""

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """Work as a CUDA graph: recorded once, then replayed on other batches of the same shape.

    Everything that the work reads or writes stays at its place in memory, results included: each
    call overwrites those of the one before. Nothing may be read back while it is recorded.

    Args:
        work: reads tensors of a batch, and nothing else of it.
    """

    def __init__(self, work: Callable[[Batch], Result]) -> None:
        self._work, self._plain = work, PLAIN
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Result:
        """Do the work on a batch."""
        if self._plain:
            self._plain -= 1
            return self._work(batch)
        if self._graph is None:
            self._record(batch)
        else:
            _fill(self._batch, batch)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _record(self, batch: Batch) -> None:
        self._batch = _copy(batch)
        graph = torch.cuda.CUDAGraph()
        # Another thread makes the next batch meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = self._work(self._batch)
        self._graph = graph


def can_be_recorded(model: nn.Module, bf16: bool) -> bool:
    """Whether a training step, in bfloat16 autocast or not, is all on one GPU."""
    on_gpu = all(parameter.is_cuda for parameter in model.parameters())
    return on_gpu and not reads_back(model, bf16)


def reads_back(model: nn.Module, bf16: bool) -> bool:
    """Whether a training step on a GPU waits for numbers that only the GPU knows.

    So do tables elsewhere, whose rows are fetched, block-sparse attention, which counts its blocks,
    and experts in single precision, which no kernel multiplies without knowing their loads.
    """
    waits = (HostTable, BlockSparseAttention, *(() if bf16 else (MoE,)))
    return any(isinstance(module, waits) for module in model.modules())


def _copy(batch: Batch) -> Batch:
    lookup = batch.lookup
    if lookup is not None:
        rows, mixes = ({layer: t.clone() for layer, t in each.items()} for each in lookup)
        lookup = Lookup(rows, mixes)
    return batch._replace(inputs=batch.inputs.clone(), labels=batch.labels.clone(), lookup=lookup)


def _fill(place: Batch, batch: Batch) -> None:
    for to, source in zip(_tensors(place), _tensors(batch), strict=True):
        to.copy_(source)


def _tensors(batch: Batch) -> list[Tensor]:
    lookup = [] if batch.lookup is None else [t for each in batch.lookup for t in each.values()]
    return [batch.inputs, batch.labels, *lookup]
