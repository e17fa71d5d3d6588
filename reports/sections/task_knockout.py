"""Knock-outs on tasks: what is left of each score above chance."""

from collections.abc import Mapping, Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Note, Panel, View, flat_rows
from reports.draw import Canvas, Dot, dots, share_axis, zero_line
from reports.load import Study
from reports.numbers import fixed
from reports.query import domain_of, ordered, pick, value_of, who
from reports.sections.category_dots import by_model
from reports.sections.knockout import NAMES
from reports.sections.layers import drawn_models
from reports.theme import MUTED, Look, looks

FIRST = ("memory_zeroed", "memory_mean", "memory_shuffled", "attn_zeroed", "mlp_zeroed")
OF_BLOCK = ("attn_zeroed", "mlp_zeroed")


def task_knockout_block(study: Study, rows: Sequence[MetricRow]) -> Block | Note:
    """Draw the retained share by domain and by task, one panel per part that is cut."""
    kept, look = pick(rows, metric="retained"), looks(study)
    if not kept:
        return Note("Knock-outs on tasks: no model scores above chance, so there is none to lose.")
    kinds = (
        ("by domain", [row for row in kept if "task" not in row.slice]),
        ("task by task", [row for row in kept if "task" in row.slice]),
    )
    return Block(
        "task-knock-out",
        "Knock-out: what is left of the scores",
        _finding(study, kept),
        [View(label, _panels(part, look)) for label, part in kinds if part],
        flat_rows(rows),
        legend=drawn_models(study, kept),
        key="1: nothing lost; 0: no better than guessing; below 0: worse. Only tasks on which the "
        "intact model is above chance. Attention and feed-forward are those of the memory's "
        "block, or of block 1. Bars: one standard error over items. What is lost shows "
        "dependence at inference, not where knowledge lies: a model trained without the part "
        "may do as well.",
    )


def _panels(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> list[Panel]:
    """Draw one picture per condition, all with the same categories and range."""
    names = ordered((_name(row) for row in rows), first=("all",))
    panels = [
        Panel(_title(condition), _dots(pick(rows, condition=condition), names, look))
        for condition in ordered((str(row.condition) for row in rows), first=FIRST)
    ]
    share_axis([panel.canvas for panel in panels], "x")
    return panels


def _title(condition: str) -> str:
    told = NAMES.get(condition, condition.replace("_", " "))
    return f"{told} of one block" if condition in OF_BLOCK else told


def _name(row: MetricRow) -> str:
    return row.slice.get("task", domain_of(row))


def _dots(rows: Sequence[MetricRow], names: Sequence[str], look: Mapping[str, Look]) -> Canvas:
    found = []
    for row in rows:
        value, error = value_of(row), row.stderr
        tip = f"{who(row)}, {_name(row)}: {fixed(value, 2)} ± {fixed(error, 2)}"
        low, high = (None, None) if error is None else (value - error, value + error)
        place = names.index(_name(row))
        found.append(Dot(place, value, look[str(row.model)], tip, low=low, high=high))
    result = dots(names, found, "share of the score above chance")
    zero_line(result)
    result.axes.axvline(1, color=MUTED, linewidth=1, linestyle=":")
    return result


def _finding(study: Study, rows: Sequence[MetricRow]) -> str:
    """Quote all tasks together, the memory beside experts of its size."""
    models = drawn_models(study, rows)
    whole = [row for row in rows if not row.slice]
    told = [
        f"{NAMES[condition]}: {found}"
        for condition in ("memory_zeroed", "experts_removed")
        if (found := by_model(models, pick(whole, condition=condition)))
    ]
    if not told:
        return "No model has a memory or experts that can be cut."
    return f"What is left of the score above chance over all such tasks, {'; '.join(told)}."
