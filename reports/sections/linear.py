"""Linear probe: what a block holds in plain sight, beside its control task."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import Canvas, Dot, dots
from reports.load import Study
from reports.numbers import fixed, listing
from reports.query import ordered, pick, value_of, values
from reports.sections.layers import drawn_models, layer_panel, slice_views
from reports.sections.overview import who
from reports.theme import looks

DASHES: dict[str | None, str] = {None: "-", "control_task": "--", "last_three_tokens": ":"}


def linear_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw probe accuracy by block with the control task and the local baseline."""
    kept = [row for row in pick(rows, metric="acc") if row.layer is not None]
    kept = [row for row in kept if row.site in ("resid_pre", "resid_post")]
    look = looks(study)

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        return layer_panel(part, look, "accuracy", DASHES, width, level="last_three_tokens")

    return Block(
        "linear-probe",
        "Linear probe: what a block holds in plain sight",
        "The gap between a solid line and its dashed control is what the block holds rather than "
        f"what the probe can memorise. {_best(study, kept)} {_depths(study, rows)}".strip(),
        [*slice_views(kept, draw, hide="task"), *_lengths(study, rows)],
        flat_rows(rows),
        legend=drawn_models(study, kept),
        key="Solid: the probe, one line per seed. Dashed: its control task, random labels per "
        "token type. Dotted: a probe on the embeddings of the last three tokens, no computing. "
        "Code length: of the block whose code is shortest; hollow: the control task's.",
    )


def _lengths(study: Study, rows: Sequence[MetricRow]) -> list[View]:
    """Draw the shortest online code of any block per task, and the control's."""
    found = pick(rows, metric="code_length_bits")
    look, tasks = looks(study), ordered(row.slice.get("task", "") for row in found)
    values = [
        Dot(place, best.value or 0.0, look[model], f"{who(best)}: {fixed(best.value, 2)}", hollow)
        for place, task in enumerate(tasks)
        for model in look
        for condition, hollow in ((None, False), ("control_task", True))
        for best in _shortest(pick(found, model=model, condition=condition), task)
    ]
    if not values:
        return []
    names = [task.replace("_", " ") for task in tasks]
    return [View("code length", [Panel("", dots(names, values, "bits per example", 640))])]


def _shortest(rows: Sequence[MetricRow], task: str) -> list[MetricRow]:
    """Return the row of the shortest code of each seed in a task."""
    here = [row for row in rows if row.slice.get("task", "") == task]
    return [min(pick(here, seed=seed), key=value_of) for seed in {row.seed for row in here}]


def _best(study: Study, rows: Sequence[MetricRow]) -> str:
    """Quote the highest accuracy of each model in each task over all tokens."""
    plain = [row for row in pick(rows, condition=None) if set(row.slice) <= {"task"}]
    told = []
    for task in ordered(row.slice.get("task", "") for row in plain):
        here = [row for row in plain if row.slice.get("task", "") == task]
        best = [
            f"{model} {fixed(max(value_of(row) for row in pick(here, model=model)), 2)}"
            for model in drawn_models(study, here)
        ]
        told.append(f"{task.replace('_', ' ') or 'the task'}: {', '.join(best)}")
    return f"Highest accuracy of any block and seed, {'; '.join(told)}." if told else ""


def _depths(study: Study, rows: Sequence[MetricRow]) -> str:
    """Quote after how many blocks each task has come up, every seed."""
    found = pick(rows, metric="decodable_depth_layers")
    told = []
    for task in ordered(row.slice.get("task", "") for row in found):
        here = [row for row in found if row.slice.get("task", "") == task]
        depths = [
            f"{model} {listing([fixed(v, 1) for v in values(pick(here, model=model))])}"
            for model in drawn_models(study, here)
        ]
        told.append(f"{task.replace('_', ' ')}: {', '.join(depths)}")
    if not told:
        return ""
    return (
        "Blocks after which accuracy above the commonest class has reached 90 % of its best: "
        f"{'; '.join(told)}."
    )
