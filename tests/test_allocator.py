"""Memory that is kept for the next step, and given back between two stages."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from engram_eval.allocator import give_back_freed_memory, keep_freed_memory

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
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_what_is_kept_can_be_given_back() -> None:
    # In a process of its own: the switch stays for good.
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) > 150
