"""Runs a function in several processes that find each other as torchrun's do."""

import _socket
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    """Ask the kernel, past the block on sockets that the tests are under."""
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    return int(port)


def _entry(
    function: Callable[..., Any], rank: int, world: int, port: int, box: Any, args: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    box.put((rank, function(*args)))


def in_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``function(*args)`` returns in each process, by rank."""
    context = multiprocessing.get_context("fork")
    box, port = context.Queue(), free_port()
    workers = [
        context.Process(target=_entry, args=(function, rank, world, port, box, args))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    results = {}
    while len(results) < world:
        if any(worker.exitcode not in (None, 0) for worker in workers):
            for worker in workers:
                worker.terminate()
            raise AssertionError("a process failed; its traceback stands above")
        if box.empty():
            time.sleep(0.02)
        else:
            rank, value = box.get()
            results[rank] = value
    for worker in workers:
        worker.join()
    return [results[rank] for rank in range(world)]
