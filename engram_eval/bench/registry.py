"""What can be measured with ``engram-eval bench``, and how the rows look as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

# Called as f(seconds, report); returns rows of plain data.
BENCHES: dict[str, str] = {
    "train": "engram_eval.bench.train:bench_train",
    "evaluate": "engram_eval.bench.evaluate:bench_evaluate",
    "lookup": "engram_eval.bench.lookup:bench_lookup",
    "offload": "engram_eval.bench.offload:bench_offload",
    "probe": "probes.bench:bench_probe",
}
# Called as f(model's folder, corpus's folder or None, seconds, report).
MODEL_BENCHES: dict[str, str] = {"quantised": "engram_eval.bench.quantised:bench_quantised"}


def bench_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text; numbers to three digits, a dash where there is none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
