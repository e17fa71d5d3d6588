"""Columns that several tables share: one per model and seed, and the paired difference."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from engram_eval.records import MetricRow
from reports.blocks import Cell, Column
from reports.load import Comparison, Study
from reports.numbers import MISSING, listing, p_value
from reports.query import headline_pair, ordered, pick, value_of
from reports.theme import looks


class Entry(NamedTuple):
    """One trained model: a column of a table."""

    model: str
    seed: int | None


def seeds_of(rows: Iterable[MetricRow], study: Study) -> list[Entry]:
    """Return every model and seed that has a row: references first, then the ledger's order."""
    found = {Entry(str(row.model), row.seed) for row in rows if row.model}
    rank = {name: i for i, name in enumerate([*study.baselines(), *(m.name for m in study.models)])}
    return sorted(found, key=lambda e: (rank.get(e.model, -1), e.seed is not None, e.seed or 0))


def model_columns(study: Study, entries: Sequence[Entry]) -> list[Column]:
    """Return a column per model and seed, grouped by model."""
    look = looks(study)
    return [
        Column(
            "value" if e.seed is None else f"seed {e.seed}",
            e.model,
            chip=look[e.model].number if e.model in look else None,
        )
        for e in entries
    ]


def seed_cells(
    rows: Sequence[MetricRow],
    entries: Sequence[Entry],
    write: Callable[[float | None], str],
    best: Literal["low", "high"],
) -> list[Cell]:
    """Return one cell per model and seed; the best value is set in bold."""
    found = [next(iter(pick(rows, model=e.model, seed=e.seed)), None) for e in entries]
    known = [value_of(row) for row in found if row is not None]
    top = (min if best == "low" else max)(known) if len(set(known)) > 1 else None
    return [
        Cell(MISSING)
        if row is None
        else Cell(write(row.value), value_of(row), strong=value_of(row) == top)
        for row in found
    ]


def difference_columns(study: Study, effects: Iterable[Comparison]) -> list[Column]:
    """Return the column of the headline pair's difference, or none without any."""
    pair = headline_pair(study)
    if pair is None or not list(effects):
        return []
    return [Column("better by", f"{pair[1].name} against {pair[0].name}")]


def difference_note(effects: Iterable[Comparison]) -> str:
    """Say what the brackets and the asterisk stand for, or that nothing was compared."""
    found = list(effects)
    if not found:
        return "Differences are not recorded (comparisons.jsonl)."
    units = listing(ordered(c.units for c in found if c.units)) or "items"
    caution = "" if units == "seeds" else ", not over seeds"
    tests = listing(ordered(c.test for c in found if c.test))
    note = f"Brackets: 95 % interval over {units}{caution}."
    note += f" Test: {tests}." if tests else ""
    if any(c.p_adjusted is not None for c in found):
        return note + " * p < 0.05, corrected for the number of rows (Holm)."
    return note + " * p < 0.05."


def effect_cell(found: Comparison | None, write: Callable[..., str]) -> Cell:
    """Write a paired difference with its interval over items and a mark where p < 0.05."""
    if found is None or found.effect is None:
        return Cell(MISSING)
    text = write(found.effect, sign=True)
    if found.ci_low is not None and found.ci_high is not None:
        text += f" [{write(found.ci_low, sign=True)}, {write(found.ci_high, sign=True)}]"
    p = found.p_adjusted if found.p_adjusted is not None else found.p
    mark = "*" if p is not None and p < 0.05 else ""
    return Cell(text, found.effect, mark=mark, title=f"p {p_value(p)}" if p is not None else "")
