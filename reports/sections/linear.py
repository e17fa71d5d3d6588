"""Linear probe: what a block holds in plain sight, beside its control task."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.numbers import fixed, listing
from reports.query import ordered, pick, value_of, values
from reports.sections.layers import drawn_models, layer_panel, slice_views
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
        slice_views(kept, draw, hide="task"),
        flat_rows(rows),
        legend=drawn_models(study, kept),
        key="Solid: the probe, one line per seed. Dashed: its control task, random labels per "
        "token type. Dotted: a probe on the embeddings of the last three tokens, no computing.",
    )


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
