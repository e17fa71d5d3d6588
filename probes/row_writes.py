"""Writing into a memory's table for one forward pass, a different write for each prompt.

Adding to what is read wherever a changed row is read is the same as changing the table; it leaves
the table alone, and a batch can try as many writes as it has prompts.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter
from probes.ngram_rows import rows_read

NO_ROW = -1


class RowWrites(NamedTuple):
    """What is added to rows, separately for each of B prompts (or B = 1: for all of them).

    Attributes:
        rows: numbers in the whole table, (B, R); no number twice for one prompt but ``NO_ROW``.
        change: (B, R, d).
    """

    rows: Tensor
    change: Tensor


@contextmanager
def written(adapter: Adapter, tokens: Tensor, writes: Mapping[int, RowWrites]) -> Iterator[None]:
    """Let the memory of each layer read changed rows, for a forward pass over tokens (B, T)."""
    read = rows_read(adapter, tokens)
    with ExitStack() as stack:
        for layer, write in writes.items():
            extra = changes_read(read[layer], write)

            def edit(rows: Tensor, extra: Tensor = extra) -> Tensor:
                return rows + extra

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
