"""Attention over chosen blocks of keys (mixture of block attention, arXiv:2502.13189).

Keys are cut into blocks by position. A query sees its own block up to itself, and of the whole
blocks before it those ``sparse_top_k`` whose mean key it matches best, chosen by each head for
itself. The choice is a mask over all keys: it costs as much as full attention and shows what a
sparse kernel would compute.
"""

from typing import Any

import torch
from torch import nn

from .attention import EngramAttention
from .configuration_engram import EngramConfig


class BlockSparseAttention(EngramAttention):
    """Grouped-query attention whose queries see few blocks of keys."""

    def __init__(self, config: EngramConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.block_size, self.top_k = config.sparse_block_size, config.sparse_top_k

    def _trains_on_cpu(self, x: torch.Tensor, options: dict[str, Any]) -> bool:
        return False

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to the chosen blocks.

        ``options`` hold the keys' positions (B or 1, S) and, where rows hold several texts, the
        number (B, T) of each text's first block.
        """
        rest = dict(options)
        positions: torch.Tensor = rest.pop("key_positions")
        first: torch.Tensor | None = rest.pop("first_blocks", None)
        seen = self.seen(query, key, positions.expand(len(query), -1), first)
        if mask is None or mask.dtype == torch.bool:
            return super()._attend(query, key, value, seen if mask is None else seen & mask, rest)
        hidden = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        return super()._attend(query, key, value, hidden, rest)

    @torch.no_grad()
    def seen(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        positions: torch.Tensor,
        first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return which keys each query sees, (B, heads, T, S).

        Args:
            query: (B, heads, T, d), at the last T of the positions.
            key: (B, kv_heads, S, d).
            positions: (B, up to S), -1 at padding; what a static cache has room for beyond them
                is not seen.
            first: (B, T), the first block that each query may choose; by default 0.
        """
        here = positions[:, None, -query.shape[2] :, None]
        positions = nn.functional.pad(positions, (0, key.shape[2] - positions.shape[1]), value=-1)
        block = positions.div(self.block_size, rounding_mode="floor")
        means = block_means(key, block)
        groups = query.shape[1] // key.shape[1]
        match = query @ means.repeat_interleave(groups, dim=1).mT
        own = here.div(self.block_size, rounding_mode="floor")
        number = torch.arange(means.shape[2], device=key.device)
        earlier = number < own
        if first is not None:
            earlier = earlier & (number >= first[:, None, :, None])
        match = match.masked_fill(~earlier, float("-inf"))
        best = match.topk(min(self.top_k, means.shape[2]), dim=-1).indices
        chosen = torch.zeros_like(match, dtype=torch.bool).scatter(-1, best, True) & earlier
        column = block[:, None, None, :].clamp_min(0).expand(*match.shape[:3], -1)
        places = positions[:, None, None, :]
        return (chosen.gather(-1, column) | (column == own)) & (places >= 0) & (places <= here)


def block_means(key: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Return the mean key of each block, (B, kv_heads, blocks, d).

    Args:
        key: (B, kv_heads, S, d).
        block: (B, S), each key's block; below 0 at padding, which counts nowhere.
    """
    count = int(block.max()) + 1
    # Padding goes to a block of its own, which is cut off.
    place = torch.where(block < 0, count, block)[:, None, :, None]
    sums = key.new_zeros(*key.shape[:2], count + 1, key.shape[3])
    sums.scatter_add_(2, place.expand_as(key), key)
    sizes = sums.new_zeros(len(key), 1, count + 1, 1)
    sizes.scatter_add_(2, place, torch.ones_like(place, dtype=sizes.dtype))
    return (sums / sizes.clamp_min(1))[:, :, :count]
