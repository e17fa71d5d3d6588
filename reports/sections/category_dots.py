"""Dots by category for analyses that have no depth: what was done, or to which tokens."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.draw import Canvas, Dot, dots
from reports.numbers import each, fixed
from reports.query import ordered, pick, value_of, values, who
from reports.theme import Look


def category_dots(
    rows: Sequence[MetricRow],
    name: Callable[[MetricRow], str],
    look: Mapping[str, Look],
    xlabel: str,
    width: int = 320,
) -> Canvas:
    """Draw each row's value under its name, and hollow its ``baseline`` where it has one."""
    names = ordered(name(row) for row in rows)
    found = []
    for row in rows:
        place, here = names.index(name(row)), look[str(row.model)]
        tip = f"{who(row)}, {name(row)}: {fixed(value_of(row), 3)}"
        found.append(Dot(place, value_of(row), here, tip))
        if row.baseline is not None:
            told = f"control of {who(row)}, {name(row)}: {fixed(row.baseline, 3)}"
            found.append(Dot(place, row.baseline, here, told, hollow=True))
    return dots(names, found, xlabel, width)


def by_model(models: Sequence[str], rows: Sequence[MetricRow]) -> str:
    """Quote every seed of every model: ``moe 0.31 and 0.29; engram 0.12``."""
    found = {model: values(pick(rows, model=model)) for model in models}
    return each(found, partial(fixed, digits=2), "; ")
