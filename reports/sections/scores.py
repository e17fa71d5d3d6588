"""Scores per task: accuracy, bits per byte, and what the last tokens do not resolve."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from engram_eval.records import MetricRow
from reports.blocks import Block, Cell, Column, Item, Note, Panel, Table, View, flat_rows
from reports.draw import Canvas, Dot, dots, share_axis
from reports.load import Comparison, Study
from reports.numbers import MISSING, fixed, percent
from reports.query import (
    asked,
    domain_of,
    headline_pair,
    only_domain,
    ordered,
    pick,
    pooled_comparisons,
    value_of,
    who,
)
from reports.sections.columns import (
    difference_columns,
    difference_note,
    effect_cell,
    headline_names,
    model_columns,
    models_of,
    seed_cells,
    seeds_note,
)
from reports.sections.effects import task_differences, task_sentence, told_tasks
from reports.theme import MUTED, REFERENCE, Look, looks

# Lies above references and models.
CHANCE = Look(REFERENCE.number - 1, MUTED, "o")
DOMAINS = ("knowledge", "reasoning", "reading", "language", "code", "math", "context")


def task_items(study: Study) -> list[Item]:
    """Return the pictures and tables of the tasks that tell models apart."""
    scored = [row for row in pick(study.rows, split="test") if row.name != "heldout"]
    # Probes ask some of the items again, with parts of the model cut out.
    rows = [row for row in scored if row.stage != "probe"]
    if not rows and not asked(study, "evaluate", "tasks", True):
        return [Note("This study scores held-out text alone, no tasks.")]
    if not rows:
        return [Note("No task has been scored yet.")]
    silent = uninformative(study)
    useful = [row for row in rows if row.name not in silent]
    if not useful:
        return [Note("No task tells these models apart at this scale.")]
    return [
        *([accuracy_block(study, useful)] if pick(useful, metric="acc") else []),
        *task_differences(study),
        *_tables(study, useful),
    ]


def uninformative(study: Study) -> dict[str, str]:
    """Return the tasks that comparisons mark as telling nothing, with the recorded reason."""
    return {
        c.name: c.reason or "no reason is recorded"
        for c in study.comparisons
        if c.informative is False and c.name != "tasks"
    }


def accuracy_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw accuracy per task, one panel per domain, with chance as a hollow mark."""
    look = looks(study)
    whole = [row for row in pick(rows, metric="acc") if only_domain(row)]
    domains = ordered((domain_of(row) for row in whole), first=DOMAINS)
    panels = [
        Panel(domain, _panel([r for r in whole if domain_of(r) == domain], look))
        for domain in domains
    ]
    share_axis([panel.canvas for panel in panels], "x")
    drawn = [*(m.name for m in study.models), *study.baselines()]
    return Block(
        "accuracy-by-task",
        "Accuracy by task",
        _finding(study, whole),
        [View("accuracy", panels)],
        flat_rows(whole),
        legend=[name for name in drawn if pick(whole, model=name)],
        key="Each filled point is one seed, its bar one standard error over items either way.",
        strokes={"o": "chance"},
    )


def _panel(rows: Sequence[MetricRow], look: dict[str, Look]) -> Canvas:
    tasks = ordered(row.name for row in rows)
    values = [
        Dot(
            tasks.index(row.name),
            100 * value_of(row),
            look[str(row.model)],
            f"{who(row)}: {percent(row.value)} % on {row.name}",
            low=None if row.stderr is None else 100 * (value_of(row) - row.stderr),
            high=None if row.stderr is None else 100 * (value_of(row) + row.stderr),
        )
        for row in rows
        if row.model in look
    ]
    chance = {row.name: row.baseline for row in rows if row.baseline is not None}
    marks = [
        Dot(tasks.index(task), 100 * value, CHANCE, "chance", hollow=True)
        for task, value in chance.items()
    ]
    return dots(tasks, values + marks, "accuracy in % (higher is better)")


def _finding(study: Study, rows: Sequence[MetricRow]) -> str:
    """Count the tasks in which all seeds of the candidate beat all of the reference."""
    pair = headline_pair(study)
    if pair is None:
        return "Further right is better."
    a, b = pair[0].name, pair[1].name
    if all(len({row.seed for row in pick(rows, model=name)}) == 1 for name in (a, b)):
        # One training of each: whether "every seed" is ahead would be a coin's fall.
        return task_sentence(told_tasks(study), a, b) or "Further right is better."
    won, lost, mixed = 0, 0, 0
    for task in ordered(row.name for row in rows):
        first = [value_of(r) for r in pick(rows, name=task, model=a)]
        second = [value_of(r) for r in pick(rows, name=task, model=b)]
        if first and second:
            won += min(second) > max(first)
            lost += max(second) < min(first)
            mixed += not (min(second) > max(first) or max(second) < min(first))
    return (
        f"Every seed of {b} is above every seed of {a} in {won} of {won + lost + mixed} "
        f"informative tasks, below in {lost}; in {mixed} they overlap."
    )


def _tables(study: Study, rows: Sequence[MetricRow]) -> list[Table]:
    whole = [row for row in rows if only_domain(row)]
    local = [row for row in rows if set(row.slice) == {"domain", "local"}]
    return [*task_tables(study, whole), *local_tables(study, pick(local, metric="acc"))]


class Measure(NamedTuple):
    """One of the numbers that a task has: how it is called, written, and which end is better."""

    metric: str
    label: str
    write: Callable[..., str]
    best: Literal["low", "high"]


