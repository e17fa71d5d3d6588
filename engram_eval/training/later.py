"""Numbers that a GPU has yet to work out, read when others have been started."""

import torch
from torch import Tensor


class Later:
    """A tensor on its way to the CPU, which waits for it when it is read, and for nothing else.

    Args:
        tensor: copied from a GPU into pinned memory; one on the CPU is kept as it is.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._here.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Tensor:
        """Return the tensor on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._here.cpu()
