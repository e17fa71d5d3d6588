"""The lookup table of a memory: all heads' rows in one parameter."""

import torch
from torch import nn

from .native_lookup import lookup_for


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
        """Return the rows, cut off from gradients where they are frozen."""
        return self.weight.detach() if self.frozen else self.weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Read ``rows`` (B, T, heads) and concatenate them: (B, T, heads * row_dim), eq. 2."""
        values = self.values()
        if not (torch.is_grad_enabled() and values.requires_grad):
            lookup = lookup_for(rows, values)
            if lookup is not None and values.is_contiguous():
                return lookup.gather(values, rows).flatten(-2)
        return nn.functional.embedding(rows, values).flatten(-2)
