"""The rows that a memory reads: which, how wide, in how many heads."""

from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.look_back import look_back

WINDOW = 512
TOKENS_PER_BATCH = 4096


class RowMemory(NamedTuple):
    """A memory that finds its rows by the token ids alone.

    Attributes:
        layer: 0-based.
        table: rows of all heads, one below the other, (R, d); there may be more, which none reads.
        reads: what the adapter says of them.
    """

    layer: int
    table: Tensor
    reads: Reads

    @property
    def head_rows(self) -> tuple[int, ...]:
        """Rows of each head, orders outermost."""
        return self.reads.head_rows

    @property
    def orders(self) -> tuple[int, ...]:
        """Length of the n-gram that each head looks up."""
        lengths = self.reads.orders
        heads = len(self.head_rows) // len(lengths)
        return tuple(length for length in lengths for _ in range(heads))


def row_memories(adapter: Adapter) -> list[RowMemory]:
    """List a model's memories that look rows up by token; empty for a model without one.

    These are the memories of which an adapter says where their rows are and what they stand for.
    """
    return [
        RowMemory(layer, adapter.tables[layer], reads)
        for layer, reads in sorted(adapter.reads.items())
        if layer in adapter.tables and Tap("memory_index", layer) in adapter.places
    ]


@torch.no_grad()
def rows_read(adapter: Adapter, tokens: Tensor) -> dict[int, Tensor]:
    """Return layer -> (B, T, heads) rows of the whole table that tokens (B, T) read."""
    memories = row_memories(adapter)
    if adapter.look_up is not None or not memories:
        return {} if adapter.look_up is None else dict(adapter.look_up(tokens))
    taps = [Tap("memory_index", memory.layer) for memory in memories]
    with adapter.record(taps) as found, adapter.stop_after(taps[-1].layer):
        adapter.run(tokens)
    return {tap.layer: found[tap] for tap in taps}


def rows_of_text(adapter: Adapter, tokens: Tensor) -> dict[int, Tensor]:
    """Return layer -> (T, heads) rows that a text (T,) of any length reads.

    A model that must be run reads windows that overlap by what the longest n-gram reaches back.
    """
    memories = row_memories(adapter)
    if adapter.look_up is not None or not memories:
        return {layer: rows[0] for layer, rows in rows_read(adapter, tokens[None]).items()}
    reach = max(max(memory.orders) for memory in memories) - 1
    length = min(adapter.max_positions, reach + WINDOW)
    step = length - reach
    count = max(1, -(-(len(tokens) - reach) // step))
    padded = torch.nn.functional.pad(tokens, (0, reach + count * step - len(tokens)))
    windows = padded.unfold(0, length, step)
    parts = [rows_read(adapter, some) for some in windows.split(max(1, TOKENS_PER_BATCH // length))]
    return {
        memory.layer: _joined(torch.cat([part[memory.layer] for part in parts]), reach)[
            : len(tokens)
        ]
        for memory in memories
    }


def _joined(rows: Tensor, overlap: int) -> Tensor:
    """Lay windows (W, L, heads) end to end; each but the first begins in the one before."""
    return torch.cat((rows[0, :overlap], rows[:, overlap:].flatten(0, 1)))


@torch.no_grad()
def ngram_ids(adapter: Adapter, memory: RowMemory, tokens: Tensor, order: int) -> Tensor:
    """Number the n-grams that tokens (1, T) complete, as the memory sees them, (T,).

    Equal n-grams have equal numbers, counted from 0.
    """
    if adapter.look_back is None:
        history = look_back(tokens, max(memory.orders), memory.reads.boundary_id)[:, 0]
    else:
        history = adapter.look_back(tokens)[:, 0]
    history = history - history.min()
    ids = torch.zeros_like(history[0])
    for back in range(order):
        ids = (ids * (int(history[back].max()) + 1) + history[back]).unique(return_inverse=True)[1]
    return ids