MEASURES = (
    Measure("acc", "accuracy, %", percent, "high"),
    Measure("bits_per_byte", "bits per byte of the right answer", fixed, "low"),
)


class Shown(NamedTuple):
    """The columns of one measure, and what makes each task's cells."""

    columns: list[Column]
    cells: Callable[[str], list[Cell]]
    effects: Sequence[Comparison]
    rows: Sequence[MetricRow]


SIDE_BY_SIDE = 5
"""So many models at most have all measures beside each other; with more, each has its table."""


def task_tables(study: Study, rows: Sequence[MetricRow]) -> list[Table]:
    """List accuracy and bits per byte per task and model, with the headline pair's differences."""
    shown = [_measure(study, rows, measure) for measure in MEASURES]
    shown = [part for part in shown if part.columns]
    if len(models_of(rows, study)) <= SIDE_BY_SIDE:
        return [_task_table("Every task", "tasks-table", study, rows, shown)] if shown else []
    return [
        _task_table(
            f"Every task: {part.columns[0].band}",
            f"tasks-table{'' if position == 0 else f'-{position + 1}'}",
            study,
            rows,
            [part._replace(columns=[replace(column, band="") for column in part.columns])],
        )
        for position, part in enumerate(shown)
    ]


def _task_table(
    caption: str, ident: str, study: Study, rows: Sequence[MetricRow], shown: Sequence[Shown]
) -> Table:
    columns = [Column("Task", numeric=False), Column("Domain", numeric=False), Column("Chance, %")]
    body = []
    for domain in ordered((domain_of(row) for row in rows), first=DOMAINS):
        for task in ordered(r.name for r in rows if domain_of(r) == domain):
            cells = [Cell(task), Cell(domain), _chance(pick(rows, name=task, metric="acc"))]
            body.append([*cells, *(cell for part in shown for cell in part.cells(task))])
    effects = [c for part in shown for c in part.effects]
    told = difference_note(effects, headline_names(study))
    return Table(
        caption,
        [*columns, *(column for part in shown for column in part.columns)],
        body,
        ident=ident,
        note=f"{seeds_note(rows)} {told}",
        data=flat_rows([row for part in shown for row in part.rows]),
    )


def _measure(study: Study, rows: Sequence[MetricRow], measure: Measure) -> Shown:
    """Lay out one measure; no columns where it is not recorded."""
    chosen = pick(rows, metric=measure.metric)
    models, names = models_of(chosen, study), {row.name for row in chosen}
    effects = {
        c.name: c
        for c in pooled_comparisons(study, measure.metric)
        if c.name in names and set(c.slice) <= {"domain"}
    }

    def cells(task: str) -> list[Cell]:
        found = seed_cells(pick(chosen, name=task), models, measure.write, measure.best)
        return found + ([effect_cell(effects.get(task), measure.write)] if effects else [])

    columns = model_columns(study, models) + difference_columns(study, effects.values())
    columns = [replace(column, band=measure.label) for column in columns]
    return Shown(columns if chosen else [], cells, list(effects.values()), chosen)


def _chance(rows: Sequence[MetricRow]) -> Cell:
    known = next((row.baseline for row in rows if row.baseline is not None), None)
    return Cell(percent(known), known) if known is not None else Cell(MISSING)


def local_tables(study: Study, rows: Sequence[MetricRow]) -> list[Table]:
    """Split accuracy by whether the last three tokens already give the answer away."""
    if not rows:
        return []
    models = models_of(rows, study)
    body = []
    for task in ordered(row.name for row in rows):
        for local in ("resolved", "unresolved"):
            here = [r for r in pick(rows, name=task) if r.slice["local"] == local]
            if here:
                body.append(_local_row(task, local, here, models))
    table = Table(
        "Accuracy in % by what the last three tokens give away",
        [
            Column("Task", numeric=False),
            Column("Last three tokens", numeric=False),
            Column("Items"),
            *model_columns(study, models),
        ],
        body,
        ident="tasks-local",
        note="Resolved: an n-gram model that sees only the last three tokens picks the right "
        f"answer. Unresolved: it does not. {seeds_note(rows)}",
        data=flat_rows(rows),
    )
    return [table]


def _local_row(
    task: str, local: str, rows: Sequence[MetricRow], models: Sequence[str]
) -> list[Cell]:
    n = next((row.n for row in rows if row.n is not None), None)
    items = Cell(MISSING) if n is None else Cell(str(n), n)
    return [Cell(task), Cell(local), items, *seed_cells(rows, models, percent, "high")]


def uninformative_items(study: Study) -> list[Item]:
    """Return the table of the tasks that tell nobody apart, with the reason; empty without any."""
    silent = uninformative(study)
    rows = pick(study.rows, split="test", metric="acc")
    chosen = [r for r in rows if r.name in silent and only_domain(r)]
    if not chosen:
        return []
    models = models_of(chosen, study)
    body = []
    for task in ordered(row.name for row in chosen):
        here = pick(chosen, name=task)
        cells = seed_cells(here, models, percent, "high")
        body.append([Cell(task), Cell(silent[task]), _chance(here), *cells])
    return [
        Table(
            "Uninformative tasks: accuracy in %",
            [
                Column("Task", numeric=False),
                Column("Why", numeric=False),
                Column("Chance"),
                *model_columns(study, models),
            ],
            body,
            ident="tasks-uninformative",
            note="They tell nobody apart and are kept out of every count above.",
            data=flat_rows(chosen),
        )
    ]
