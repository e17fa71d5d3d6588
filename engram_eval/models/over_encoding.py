"""OverEncoding: n-gram embeddings averaged into the token embedding (arXiv:2501.16975).

The paper's table of an order is sliced along the width into K parts of D / ((N - 1) K) numbers with
table sizes of their own, each projected to D; the input is the mean of the token's embedding and
all (N - 1) K projections. Here a slice is a hash head, and the hash is the memory's own (the
paper's is the n-gram as a number modulo the table size), so that this variant differs from an
Engram memory in place and gate, not in how rows are found.
"""

import torch
from torch import nn

from .hashing import NgramHash
from .linear import Linear
from .memory import MemorySpec
from .precision import as_operand


class OverEncoding(nn.Module):
    """Turns the token embedding that enters block 0 into the mean with its n-grams' embeddings.

    The slices' projections stand side by side in ``value_proj``. Written as something to add, so
    that it can be read and switched off like a memory; off, the bare embedding is left.
    """

    def __init__(self, spec: MemorySpec) -> None:
        super().__init__()
        self.slices = len(spec.primes)
        self.hash: nn.Module = NgramHash(spec.orders, spec.primes, spec.multipliers)
        self.table = spec.new_table()
        self.memory_rows = nn.Identity()
        self.value_proj = Linear(spec.memory_dim, spec.hidden_size)

    def forward(self, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean minus ``hidden_states``, the token embeddings (B, T, D)."""
        ngrams = self.value_proj(as_operand(self.memory_rows(self.table(rows))))
        return (ngrams - self.slices * hidden_states) / (1 + self.slices)
