"""The rows that a memory reads: which, how wide, in how many heads."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.models.layout import table_layouts


class RowMemory(NamedTuple):
    """A memory that finds its rows by the token ids alone.

    Attributes:
        layer: 0-based.
        table: rows of all heads, one below the other, (R, d).
        head_rows: rows of each head, orders outermost.
        orders: length of the n-gram that each head looks up, ascending.
    """

    layer: int
    table: Tensor
    head_rows: tuple[int, ...]
    orders: tuple[int, ...]


def row_memories(adapter: Adapter) -> list[RowMemory]:
    """List a model's memories that look rows up by token; empty for a model without one."""
    core: Any = adapter.backbone
    if getattr(core, "token_history", None) is None:
        return []
    config, found = core.config, []
    lengths = [1] if config.engram_memory == "per_layer" else config.engram_ngram_orders
    for layer in adapter.memory_layers:
        if Tap("memory_rows", layer) not in adapter.places:
            continue
        sizes = table_layouts(config)[layer].head_rows
        orders = tuple(length for length in lengths for _ in range(len(sizes) // len(lengths)))
        found.append(RowMemory(layer, core.memory(layer).table.values(), sizes, orders))
    return found


@torch.no_grad()
def rows_read(adapter: Adapter, tokens: Tensor) -> dict[int, Tensor]:
    """Return layer -> (B, T, heads) rows of the whole table that tokens (B, T) read."""
    core: Any = adapter.backbone
    rows: dict[int, Tensor] = core.ngram_rows(tokens)
    return rows


@torch.no_grad()
def ngram_ids(adapter: Adapter, tokens: Tensor, order: int) -> Tensor:
    """Number the n-grams that tokens (1, T) complete, as the memory sees them, (T,).

    Equal n-grams have equal numbers, counted from 0.
    """
    core: Any = adapter.backbone
    history = core.token_history(tokens, tokens.shape[1])[:, 0]
    ids = torch.zeros_like(history[0])
    for back in range(order):
        ids = (ids * (int(history[back].max()) + 1) + history[back]).unique(return_inverse=True)[1]
    return ids
