"""A plain n-gram embedding: hashed rows added to the residual stream, and nothing else.

The bigram embedding of modded-nanogpt's speed runs: no keys, values, gate or convolution.
"""

import torch
from torch import nn

from .hashing import NgramHash
from .memory import MemorySpec


class PlainMemory(nn.Module):
    """Adds the concatenated rows of a token's n-grams; together they are as wide as the stream."""

    def __init__(self, spec: MemorySpec) -> None:
        super().__init__()
        self.hash: nn.Module = NgramHash(spec.orders, spec.primes, spec.multipliers)
        self.table = spec.new_table()
        self.memory_rows = nn.Identity()

    def forward(self, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return what ``rows`` (B, T, heads) add to ``hidden_states`` (B, T, D)."""
        read: torch.Tensor = self.memory_rows(self.table(rows))
        return read.to(hidden_states.dtype)
