"""Memory that is kept for the next step, given back between two stages, or left unsearched."""

import subprocess
import sys

import pytest
import torch

from engram_eval.allocator import give_back_freed_memory

CODE = """
import gc, resource, sys
from engram_eval.allocator import (
    give_back_freed_memory, keep_freed_memory, kept_out_of_collections,
)

def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 1e6

assert keep_freed_memory()
held = [bytearray(4_000_000) for _ in range(50)]
for block in held:
    block[::4096] = b"x" * len(block[::4096])
del held, block
kept = resident_mb()
assert give_back_freed_memory()
print(kept - resident_mb())

with kept_out_of_collections() as keep:
    assert gc.get_freeze_count() == 0
    keep()
    outside = gc.get_freeze_count()
    assert outside > 1000
    with kept_out_of_collections() as keep:
        keep()
        assert gc.get_freeze_count() == outside, "it is the caller's"
    assert gc.get_freeze_count() == outside
assert gc.get_freeze_count() == 0
"""


def test_a_gpu_gets_back_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(True))
    give_back_freed_memory()
    assert not given, "to ask would start CUDA"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    give_back_freed_memory()
    assert given == [True]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_what_is_kept_can_be_given_back() -> None:
    # In a process of its own: the switch stays for good.
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) > 150
