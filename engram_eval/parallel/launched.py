"""Whether there are other processes, without importing torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SIGN = "TORCHELASTIC_RUN_ID"


def launched() -> bool:
    """Tell whether ``torchrun`` has started this process."""
    return SIGN in os.environ


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if there were no others, which wait meanwhile."""
    sign = os.environ.pop(SIGN, None)
    try:
        yield
    finally:
        if sign is not None:
            os.environ[SIGN] = sign
