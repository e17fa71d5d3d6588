"""The stage of a study that times a model with its table in different places."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engram_eval.bench.offload import BATCH, LENGTH, bench_offload
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.scales import SCALES
from engram_eval.stage_config import OffloadStage

NAME = "offload"
STEPS = {"prefill": BATCH * LENGTH, "decode": BATCH}
"""Tokens of one forward pass: all texts as a whole, or the next token of each."""


def time_storages(
    inputs: Mapping[str, Path],
    config: OffloadStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Time prefill and decoding; every storage is called a model of its own.

    Args:
        inputs: the measurement before this one, if any; only its end matters.
        config: which model, which sizes of its table, how long.
        seed: number of the measurement.
        out: not used; part of every stage's signature.
        report: shows progress.

    Returns:
        Per storage, phase and size of the table (``250x`` its own) ``tokens_per_s``,
        ``ms_per_step``, a forward pass of 8 texts, and ``lost_share``, against the table on the
        device; per storage and size ``table_bytes`` and, with a cache, ``cache_hit_rate``.

    Raises:
        UserError: not a single table fits into memory.
    """
    sizes = {_rows(config.scale, times): f"{times}x" for times in config.tables}
    found = bench_offload(config.seconds, report, (config.scale,), tuple(sizes), math.inf)
    if not found:
        raise UserError(f"offload.tables={list(config.tables)}: none fits into this memory")
    return [row for measured in found for row in _metric_rows(measured, sizes[measured["rows"]])]


def _rows(scale: str, times: int) -> int:
    """Return how many rows a table has that is so many times the scale's; 0 for its own."""
    memory = SCALES[scale].memory
    return 0 if times == 1 else times * sum(memory["engram_rows"]) * int(memory["engram_heads"])


def _metric_rows(measured: Mapping[str, Any], size: str) -> Iterator[MetricRow]:
    model = arm_name(measured["storage"])
    for phase, tokens in STEPS.items():
        rate, labels = measured[f"{phase}_tokens_per_s"], {"phase": phase, "table": size}
        yield MetricRow(NAME, "tokens_per_s", rate, model=model, slice=labels)
        yield MetricRow(NAME, "ms_per_step", 1000 * tokens / rate, model=model, slice=labels)
        lost = measured[f"{phase}_loss_pct"] / 100
        yield MetricRow(NAME, "lost_share", lost, model=model, slice=labels)
    labels = {"table": size}
    yield MetricRow(NAME, "table_bytes", measured["table_mb"] * 1e6, model=model, slice=labels)
    if measured["cache_hits_pct"] is not None:
        hits = measured["cache_hits_pct"] / 100
        yield MetricRow(NAME, "cache_hit_rate", hits, model=model, slice=labels)


def arm_name(storage: str) -> str:
    """Return what rows call a storage: ``host_prefetch`` for ``host, prefetch``."""
    return storage.replace(", ", "_")
