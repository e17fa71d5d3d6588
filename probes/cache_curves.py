"""What share of reads a cache of k rows would serve: LRU, LFU, and the k hottest in hindsight."""

import heapq

import numpy as np

from engram_eval.arrays import Floats, Ints


def lru_distances(reads: Ints) -> Ints:
    """Return each read's stack distance, (n,): distinct rows since its row was last read.

    A row that was never read before has -1. A cache of k rows that drops the least recently used
    one serves exactly the reads with a distance in [0, k) (Mattson et al. 1970).
    """
    previous = _previous_read(reads)
    # Rows read in between = reads in between that are the first since the last read of this row.
    counts = _earlier_and_at_most(previous, previous)
    return np.where(previous >= 0, counts - previous - 1, -1)


def _previous_read(reads: Ints) -> Ints:
    """Return where each row was read before, (n,); -1 where never."""
    order = np.argsort(reads, kind="stable")
    previous = np.full(len(reads), -1, dtype=np.int64)
    same = reads[order][1:] == reads[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _earlier_and_at_most(values: Ints, bounds: Ints) -> Ints:
    """Return for each i the number of j < i with values[j] <= bounds[i], (n,).

    Merge-sort counting: each pair (j, i) is met at the one level where they lie in neighbouring
    halves.
    """
    n = len(values)
    size = 1 << max(1, (n - 1).bit_length())
    span = int(values.max(initial=0)) + 2
    padded = np.full(size, span - 1, dtype=np.int64)
    padded[:n] = values
    counts = np.zeros(n, dtype=np.int64)
    places = np.arange(n)
    half = 1
    while half < size:
        blocks = padded.reshape(-1, half)
        block = np.arange(len(blocks))[:, None]
        ranked = np.sort(blocks, axis=1) + block * span
        own = places // half
        right = own % 2 == 1
        left = own[right] - 1
        found = np.searchsorted(
            ranked.reshape(-1), np.minimum(bounds[right], span - 2) + left * span, side="right"
        )
        counts[right] += found - left * half
        half *= 2
    return counts


def lru_hits(reads: Ints, sizes: Ints) -> Floats:
    """Return the hit rate of each cache size, (sizes,)."""
    distances = lru_distances(reads)
    known = np.sort(distances[distances >= 0])
    return np.searchsorted(known, sizes, side="left") / len(reads)


def lfu_hits(reads: Ints, sizes: Ints) -> Floats:
    """Return hit rates (sizes,) where the row that was read least so far is dropped.

    Counts go on for rows that are not in the cache; of equally frequent rows the one that was read
    longest ago is dropped.
    """
    return np.array([_lfu_hit_rate(reads.tolist(), int(size)) for size in sizes])


def _lfu_hit_rate(reads: list[int], size: int) -> float:
    counts: dict[int, int] = {}
    newest: dict[int, tuple[int, int]] = {}
    heap: list[tuple[int, int, int]] = []
    hits = 0
    for time, row in enumerate(reads):
        counts[row] = counts.get(row, 0) + 1
        if row in newest:
            hits += 1
        elif len(newest) >= size:
            while True:
                count, when, worst = heapq.heappop(heap)
                if newest.get(worst) == (count, when):
                    break
            del newest[worst]
        newest[row] = (counts[row], time)
        heapq.heappush(heap, (counts[row], time, row))
    return hits / len(reads)


def hottest_hits(reads: Ints, sizes: Ints) -> Floats:
    """Return what share the k rows read most here serve, (sizes,): the best fixed choice."""
    counts = np.sort(np.unique(reads, return_counts=True)[1])[::-1].cumsum()
    return counts[np.minimum(sizes, len(counts)) - 1] / len(reads)
