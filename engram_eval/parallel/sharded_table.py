"""A table whose rows are spread over processes: each asks the others for the rows that it reads."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from engram_eval.models.table import RowTable
from engram_eval.parallel.ranks import Ranks


class ShardedTable(RowTable):
    """Rows ``rank * per_rank`` to ``(rank + 1) * per_rank`` of a table.

    Each process reads for its own part of the batch. The distinct rows that it wants are asked for
    at their owners and come back, and so do their gradients the other way: two exchanges of
    numbers and rows in the forward pass, one of rows in the backward pass. The owner's gradient is
    the mean over the processes, as that of all other parameters.

    Args:
        whole: the table, the same in every process.
        ranks: the processes.

    Attributes:
        weight: (at most per_rank, row_dim), this process's rows.
        total: rows of the whole table.
    """

    def __init__(self, whole: RowTable, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        self.frozen, self.total = whole.frozen, len(whole.weight)
        self.world, self.per_rank = ranks.world, -(-self.total // ranks.world)
        self.first_row = ranks.rank * self.per_rank
        mine = whole.weight.detach()[self.first_row : self.first_row + self.per_rank]
        self.weight = nn.Parameter(mine.to(ranks.device).clone(), not whole.frozen)

    def forward(self, rows: Tensor, rounded: bool = False) -> Tensor:
        """Read ``rows`` (B, T, heads) and concatenate them: (B, T, heads * row_dim), eq. 2."""
        distinct, places = rows.to(self.weight.device).unique(return_inverse=True)
        values: Tensor = _Exchange.apply(self.values(), distinct, self)
        return nn.functional.embedding(places, values).flatten(-2)

    def requests(self, distinct: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """Tell the owners which sorted ``distinct`` rows (U,) are wanted.

        Returns:
            What others want of this process, as places in ``weight``; how many rows each owner
            sends here; how many each process wants from here.
        """
        wanted = torch.bincount(distinct // self.per_rank, minlength=self.world)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted)
        takes, gives = wanted.tolist(), asked.tolist()
        places = distinct.new_empty(sum(gives))
        dist.all_to_all_single(places, distinct, gives, takes)
        return places - self.first_row, takes, gives


class _Exchange(torch.autograd.Function):
    """Rows from their owners; gradients back to them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, distinct: Tensor, table: ShardedTable) -> Tensor:
        places, takes, gives = table.requests(distinct)
        found = weight.new_empty(len(distinct), weight.shape[1])
        dist.all_to_all_single(found, weight.index_select(0, places), takes, gives)
        ctx.save_for_backward(places)
        ctx.takes, ctx.gives, ctx.shape, ctx.world = takes, gives, weight.shape, table.world
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        returned = grad.new_empty(len(places), grad.shape[1])
        dist.all_to_all_single(returned, grad.contiguous(), ctx.gives, ctx.takes)
        total = grad.new_zeros(ctx.shape).index_add_(0, places, returned)
        return total / ctx.world, None, None
