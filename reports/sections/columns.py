"""Columns that several tables share: one per model and seed, and the paired difference."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from engram_eval.records import MetricRow
from reports.blocks import Cell, Column, Table
from reports.load import Comparison, Study
from reports.numbers import MISSING, listing, middle, p_value
from reports.query import headline_pair, ordered, pick, values
from reports.theme import looks

SEVERAL = "Several numbers in a cell are several seeds. "
MANY = "Of three seeds and more: the middle one, and below it the lowest and the highest. "
# So many models stand side by side; of more, each has a row.
WIDEST = 8
BOLD = "Bold: every seed of this model is ahead of every seed of all others."


def models_of(rows: Iterable[MetricRow], study: Study) -> list[str]:
    """Return every model that has a row: references first, then the ledger's order."""
    found = {str(row.model) for row in rows if row.model}
    rank = {name: i for i, name in enumerate([*study.baselines(), *(m.name for m in study.models)])}
    return sorted(found, key=lambda name: rank.get(name, -1))


def model_columns(study: Study, models: Sequence[str]) -> list[Column]:
    """Return a column per model."""
    look = looks(study)
    return [Column(name, chip=look[name].number if name in look else None) for name in models]


def turned(table: Table, labels: int = 1) -> Table:
    """Give each model a row where a column for each would not fit; as it is for few models.

    Args:
        table: whose columns are models, after ``labels`` ones that say what a row is about.
        labels: the last of two becomes the header over several columns.
    """
    heads = table.columns[labels:]
    if len(heads) <= WIDEST:
        return table
    columns = [Column("Model", numeric=False)]
    columns += [Column(row[0].text, band=row[1].text if labels > 1 else "") for row in table.rows]
    rows = [
        [Cell(head.label), *(row[labels + place] for row in table.rows)]
        for place, head in enumerate(heads)
    ]
    chips = {head.label: head.chip for head in heads if head.chip is not None}
    return replace(table, columns=columns, rows=rows, chips=chips)


def seed_cells(
    rows: Sequence[MetricRow],
    models: Sequence[str],
    write: Callable[[float | None], str],
    best: Literal["low", "high"],
) -> list[Cell]:
    """Return one cell per model with all its seeds; bold where all are ahead of all others."""
    found = [values(pick(rows, model=name)) for name in models]
    ahead = {i for i, own in enumerate(found) if own and _leads(own, found, i, best)}
    return [seeds_cell(own, write, strong=i in ahead) for i, own in enumerate(found)]


def _leads(
    own: Sequence[float], found: Sequence[Sequence[float]], place: int, best: Literal["low", "high"]
) -> bool:
    others = [value for i, some in enumerate(found) if i != place for value in some]
    if not others:
        return False
    return max(own) < min(others) if best == "low" else min(own) > max(others)


def seeds_cell(
    found: Sequence[float], write: Callable[[float | None], str], strong: bool = False
) -> Cell:
    """Write the values of a model's seeds in one cell; it sorts by the middle one."""
    if not found:
        return Cell(MISSING)
    central = middle(found)
    every = " / ".join(write(value) for value in found)
    if len(found) < 3:
        return Cell(every, central, strong=strong)
    low, high = write(min(found)), write(max(found))
    spread = "" if low == high else f"{low} to {high}"
    return Cell(write(central), central, strong=strong, small=spread, title=f"seeds: {every}")


def seeds_note(rows: Iterable[MetricRow], bold: bool = True) -> str:
    """Say how the seeds of a model share its cell, and what is ``bold``."""
    counts = [len({r.seed for r in part}) for part in _by_model(rows).values()]
    several = SEVERAL if 2 in counts else ""
    return several + (MANY if max(counts, default=0) > 2 else "") + (BOLD if bold else "")


def _by_model(rows: Iterable[MetricRow]) -> dict[str | None, list[MetricRow]]:
    found: dict[str | None, list[MetricRow]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found


def uncounted(models: Mapping[str, Mapping[str, str]]) -> str:
    """Say which parameters could not be counted, and why; "" where all could.

    Args:
        models: name -> ``load.Model.uncounted``.
    """
    words = {"params_total": "all", "params_table": "in the table", "params_active": "active"}
    found = []
    for model, lacking in models.items():
        reasons: dict[str, list[str]] = {}
        for name, reason in lacking.items():
            reasons.setdefault(reason, []).append(words.get(name, name))
        found += [f"{model}, {listing(kinds)} ({why})" for why, kinds in reasons.items()]
    return f"Parameters that could not be counted: {'; '.join(found)}." if found else ""


def difference_columns(study: Study, effects: Iterable[Comparison]) -> list[Column]:
    """Return the column of the headline pair's difference, or none without any."""
    pair = headline_pair(study)
    if pair is None or not list(effects):
        return []
    return [Column("better by")]


def headline_names(study: Study) -> str:
    """Return ``engram against moe``, the pair that the study's question sets side by side."""
    pair = headline_pair(study)
    return "" if pair is None else f"{pair[1].name} against {pair[0].name}"


def difference_note(effects: Iterable[Comparison], of: str = "") -> str:
    """Say what the brackets and the asterisk stand for, or that nothing was compared.

    Args:
        effects: what the table shows.
        of: whose differences a column "better by" lists.
    """
    found = list(effects)
    if not found:
        return "Differences are not recorded (comparisons.jsonl)."
    units = listing(ordered(c.units for c in found if c.units)) or "items"
    caution = "" if units == "seeds" else ", not over seeds"
    tests = listing(_alike(ordered(c.test for c in found if c.test)))
    note = f"Better by: {of}, positive where the first is better. " if of else ""
    note += f"Brackets: 95 % interval over {units}{caution}."
    note += f" Test: {tests}." if tests else ""
    if any(c.p_adjusted is not None for c in found):
        return note + " * p < 0.05, corrected for the number of rows (Holm)."
    return note + " * p < 0.05."


def _alike(texts: Sequence[str]) -> list[str]:
    """Join texts that differ in their first number: ``over 3 to 5 sources of items``."""
    groups: dict[tuple[str, str], list[int]] = {}
    for text in texts:
        number = re.search(r"\d+", text)
        around = (text[: number.start()], text[number.end() :]) if number else (text, "")
        groups.setdefault(around, []).extend([int(number[0])] if number else [])
    return [
        " to ".join(map(str, sorted({min(found), max(found)}) if found else [])).join(around)
        for around, found in groups.items()
    ]


def comparison_row(found: Comparison) -> dict[str, Any]:
    """Return a comparison for a CSV file."""
    flat = {k: v for k, v in vars(found).items() if not isinstance(v, dict | list)}
    seeds = {
        "seeds_a": " ".join(map(str, found.seeds_a)),
        "seeds_b": " ".join(map(str, found.seeds_b)),
    }
    return flat | seeds | {f"slice.{key}": value for key, value in found.slice.items()}


def effect_cell(found: Comparison | None, write: Callable[..., str]) -> Cell:
    """Write a paired difference with its interval over items and a mark where p < 0.05."""
    if found is None or found.effect is None:
        return Cell(MISSING)
    text, interval = write(found.effect, sign=True), ""
    if found.ci_low is not None and found.ci_high is not None:
        interval = f"[{write(found.ci_low, sign=True)}, {write(found.ci_high, sign=True)}]"
    p = found.p_adjusted if found.p_adjusted is not None else found.p
    mark = "*" if p is not None and p < 0.05 else ""
    title = f"p {p_value(p)}" if p is not None else ""
    return Cell(text, found.effect, mark=mark, title=title, small=interval)
