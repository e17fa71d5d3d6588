"""The lookup table of a memory: all heads' rows in one parameter."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .native_lookup import NativeLookup, lookup_for


class RowTable(nn.Module):
    """Rows of every hash head, one below the other: ``weight`` (sum of primes, row_dim).

    Attributes:
        frozen: whether the rows stay as they were drawn. Loading a checkpoint makes every weight
            trainable again, so that the flag, not the weight, decides.
    """

    weight: torch.Tensor

    def __init__(self, rows: int, row_dim: int) -> None:
        super().__init__()
        self.frozen = False
        self.weight = nn.Parameter(torch.empty(rows, row_dim))
        nn.init.normal_(self.weight, std=0.02)

    def freeze(self) -> None:
        """Keep the rows as they are drawn."""
        self.frozen = True
        self.weight.requires_grad_(False)

    def values(self) -> torch.Tensor:
        """Return the rows, (rows, row_dim), cut off from gradients where they are frozen."""
        return self.weight.detach() if self.frozen else self.weight

    def forward(self, rows: torch.Tensor, rounded: bool = False) -> torch.Tensor:
        """Read ``rows`` (B, T, heads) and concatenate them: (B, T, heads * row_dim), eq. 2.

        ``rounded``: those that compiled functions read may be in bfloat16 already.
        """
        values = self.values()
        wanted = torch.is_grad_enabled() and values.requires_grad
        fits = values.is_contiguous() and (values.dtype == torch.float32 or not wanted)
        lookup = lookup_for(rows, values) if fits else None
        if lookup is None:
            return nn.functional.embedding(rows, values).flatten(-2)
        rounded = rounded and values.dtype == torch.float32
        given = values, rows, rounded
        read = _Gather.apply(*given, lookup) if wanted else lookup.gather(*given)
        return read.flatten(-2)


class _Gather(torch.autograd.Function):
    """Rows of a float32 table, and their gradients added up, compiled."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, rows: torch.Tensor, rounded: bool, lookup: NativeLookup
    ) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.lookup, ctx.table_rows = lookup, len(values)
        return lookup.gather(values, rows, rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return ctx.lookup.gathered_gradient(grad, rows, ctx.table_rows), None, None, None
