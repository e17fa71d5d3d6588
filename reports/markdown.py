"""The key results as Markdown, for a README: the numbers of ``summary.json``, nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.intervals import interval_table, table_row
from reports.load import load_study
from reports.numbers import MISSING, count, fixed, quoted
from reports.sections.columns import uncounted
from reports.summary import summary

Values = Mapping[str, Mapping[str, float | None]]

SIDE_BY_SIDE = 5
"""Seeds of a model that a cell holds one by one."""


def results(study_dir: Path | str) -> str:
    """Return the key results of a study folder; see ``markdown``.

    Of trained models that were compared, also every difference with its interval.
    """
    study = load_study(study_dir)
    text = markdown(summary(study))
    table = interval_table(study) if study.text("name") == "compare" else ""
    return f"{text}\n{table}" if table else text


def markdown(told: Mapping[str, Any]) -> str:
    """Return a study's answer and a table of its ledger, held-out text and tasks.

    Up to five seeds stand side by side, joined by a slash; of more, the middle one with the lowest
    and the highest. Tasks that tell nobody apart are named below.

    Args:
        told: what ``summary.json`` holds.
    """
    models = list(told["models"])
    others = [name for name in _scored(told) if name not in models]
    columns = [*models, *others]
    lines = [
        told["answer"]["text"],
        "",
        table_row(["", *columns]),
        table_row(["---", *("---:" for _ in columns)]),
        *_ledger_lines(told["models"], columns),
        *_lines("held-out {}, bits/byte", told["heldout_bits_per_byte"], columns, 1, 3),
        *_lines("{}, accuracy in %", _informative(told), columns, 100, 1),
        *_cost_lines(told.get("memory", {}), columns),
        "",
        told["answer"]["scale"],
    ]
    note = uncounted({name: costs["uncounted"] for name, costs in told["models"].items()})
    if note:
        lines.append(note)
    if told["uninformative"]:
        lines.append(f"Uninformative here: {', '.join(sorted(told['uninformative']))}.")
    return "\n".join(lines) + "\n"


def _scored(told: Mapping[str, Any]) -> list[str]:
    """Name what was scored, models and baselines."""
    found = [*told["heldout_bits_per_byte"].values(), *told["accuracy"].values()]
    return list(dict.fromkeys(name for values in found for name in values))


def _informative(told: Mapping[str, Any]) -> dict[str, Values]:
    return {
        task: values
        for task, values in sorted(told["accuracy"].items())
        if task not in told["uninformative"]
    }


def _ledger_lines(models: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    loaded = any(costs.get("loaded") for costs in models.values())
    kinds = {
        "parameters": "params_total",
        # Of trained models the study says what they are matched in.
        **({"... active per token": "params_active"} if loaded else {}),
        "... in the memory table": "params_table",
        "FLOPs per token": "flops_per_token",
        "training tokens": "tokens",
    }
    return [
        table_row([label, *(count(models[c][key]) if c in models else "" for c in columns)])
        for label, key in kinds.items()
        # Of models that were only loaded parameters alone are counted.
        if any(costs[key] is not None for costs in models.values())
    ]


def _cost_lines(memory: Mapping[str, Values], columns: Sequence[str]) -> list[str]:
    """Write what memories cost: on disk, to build, per token, and how far they are trusted."""
    kinds = {
        "disk_bytes": ("memory on disk, MB", 1e-6, 1),
        "build_seconds": ("memory built in, s", 1, 1),
        "us_per_token": ("memory's time per token, µs", 1, 1),
        "memory_weight": ("memory's mean weight", 1, 3),
    }
    return [
        line
        for metric, (label, factor, digits) in kinds.items()
        if metric in memory
        for line in _lines(label, {metric: memory[metric]}, columns, factor, digits)
    ]


def _lines(
    label: str, table: Mapping[str, Values], columns: Sequence[str], factor: float, digits: int
) -> list[str]:
    def cell(seeds: Mapping[str, float | None]) -> str:
        values = [seeds[seed] for seed in sorted(seeds)]
        known = [factor * v for v in values if v is not None]
        if len(known) == len(values) > SIDE_BY_SIDE:
            return quoted(known, lambda value: fixed(value, digits))
        shown = [MISSING if v is None else fixed(factor * v, digits) for v in values]
        return " / ".join(shown)

    return [
        table_row([label.format(name), *(cell(values.get(c, {})) for c in columns)])
        for name, values in table.items()
    ]
