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
        pool: the thread. It stays, because each new one would start a team of its own for torch.
        stream: of the GPU where the values are wanted, on which they are copied; None on a CPU. It
            stays, too: memory that was freed on one stream is not used on another.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        read: Callable[[torch.Tensor], Any],
        pool: Executor,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self.rows = rows
        self._stream, self._ready, self._event = stream, None, None
        if stream is not None:
            # The rows may be on their way still, from a stream that the reading one must wait for.
            self._ready = torch.cuda.current_stream(stream.device).record_event()
        self._values = pool.submit(self._read, read)

    @torch.no_grad()
    def _read(self, read: Callable[[torch.Tensor], Any]) -> Any:
        if self._stream is None or self._ready is None:
            return read(self.rows)
        self._stream.wait_event(self._ready)
        with torch.cuda.stream(self._stream):
            values = read(self.rows)
            self._event = self._stream.record_event()
        return values

    def wait(self) -> None:
        """Wait until nothing is read any more."""
        wait([self._values])

    def result(self) -> Any:
        """Wait for the values and return them."""
        found = self._values.result()
        if self._stream is not None and self._event is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(self._event)
            for values in (found,) if isinstance(found, torch.Tensor) else found:
                if values.is_cuda:
                    values.record_stream(current)
        return found
