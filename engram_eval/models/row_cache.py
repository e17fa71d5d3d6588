"""Rows that are read often, kept where the model computes."""

from collections.abc import Callable

import torch

CHANCES = 3
"""So many misses of other rows a slot's owner survives after it was read."""


class RowCache:
    """A direct-mapped cache: row r may stand in slot ``r % size``; hashed rows fall evenly.

    An owner that was read lately keeps its slot against ``CHANCES`` batches that want it for other
    rows, so that rare rows do not push out frequent ones. Whole batches are looked up at once.

    Args:
        size: slots.
        row_dim: numbers in a row.
        dtype, device: of the kept rows.

    Attributes:
        reads, hits: how many rows were asked for, and how many of them were here.
    """

    def __init__(
        self, size: int, row_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.rows = torch.zeros(size, row_dim, dtype=dtype, device=device)
        self.owner = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.chances = torch.zeros(size, dtype=torch.int8, device=device)
        self.reads = self.hits = 0

    def read(
        self, wanted: torch.Tensor, fetch: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return the rows ``wanted`` (N,), (N, row_dim); what is missing is fetched and kept.

        Args:
            wanted: row numbers on the cache's device.
            fetch: returns the rows of a (K,) tensor of numbers, on the cache's device.
        """
        slots = wanted % len(self.owner)
        hit = self.owner[slots] == wanted
        found = self.rows[slots]
        self.chances[slots[hit]] = CHANCES
        missing = (~hit).nonzero().flatten()
        self.reads, self.hits = self.reads + len(wanted), self.hits + len(wanted) - len(missing)
        if len(missing):
            fresh = fetch(wanted[missing])
            found[missing] = fresh
            self._admit(wanted[missing], slots[missing], fresh)
        return found

    def _admit(self, rows: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
        self.chances[slots] = self.chances[slots] - 1
        weak = self.chances[slots] < 0
        rows, slots, values = rows[weak], slots[weak], values[weak]
        self.owner[slots] = rows
        self.chances[slots] = 0
        # Of several rows that want one slot, one owns it now; only its values may be written.
        won = self.owner[slots] == rows
        self.rows[slots[won]] = values[won]

    def forget(self, rows: torch.Tensor | None = None) -> None:
        """Drop ``rows`` (N,), which have changed elsewhere; all by default."""
        if rows is None:
            self.owner.fill_(-1)
            return
        rows = rows.to(self.owner.device)
        slots = rows % len(self.owner)
        self.owner[slots[self.owner[slots] == rows]] = -1
