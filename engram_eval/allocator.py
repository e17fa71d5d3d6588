"""Freed memory stays with the process, so that the next step need not ask for it again.

glibc gives large blocks back to the kernel at once; each step then faults in every page anew,
which is a quarter of a small model's step on a CPU.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of the process.

    Returns:
        Whether the C library took it; others than glibc have no such switch.
    """
    mallopt = _from_glibc("mallopt")
    if mallopt is None:
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 64 << 20))
    return all(mallopt(option, value) for option, value in wanted)


def give_back_freed_memory() -> bool:
    """Return to the kernel what has been freed, between two pieces of work, and to a GPU's others.

    Returns:
        Whether the C library has this function.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = _from_glibc("malloc_trim")
    if trim is not None:
        trim(0)
    return trim is not None


@contextmanager
def kept_out_of_collections() -> Iterator[Callable[[], None]]:
    """Give a function that keeps what is there out of collections of garbage until the end.

    To look through modules and caches between two stages takes longer than most stages of a small
    study. Where the caller has frozen objects already, that stands, and nothing is done.
    """
    if gc.get_freeze_count():
        yield lambda: None
        return
    try:
        yield gc.freeze
    finally:
        gc.unfreeze()


def _from_glibc(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
