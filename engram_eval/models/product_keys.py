"""A product-key memory layer (arXiv:1907.05242; gated as "Memory+" in arXiv:2412.09764).

Unlike an n-gram memory it is addressed by the hidden state: learnt, but neither known before the
layer runs nor tied to the text. As in Memory Layers at Scale it stands in a block's feed-forward
place. No biases, as everywhere in this model; values are not shared between layers.
"""

import torch
from torch import nn

from .configuration_engram import EngramConfig
from .linear import Linear
from .precision import as_operand
from .table import RowTable


class ValueTable(RowTable):
    """Values of all key pairs, ``weight`` (n_keys^2, D)."""

    def forward(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the sum of ``rows`` (B, T, K), weighted by ``weights`` (B, T, K): (B, T, D)."""
        values = self.values()
        summed = nn.functional.embedding_bag(
            rows.flatten(0, -2),
            values,
            mode="sum",
            per_sample_weights=weights.flatten(0, -2).to(values.dtype),
        )
        return summed.unflatten(0, rows.shape[:-1])


class ProductKeyMemory(nn.Module):
    """Finds each head's best of n_keys^2 values through two sets of n_keys half keys.

    A query is split in two; each half is scored against its n_keys half keys; the best ``top_k`` of
    either side are paired, and the best ``top_k`` pairs' values are averaged by a softmax of their
    scores, summed over heads, gated by the input and projected.
    """

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        width, keys = config.hidden_size, config.product_keys
        self.heads, self.top_k = config.engram_heads, config.product_key_top_k
        self.key_bound = config.product_key_dim**-0.5
        self.query_proj = Linear(width, self.heads * config.product_key_dim)
        self.keys = nn.Parameter(torch.zeros(2, self.heads, keys, config.product_key_dim // 2))
        self.table = ValueTable(keys**2, width)
        self.memory_rows = nn.Identity()
        self.gate_proj = Linear(width, width)
        self.value_proj = Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the memory adds, for the normed stream ``hidden_states`` (B, T, D)."""
        x = as_operand(hidden_states)
        scores, rows = self.lookup(x.flatten(0, -2))
        weights = scores.softmax(dim=-1)
        places = (*hidden_states.shape[:-1], -1)
        read = self.table(rows.view(places), weights.view(places))
        gate = nn.functional.silu(self.gate_proj(x))
        output: torch.Tensor = self.value_proj(as_operand(self.memory_rows(read)) * gate)
        return output

    def lookup(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and rows of the best values for ``x`` (N, D), each (N, heads, top_k)."""
        halves = self.query_proj(x).view(len(x), self.heads, 2, -1)
        scores = torch.einsum("nhsk,shck->snhc", halves, self.keys.to(halves.dtype))
        wide = torch.promote_types(scores.dtype, torch.float32)
        best, places = scores.to(wide).topk(self.top_k, dim=-1)
        pairs = (best[0].unsqueeze(-1) + best[1].unsqueeze(-2)).flatten(-2)
        found, chosen = pairs.topk(self.top_k, dim=-1)
        first = places[0].gather(-1, chosen // self.top_k)
        second = places[1].gather(-1, chosen % self.top_k)
        return found, first * self.keys.shape[2] + second


class NoFeedForward(nn.Module):
    """Stands where a memory has taken the feed-forward layer's place; adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros in the shape of ``hidden_states``."""
        return torch.zeros_like(hidden_states)


class FeedForwardWithMemory(nn.Module):
    """A feed-forward layer and a memory that read the same normed stream; outputs are added."""

    def __init__(self, feed_forward: nn.Module, memory: ProductKeyMemory) -> None:
        super().__init__()
        self.feed_forward, self.memory = feed_forward, memory

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform ``hidden_states`` (B, T, D)."""
        output: torch.Tensor = self.feed_forward(hidden_states) + self.memory(hidden_states)
        return output
