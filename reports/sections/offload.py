"""Where the table lies: throughput and latency, storage by storage."""

from collections.abc import Mapping, Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.blocks import Cell, Column, Table, flat_rows
from reports.load import Study
from reports.numbers import fixed, listing, percent
from reports.query import ordered, pick, values
from reports.sections.columns import seeds_cell

NAME = "offload"
DEVICE, HOST = "device", "host_prefetch"
PHASES = {"prefill": "reading", "decode": "writing"}


def offload_tables(study: Study) -> list[Table]:
    """Return a table with a row per storage and size; none where nothing was timed."""
    rows = [row for row in pick(study.rows, name=NAME) if "table" in row.slice]
    if not rows:
        return []
    columns = [Column("Table", numeric=False), Column("Storage", numeric=False)]
    for phase in PHASES.values():
        columns += [Column(label, band=phase) for label in ("tokens/s", "ms per pass", "lost, %")]
    columns.append(Column("cache hits, %"))
    return [
        Table(
            "Throughput and latency, by where the table lies",
            columns,
            [
                _cells(rows, size, storage)
                for size in ordered(row.slice["table"] for row in rows)
                for storage in ordered((str(row.model) for row in rows), first=(DEVICE,))
                if pick(rows, model=storage, slice={"table": size})
            ],
            ident=NAME,
            note="Tables in multiples of the scale's own. A pass reads 8 texts as a whole, or "
            "writes the next token of each. Lost: against the table on the device in the same "
            "measurement. The middle of all measurements, and below it the lowest and highest.",
            data=flat_rows(rows),
        )
    ]


def _cells(rows: Sequence[MetricRow], size: str, storage: str) -> list[Cell]:
    mine = pick(rows, model=storage)
    of_size = partial(_measured, mine, {"table": size})
    size_bytes = of_size("table_bytes")[0]
    cells = [Cell(f"{size}, {fixed(size_bytes / 1e6, 1)} MB", size_bytes), Cell(storage)]
    for phase in PHASES:
        found = partial(_measured, mine, {"phase": phase, "table": size})
        cells.append(seeds_cell(found("tokens_per_s"), partial(fixed, digits=0)))
        cells.append(seeds_cell(found("ms_per_step"), partial(fixed, digits=2)))
        cells.append(seeds_cell(found("lost_share"), percent))
    return [*cells, seeds_cell(of_size("cache_hit_rate"), percent)]


def _measured(rows: Sequence[MetricRow], labels: Mapping[str, str], metric: str) -> list[float]:
    return values(pick(rows, metric=metric, slice=labels))


def told(study: Study) -> str:
    """Say in a sentence what the largest table costs in host memory; "" where not timed."""
    rows = pick(study.rows, name=NAME, metric="lost_share", model=HOST)
    if not rows:
        return ""
    size = max((row.slice["table"] for row in rows), key=lambda text: int(text.rstrip("x")))
    parts = []
    for phase, verb in PHASES.items():
        found = sorted(_measured(rows, {"phase": phase, "table": size}, "lost_share"))
        spread = " to ".join(percent(value) for value in dict.fromkeys((found[0], found[-1])))
        parts.append(f"{spread} % of its speed of {verb}")
    return (
        f"With a table of {size} the rows in host memory, fetched ahead, the model loses "
        f"{listing(parts)} on this machine (every measurement)."
    )
