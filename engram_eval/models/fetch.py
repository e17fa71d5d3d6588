"""Reading ahead of the layer that needs what is read."""

import threading
from collections.abc import Callable
from typing import Any

import torch


class Fetch:
    """Rows that are being read in a thread of their own.

    Args:
        rows: what is read; identifies the fetch.
        read: returns the values of ``rows``.
        device: where the values are wanted; on CUDA they are copied on a stream of their own.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        read: Callable[[torch.Tensor], Any],
        device: torch.device,
    ) -> None:
        self.rows = rows
        self._values: Any = None
        self._error: BaseException | None = None
        self._device, self._event = device, None
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self._thread.start()

    def _run(self, read: Callable[[torch.Tensor], Any]) -> None:
        try:
            with torch.no_grad():
                if self._device.type == "cuda":
                    self._read_on_side_stream(read)
                else:
                    self._values = read(self.rows)
        # It is raised where the values are asked for.
        except BaseException as error:
            self._error = error

    def _read_on_side_stream(self, read: Callable[[torch.Tensor], Any]) -> None:
        with torch.cuda.stream(torch.cuda.Stream(self._device)) as stream:
            self._values = read(self.rows)
            self._event = stream.record_event()

    def wait(self) -> None:
        """Wait until nothing is read any more."""
        self._thread.join()

    def result(self) -> Any:
        """Wait for the values and return them."""
        self.wait()
        if self._error is not None:
            raise self._error
        if self._event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._event)
            values = self._values if isinstance(self._values, torch.Tensor) else self._values[-1]
            values.record_stream(current)
        return self._values
