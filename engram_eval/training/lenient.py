"""Batches whose loss is not finite: none is forgiven unless the user says how many."""

from collections.abc import Mapping

import torch
from torch import Tensor


class BadBatches:
    """Counts the batches that were skipped.

    Args:
        allowed: how many a run may skip.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed, self.skipped = allowed, 0

    def count(self) -> bool:
        """Count one more bad batch; return whether the run may go on."""
        self.skipped += 1
        return self.skipped <= self.allowed

    def advice(self) -> str:
        """Say what the user can do about it."""
        if not self.allowed:
            return "; --skip-bad-batches N leaves such batches out"
        return f"; {self.allowed} such batches were skipped before, as --skip-bad-batches allows"

    def pack(self) -> dict[str, Tensor]:
        """Return what has to survive an interruption."""
        return {"skipped_batches": torch.tensor(self.skipped)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensor of ``pack`` back."""
        self.skipped = int(tensors["skipped_batches"])
