"""Reading ahead of the layer that needs what is read."""

from collections.abc import Callable
from concurrent.futures import Executor, wait
from typing import Any

import torch


class Fetch:
    """Rows that are being read in another thread.

    Args:
        rows: what is read; identifies the fetch.
        read: returns the values of ``rows``.
        device: where the values are wanted; on CUDA they are copied on a stream of their own.
        pool: the thread. It stays, because each new one would start a team of its own for torch.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        read: Callable[[torch.Tensor], Any],
        device: torch.device,
        pool: Executor,
    ) -> None:
        self.rows = rows
        self._device, self._event = device, None
        # The rows may be on their way still, from a stream that the reading one must wait for.
        on_gpu = device.type == "cuda"
        self._ready = torch.cuda.current_stream(device).record_event() if on_gpu else None
        self._values = pool.submit(self._read, read)

    @torch.no_grad()
    def _read(self, read: Callable[[torch.Tensor], Any]) -> Any:
        if self._device.type != "cuda":
            return read(self.rows)
        stream = torch.cuda.Stream(self._device)
        assert self._ready is not None
        stream.wait_event(self._ready)
        with torch.cuda.stream(stream):
            values = read(self.rows)
            self._event = stream.record_event()
        return values

    def wait(self) -> None:
        """Wait until nothing is read any more."""
        wait([self._values])

    def result(self) -> Any:
        """Wait for the values and return them."""
        found = self._values.result()
        if self._event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._event)
            values = found if isinstance(found, torch.Tensor) else found[-1]
            values.record_stream(current)
        return found
