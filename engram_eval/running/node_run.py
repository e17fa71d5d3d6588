"""Run one stage: under a lock, with a record at the end, whatever happens."""

import dataclasses
import datetime
import time
import traceback
from pathlib import Path

from engram_eval import environment
from engram_eval.allocator import give_back_freed_memory
from engram_eval.config_json import to_dict
from engram_eval.errors import UserError
from engram_eval.locks import waiting_lock
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import SCHEMA, MetricRow, StageRecord, write_record
from engram_eval.stages import STAGES, resolve


def run_node(node: Node, store: Path, report: Reporter) -> str | None:
    """Run one stage and write its record; return the error of a failed one.

    Two processes never work on the same stage: the second waits, and finds it finished.

    Raises:
        UserError: bad input is the user's to mend, before anything else runs.
    """
    folder = node.folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / ".lock"):
        if node.done(store):
            return None
        (folder / "record.json").unlink(missing_ok=True)
        try:
            return _run(node, store, folder, report)
        finally:
            give_back_freed_memory()


def _run(node: Node, store: Path, folder: Path, report: Reporter) -> str | None:
    inputs = {name: source.folder(store) for name, source in node.inputs.items()}
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    error: str | None = None
    rows: list[MetricRow] = []
    try:
        function = resolve(STAGES[node.stage].function)
        rows = function(inputs, node.config, node.seed, folder, report)
    except UserError as mistake:
        _write(node, folder, started, time.monotonic() - clock, str(mistake), [])
        raise
    # A stage may fail in any way; the study records it and goes on with what does not need it.
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    _write(node, folder, started, time.monotonic() - clock, error, rows)
    return error


def _write(
    node: Node,
    folder: Path,
    started: datetime.datetime,
    seconds: float,
    error: str | None,
    rows: list[MetricRow],
) -> None:
    owned = tuple(_own(row, node) for row in rows)
    timing = _own(MetricRow(node.stage, "seconds", seconds), node)
    record = StageRecord(
        schema=SCHEMA,
        status="failed" if error else "ok",
        error=error,
        stage=node.stage,
        version=STAGES[node.stage].version,
        key=node.key,
        config=to_dict(node.config),
        inputs={name: source.key for name, source in node.inputs.items()},
        seed=node.seed,
        commit=environment.commit(),
        versions={**environment.versions(), "kernels": environment.kernels()},
        device=environment.device(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        metrics=(*owned, timing),
    )
    write_record(folder, record)


def _own(row: MetricRow, node: Node) -> MetricRow:
    """Fill in whose row it is, where the stage left it open."""
    return dataclasses.replace(
        row,
        run=row.run or node.key,
        model=row.model or node.model,
        seed=node.seed if row.seed is None else row.seed,
        stage=row.stage or node.stage,
    )
