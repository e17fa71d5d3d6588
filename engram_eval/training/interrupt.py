"""A polite end: SIGTERM and Ctrl-C wait for the step to finish and a resume point to be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Remembers which signal asked the run to end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def leave(self) -> None:
        """End as the signal would have ended the process, had it not been caught.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: 128 + the signal's number otherwise, as shells report it.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Hold back SIGTERM and SIGINT while the block runs; a second one acts at once.

    Signals reach only the main thread, and elsewhere Python refuses to set handlers: there the
    block runs without.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    caught = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in caught}

    def remember(number: int, frame: FrameType | None) -> None:
        interrupt.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in caught:
        signal.signal(number, remember)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
