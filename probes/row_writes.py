"""Writing into a memory's table for one forward pass, a different write for each prompt.

Adding to what is read wherever a changed row is read is the same as changing the table; it leaves
the table alone, and a batch can try as many writes as it has prompts. What a memory's rows are used
for elsewhere would change with the table, but not so: such tables are not written to.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from probes.ngram_rows import RowMemory, row_memories

NO_ROW = -1


class RowWrites(NamedTuple):
    """What is added to rows, separately for each of B prompts (or B = 1: for all of them).

    Attributes:
        rows: numbers in the whole table, (B, R); no number twice for one prompt but ``NO_ROW``.
        change: (B, R, d).
    """

    rows: Tensor
    change: Tensor


def writable(adapter: Adapter) -> list[RowMemory]:
    """List the memories whose rows can be written to; all that look tokens up, or none.

    None where one of them does not show its rows, or has its table in common with another layer or
    with the token embedding.
    """
    memories = row_memories(adapter)
    seen = all(Tap("memory_rows", memory.layer) in adapter.places for memory in memories)
    weights = [getattr(part, "weight", None) for part in (adapter.embedding, adapter.unembedding)]
    others = {weight.data_ptr() for weight in weights if isinstance(weight, Tensor)}
    tables = [memory.table.data_ptr() for memory in memories]
    alone = len(set(tables)) == len(tables) and others.isdisjoint(tables)
    return memories if seen and alone else []


@contextmanager
def written(adapter: Adapter, writes: Mapping[int, RowWrites]) -> Iterator[None]:
    """Let the memory of each layer read changed rows, for forward passes over B prompts."""
    with ExitStack() as stack:
        taps = [Tap("memory_index", layer) for layer in writes]
        read = stack.enter_context(adapter.record(taps))
        for layer, write in writes.items():
            scale = adapter.reads[layer].scale

            def edit(
                rows: Tensor, layer: int = layer, write: RowWrites = write, scale: float = scale
            ) -> Tensor:
                return rows + scale * changes_read(read[Tap("memory_index", layer)], write)

            stack.enter_context(adapter.edit("memory_rows", layer, edit))
        yield


def changes_read(read: Tensor, write: RowWrites) -> Tensor:
    """Return what the writes add to the rows that are read.

    Args:
        read: (B, T, heads).
        write: for B prompts or for all alike.

    Returns:
        (B, T, heads * d), differentiable in ``write.change``.
    """
    rows = write.rows.expand(len(read), -1)
    change = write.change.expand(len(read), -1, -1)
    same = (read[..., None] == rows[:, None, None, :]).to(change.dtype)
    return torch.einsum("bthr,brd->bthd", same, change).flatten(2)


def distinct(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Blank what repeats an earlier row of the same prompt, in (B, R), and likewise in others."""
    earlier = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(-1)
    return tuple(part.masked_fill(earlier, NO_ROW) for part in (rows, *others))
