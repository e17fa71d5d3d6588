"""Linear probe: what a block holds in plain sight, beside its control task."""

from collections.abc import Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.blocks import Block, Cell, Column, Item, Panel, Table, View, flat_rows
from reports.draw import Canvas, Dot, dots
from reports.load import Study
from reports.numbers import fixed, percent
from reports.query import ordered, pick, value_of, values, who
from reports.sections.columns import seeds_cell, seeds_note
from reports.sections.layers import drawn_models, layer_panel, slice_views
from reports.sections.probe_tasks import TASKS
from reports.seeds import drawn_seeds
from reports.theme import looks

DASHES: dict[str | None, str] = {None: "-", "control_task": "--", "last_three_tokens": ":"}
STROKES = {
    "-": "the probe",
    "--": "its control task: random labels",
    ":": "a probe on the last three embeddings",
    "o": "its control task: random labels",
}


def linear_items(study: Study, rows: Sequence[MetricRow]) -> list[Item]:
    """Draw probe accuracy by block beside its controls, and list what each task came to."""
    kept = [row for row in pick(rows, metric="acc") if row.layer is not None]
    kept = [row for row in kept if row.site in ("resid_pre", "resid_post")]
    look, models = looks(study), drawn_models(study, kept)

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        return layer_panel(part, look, "accuracy", DASHES, width, level="last_three_tokens")

    block = Block(
        "linear-probe",
        "Linear probe: what a block holds in plain sight",
        "The gap between a solid line and its dashed control is what the block holds rather than "
        f"what the probe can memorise. {_above(kept)}".strip(),
        [*slice_views(kept, draw, hide="task"), *_lengths(study, rows)],
        flat_rows(rows),
        legend=models,
        key=f"{drawn_seeds(len(models))} The control task has a random label for each type, "
        f"such as a token.{_learnt_by_heart(kept)} What the embeddings of the last three tokens "
        "tell needs no computing. Code length: of the block whose code is shortest. The table "
        "below says what each task asks.",
        strokes=STROKES,
    )
    table = linear_table(study, kept, pick(rows, metric="decodable_depth_layers"))
    return [block, *([table] if table.rows else [])]


def _above(rows: Sequence[MetricRow]) -> str:
    """Count the tasks in which some block tells more than the last three embeddings do."""
    plain = [row for row in pick(rows, condition=None) if set(row.slice) <= {"task"}]
    local = pick(rows, condition="last_three_tokens")
    tasks = [t for t in ordered(map(_task, plain)) if t in set(map(_task, local))]
    if not tasks:
        return ""
    best = [max(value_of(row) for row in plain if _task(row) == task) for task in tasks]
    bars = [max(value_of(row) for row in local if _task(row) == task) for task in tasks]
    more = sum(top > bar for top, bar in zip(best, bars, strict=True))
    return (
        f"In {more} of {len(tasks)} tasks the best block tells more than the embeddings of the "
        "last three tokens do."
    )


def _learnt_by_heart(rows: Sequence[MetricRow]) -> str:
    """Count the tasks whose control comes out as high as the probe, and say why; "" of none."""
    plain = [row for row in rows if set(row.slice) <= {"task"}]
    tasks = ordered(map(_task, pick(plain, condition="control_task")))
    as_high = 0
    for task in tasks:
        here = [row for row in plain if _task(row) == task]
        real, control = (pick(here, condition=c) for c in (None, "control_task"))
        as_high += bool(real) and max(map(value_of, control)) >= max(map(value_of, real))
    if not as_high:
        return ""
    noun = "task" if as_high == 1 else "tasks"
    return (
        f" In {as_high} {noun} of {len(tasks)} it reaches the probe or lies above it: the types "
        "are few, and their labels are learnt by heart, while the real ones must hold for texts "
        "that the probe has not seen. There the distance tells nothing; compare models."
    )


def _task(row: MetricRow) -> str:
    return row.slice.get("task", "")


def _lengths(study: Study, rows: Sequence[MetricRow]) -> list[View]:
    """Draw the shortest online code of any block per task, and the control's."""
    found = pick(rows, metric="code_length_bits")
    look, tasks = looks(study), ordered(row.slice.get("task", "") for row in found)
    drawn = [
        Dot(place, best.value or 0.0, look[model], f"{who(best)}: {fixed(best.value, 2)}", hollow)
        for place, task in enumerate(tasks)
        for model in look
        for condition, hollow in ((None, False), ("control_task", True))
        for best in _shortest(pick(found, model=model, condition=condition), task)
    ]
    if not drawn:
        return []
    names = [task.replace("_", " ") for task in tasks]
    return [View("code length", [Panel("", dots(names, drawn, "bits per example", 640))])]


def _shortest(rows: Sequence[MetricRow], task: str) -> list[MetricRow]:
    """Return the row of the shortest code of each seed in a task."""
    here = [row for row in rows if row.slice.get("task", "") == task]
    return [min(pick(here, seed=seed), key=value_of) for seed in {row.seed for row in here}]


def linear_table(study: Study, rows: Sequence[MetricRow], depths: Sequence[MetricRow]) -> Table:
    """List each task's highest accuracy of any block, and after how many blocks it has come up."""
    plain = [row for row in pick(rows, condition=None) if set(row.slice) <= {"task"}]
    models, look = drawn_models(study, plain), looks(study)
    bands = ["highest accuracy of any block, %", *(["blocks until 90 % of it"] if depths else [])]
    body = []
    for task in ordered(map(_task, plain)):
        here = [row for row in plain if _task(row) == task]
        known = next((row.baseline for row in here if row.baseline is not None), None)
        name = Cell(task.replace("_", " ") or "the task", small=TASKS.get(task, ""))
        cells = [name, Cell(percent(known), known)]
        cells += [seeds_cell(_best(pick(here, model=model)), percent) for model in models]
        if depths:
            found = [row for row in depths if _task(row) == task]
            cells += [
                seeds_cell(values(pick(found, model=model)), partial(fixed, digits=1))
                for model in models
            ]
        body.append(cells)
    columns = [Column("Probe", numeric=False), Column("Commonest class, %")]
    columns += [Column(m, chip=look[m].number, band=band) for band in bands for m in models]
    return Table(
        "Linear probes: how well, and after how many blocks",
        columns,
        body,
        ident="linear-table",
        note=f"{seeds_note(plain, bold=False)}Blocks are counted from the embedding, to 90 % of "
        "the best accuracy above the commonest class.",
        data=flat_rows([*plain, *depths]),
    )


def _best(rows: Sequence[MetricRow]) -> list[float]:
    """Return the highest accuracy of each seed."""
    seeds = sorted({row.seed or 0 for row in rows})
    return [max(value_of(row) for row in rows if (row.seed or 0) == seed) for seed in seeds]
