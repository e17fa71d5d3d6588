"""How often a table row serves another n-gram than the last time."""

import torch
from torch import Tensor

NOBODY = -1


class Collisions:
    """Remembers which n-gram read each row last.

    Args:
        rows: rows of the whole table, all heads together.
        device: where batches are.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        self.last = torch.full((rows,), NOBODY, dtype=torch.int64, device=device)

    def see(self, rows: Tensor, mixes: Tensor) -> Tensor:
        """Count one batch and return its collision rate.

        Args:
            rows: (B, T, heads), orders outermost.
            mixes: (B, T, orders), numbers >= 0 that tell n-grams apart.

        Returns:
            Scalar: share of the reads whose row was last read for another n-gram, in an earlier
            batch. The first read of a row is none.
        """
        readers = mixes.repeat_interleave(rows.shape[-1] // mixes.shape[-1], dim=-1)
        before = self.last[rows]
        rate = ((before != NOBODY) & (before != readers)).float().mean()
        # Of those that share a row in this batch one is kept, always the same one.
        self.last.scatter_reduce_(
            0, rows.flatten(), readers.flatten(), reduce="amax", include_self=False
        )
        return rate
