"""Claims of ``offload``: what throughput is lost where the table does not lie on the device.

A measurement takes all storages in turn and counts as a seed; arms are storages, scores natural
logarithms of tokens per second, so that a difference of 0.03 is 3 %. What they say holds for the
machine that measured.
"""

from engram_eval.claims.claim import Declare, Rows, Score, more_than
from engram_eval.studies.offload import TABLES

TABLE = "arXiv:2601.07372 Table 4"
SAME = "on a CPU the device's memory is the host's"
LOST = (
    "1.9 % (4B) and 2.8 % (8B) with 100B parameters in host memory, prefill and decoding together; "
    f"{SAME}"
)
SMALLEST = 0.03
"""The most that is published as lost."""

OWN, LARGEST = f"{min(TABLES)}x", f"{max(TABLES)}x"
UNIT = "relative difference in throughput"


def _speed(phase: str, *tables: str) -> Score:
    """Return the logarithm of a phase's speed; of two tables, how much the first is ahead."""
    terms = tuple(
        (weight, Rows("offload", "tokens_per_s", {"phase": phase, "table": table}))
        for weight, table in zip((1.0, -1.0), tables, strict=False)
    )
    return Score(terms, log=True, unit=UNIT)


_claim = Declare("offload.", SMALLEST, "paired")


OFFLOAD = (
    *(
        _claim(
            f"host_{phase}",
            f"With its table in host memory, fetched ahead, a model {what} as fast, within 3 %",
            TABLE,
            LOST,
            more_than("device", "host_prefetch"),
            _speed(phase, LARGEST),
            prediction="equal",
        )
        for phase, what in (("prefill", "reads"), ("decode", "writes"))
    ),
    _claim(
        "size_is_free",
        "In host memory a larger table costs as much as a small one, within 3 %",
        "arXiv:2601.07372 section 2.5",
        f"what is moved grows with the rows that are read, not with the table; no figure; {SAME}",
        more_than("device", "host_prefetch"),
        _speed("prefill", LARGEST, OWN),
        prediction="equal",
    ),
    *(
        _claim(
            f"disk_{phase}",
            f"Even with its table on disk, fetched ahead, a model {what} as fast, within 3 %",
            "arXiv:2601.07372 section 2.5",
            "a hierarchy down to NVMe is proposed, without a figure",
            more_than("device", "disk_prefetch"),
            _speed(phase, LARGEST),
            prediction="equal",
        )
        for phase, what in (("prefill", "reads"), ("decode", "writes"))
    ),
    _claim(
        "prefetch",
        "Fetching ahead, behind the block before, makes a table on disk faster",
        "arXiv:2601.07372 section 2.5",
        "rows are known before the forward pass; no figure without fetching ahead",
        more_than("disk_prefetch", "disk"),
        _speed("prefill", LARGEST),
    ),
    _claim(
        "cache",
        "A cache of a tenth of the rows makes a table on disk faster",
        "arXiv:2601.07372 section 2.5",
        "argued from Zipf's law, without a figure",
        more_than("disk_prefetch_cache", "disk_prefetch"),
        _speed("decode", LARGEST),
    ),
)
