"""Locks between processes: files that are locked as long as somebody is at work."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engram_eval.errors import UserError


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Work alone, after everybody who came before."""
    with open(path, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def refusing_lock(path: Path) -> Iterator[None]:
    """Work alone or not at all; the file holds the number of the process.

    Raises:
        UserError: a process is at work; its number, and the file's folder, are named.
    """
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"{path.parent}: process {lock.read().strip()} is already at work"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a process is at work."""
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
