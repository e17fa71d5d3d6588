"""How many rows of which width each memory's table has; the ledger counts by the same function."""

from collections.abc import Sequence
from typing import NamedTuple

from .configuration_engram import EngramConfig
from .hashing import allot_primes


class TableLayout(NamedTuple):
    """Shape of one memory's table.

    Attributes:
        head_rows: rows of each part of the table that is addressed on its own.
        row_dim: width of a row.
        reads: rows that one token reads.
    """

    head_rows: tuple[int, ...]
    row_dim: int
    reads: int

    @property
    def params(self) -> int:
        """Numbers in the table."""
        return sum(self.head_rows) * self.row_dim


def table_layouts(
    config: EngramConfig, rows: Sequence[int] | None = None
) -> dict[int, TableLayout]:
    """Return the table of each memory layer.

    Args:
        config: architecture.
        rows: instead of ``config.engram_rows``.
    """
    if config.engram_memory == "per_layer":
        one = TableLayout((config.vocab_size,), config.engram_row_dim, 1)
        return dict.fromkeys(config.engram_layers, one)
    if config.engram_memory == "product_key":
        reads = config.engram_heads * config.product_key_top_k
        one = TableLayout((config.product_keys**2,), config.hidden_size, reads)
        return dict.fromkeys(config.engram_layers, one)
    return _ngram_layouts(config, config.engram_rows if rows is None else rows)


def _ngram_layouts(config: EngramConfig, rows: Sequence[int]) -> dict[int, TableLayout]:
    """Lay out n-gram tables; an order without collisions needs one wide row instead of heads."""
    layers, heads, width = config.engram_layers, config.engram_heads, config.engram_row_dim
    if config.engram_index == "exact":
        one = TableLayout(tuple(rows), heads * width, len(rows))
        return dict.fromkeys(layers, one)
    count = len(rows) * heads
    if config.engram_index == "single":
        return dict.fromkeys(layers, TableLayout((1,) * count, width, count))
    primes = allot_primes(layers, rows, heads)
    return {layer: TableLayout(primes[layer], width, count) for layer in layers}
