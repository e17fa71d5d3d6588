"""What looking rows up costs: hash and gather, beside a plain embedding and the slow reference."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_eval.allocator import keep_freed_memory
from engram_eval.models.hashing import NgramHash, TokenHistory, allot_primes, draw_multipliers
from engram_eval.models.reference import hash_ids
from engram_eval.models.table import RowTable
from engram_eval.progress import Reporter, Task
from engram_eval.threads import threads

ORDERS = (2, 3)
VOCABULARY = 4096
BATCH, LENGTH = 16, 256
REFERENCE_TOKENS = 256
ROWS = (10**4, 10**5, 10**6, 10**7, 10**8)
SHARE_OF_MEMORY = 0.75
"""A table may take so much of the memory that is free."""


class Shape(NamedTuple):
    """One way of cutting a token's memory into rows.

    Attributes:
        name: whose shape it is.
        heads: hash heads per order.
        row_dim: numbers in a row.
        dtype: of the numbers.
    """

    name: str
    heads: int
    row_dim: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.row_dim * self.dtype.itemsize


SHAPES = (
    Shape("quick", 4, 16, torch.float32),
    # d_mem = 1280 over two orders of eight heads (arXiv:2601.07372 Table 5).
    Shape("paper", 8, 80, torch.bfloat16),
)


class Lookup(NamedTuple):
    """A table and what is read from it."""

    history: TokenHistory
    index: NgramHash
    table: RowTable
    texts: list[Tensor]
    rows: list[Tensor]


def bench_lookup(seconds: float, report: Reporter) -> list[dict[str, Any]]:
    """Measure the time per token of hash and gather, for tables of 1e4 to 1e8 rows.

    Beside it ``torch.nn.Embedding`` reads the same rows from the same table (equal bytes, no
    hash), and the slow reference hashes the same text. Batches of 4,096 random tokens take turns,
    so many that together they touch more than a core's caches hold; of all turns the fastest
    counts, as in ``bench train``. One thread.

    Args:
        seconds: about how long to measure; making the large tables comes on top.
        report: shows progress.

    Returns:
        Rows with shape, rows, table_mb, fits_in (the least level of the memory hierarchy that
        holds the table), hash_ns, lookup_ns and embedding_ns per token, vs_embedding
        (lookup over embedding), reference_hash_ns and hash_vs_reference. What does not fit into
        memory has None instead.
    """
    keep_freed_memory()
    sizes = [(shape, rows) for shape in SHAPES for rows in ROWS]
    with threads(1), report.task("bench lookup", seconds) as task:
        return [_measure(shape, rows, seconds / len(sizes), task) for shape, rows in sizes]


def _measure(shape: Shape, rows: int, seconds: float, task: Task) -> dict[str, Any]:
    found: dict[str, Any] = {
        "shape": f"{shape.name}, {shape.row_bytes} B x {shape.heads * len(ORDERS)}",
        "rows": f"{rows:.0e}",
        "table_mb": rows * shape.row_bytes / 1e6,
    }
    if rows * shape.row_bytes > SHARE_OF_MEMORY * free_memory():
        task.advance(seconds, f"{rows:.0e} rows do not fit")
        return found | {"fits_in": "not in memory"}
    lookup = make_lookup(shape, rows)
    times = _take_turns(contenders(lookup), len(lookup.texts), time.monotonic() + seconds)
    task.advance(seconds, f"{shape.name}, {rows:.0e} rows")
    tokens = BATCH * LENGTH
    nanoseconds = {name: 1e9 * each / tokens for name, each in times.items()}
    slow = 1e9 * reference_seconds(lookup) / REFERENCE_TOKENS
    return found | {
        "fits_in": memory_level(rows * shape.row_bytes),
        "hash_ns": nanoseconds["hash"],
        "lookup_ns": nanoseconds["lookup"],
        "embedding_ns": nanoseconds["embedding"],
        "vs_embedding": nanoseconds["lookup"] / nanoseconds["embedding"],
        "reference_hash_ns": slow,
        "hash_vs_reference": slow / nanoseconds["hash"],
    }


def make_lookup(shape: Shape, rows: int, touched_mb: float = 64) -> Lookup:
    """Make a table of ``rows`` rows, and batches that read ``touched_mb`` of it together."""
    heads = shape.heads * len(ORDERS)
    primes = allot_primes([0], [rows // heads] * len(ORDERS), shape.heads)[0]
    index = NgramHash(ORDERS, primes, draw_multipliers(0, 0, ORDERS[-1], VOCABULARY))
    history = TokenHistory(VOCABULARY, ORDERS[-1], 0, 0, compressed=False)
    per_batch = BATCH * LENGTH * heads * shape.row_bytes
    draw = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(1, VOCABULARY, (BATCH, LENGTH), generator=draw)
        for _ in range(max(2, math.ceil(touched_mb * 1e6 / per_batch)))
    ]
    # Every page is written: one that never was is the same page of zeros for all.
    weight = torch.ones(sum(primes), shape.row_dim, dtype=shape.dtype)
    table = RowTable(0, shape.row_dim)
    table.weight = torch.nn.Parameter(weight, requires_grad=False)
    with torch.inference_mode():
        return Lookup(history, index, table, texts, [index(history(t, LENGTH)) for t in texts])


def contenders(lookup: Lookup) -> dict[str, Callable[[int], Tensor]]:
    """Return what is timed, each called with the number of a batch."""
    weight = lookup.table.weight
    plain = torch.nn.Embedding.from_pretrained(weight)

    def rows(number: int) -> Tensor:
        found: Tensor = lookup.index(lookup.history(lookup.texts[number], LENGTH))
        return found

    return {
        "hash": rows,
        "lookup": lambda number: lookup.table(rows(number)),
        "embedding": lambda number: plain(lookup.rows[number]),
    }


def _take_turns(
    contenders: dict[str, Callable[[int], Tensor]], batches: int, deadline: float
) -> dict[str, float]:
    """Return the seconds of each contender's fastest call, the first not counted.

    All contenders read batches of their own, so that none finds warm what another has just read.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for number in _until(deadline, least=4):
            for place, (name, read) in enumerate(contenders.items()):
                batch = (number * len(contenders) + place) % batches
                started = time.perf_counter()
                read(batch)
                times[name].append(time.perf_counter() - started)
    return {name: min(each[1:]) for name, each in times.items()}


def _until(deadline: float, least: int) -> Iterator[int]:
    number = 0
    while number < least or time.monotonic() < deadline:
        yield number
        number += 1


def reference_seconds(lookup: Lookup) -> float:
    """Return the seconds in which the reference hashes ``REFERENCE_TOKENS`` tokens."""
    ids = lookup.texts[0][0, :REFERENCE_TOKENS].tolist()
    primes, multipliers = lookup.index.primes.tolist(), lookup.index.multipliers.tolist()
    started = time.perf_counter()
    hash_ids(ids, ORDERS, primes, multipliers, 0)
    return time.perf_counter() - started


def free_memory() -> float:
    """Return the bytes that can be had without swapping; infinite where nobody counts them."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return math.inf
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def memory_level(size: int) -> str:
    """Return the least level of the memory hierarchy that holds ``size`` bytes: L1 .. DRAM."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    for folder in sorted(caches.glob("index*")):
        if (folder / "type").read_text().strip() == "Instruction":
            continue
        if size <= int((folder / "size").read_text().strip().removesuffix("K")) * 1024:
            return f"L{(folder / 'level').read_text().strip()}"
    return "DRAM"
