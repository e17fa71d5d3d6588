"""Inside the models: lens, CKA, linear probe, knock-out; each beside its control."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from engram_eval.records import MetricRow
from reports.blocks import Item, Section
from reports.load import Study
from reports.query import asked, pick
from reports.sections.capacity import capacity_block
from reports.sections.cka import cka_items
from reports.sections.depth import depth_block
from reports.sections.equal_loss import equal_loss_block
from reports.sections.equivalent import equivalent_block
from reports.sections.gate_text import gate_text
from reports.sections.gates import gates_block, names_tables, router_block, usage_block
from reports.sections.knockout import knockout_block
from reports.sections.lens import lens_block, tuned_lens_block
from reports.sections.linear import linear_items
from reports.sections.offsets import offsets_block
from reports.sections.patching import patching_block, surgery_block
from reports.sections.plain import plain_block
from reports.sections.task_knockout import task_knockout_block
from reports.theme import looks


class Part(NamedTuple):
    """One analysis: the name of its rows, what draws them, what is said without rows."""

    name: str
    build: Callable[[Study, Sequence[MetricRow]], Item | Sequence[Item]]
    missing: str


OF_PEOPLE = "it asks about people of the pocket corpus, and of those about what a model knows"

PARTS = (
    Part("logit_lens", lens_block, "LogitLens is not recorded."),
    Part("tuned_lens", tuned_lens_block, "The tuned lens is not recorded."),
    Part("cka", cka_items, "CKA between models is not recorded."),
    Part("linear", linear_items, "The linear probe is not recorded."),
    Part("knockout", knockout_block, "The knock-outs are not recorded."),
    Part("task_knockout", task_knockout_block, "No task was scored with a part cut out."),
    Part("offsets", offsets_block, "Attention by offset is not recorded."),
    Part("patching", patching_block, f"Patching is not recorded: {OF_PEOPLE}."),
    Part("surgery", surgery_block, f"Memory surgery is not recorded: {OF_PEOPLE}."),
    Part(
        "gates",
        lambda s, rows: [gates_block(s, rows), *names_tables(s, rows), *gate_text(s, rows)],
        "No model has a memory with gates.",
    ),
    Part("memory_usage", usage_block, "No model has a memory that looks tokens up."),
    Part("router", router_block, "No model has experts."),
    Part("depth", depth_block, "The use of depth is not recorded."),
    Part("capacity", capacity_block, f"Stored bits are not recorded: {OF_PEOPLE}."),
)


def section(study: Study) -> Section:
    """Build a block for every analysis that has rows, and a message for each that has none."""
    if study.abridged:
        return Section("mechanism", "Mechanism", lead=study.abridged)
    items: list[Item] = []
    missing: list[str] = []
    absent: list[str] = []
    known = looks(study)
    wanted = asked(study, "probe", "probes", [part.name for part in PARTS])
    shown = {part.name for part in PARTS}
    own = [
        Part(name, plain_block, f"{name} is not recorded.")
        for name in dict.fromkeys(wanted)
        if name not in shown
    ]
    for part in (*PARTS, *own):
        named = pick(study.rows, name=part.name, step=None)
        rows = [row for row in named if row.model in known]
        if rows:
            drawn = part.build(study, rows)
            items += drawn if isinstance(drawn, Sequence) else [drawn]
        elif part.name in wanted:
            absent.append(part.missing)
        missing += failures(study, part)
    equal = equal_loss_block(study, [row for row in study.rows if row.model in known])
    items += [block for block in (equal, equivalent_block(study)) if block is not None]
    missing = [*([" ".join(absent)] if absent else []), *missing]
    if not items and not missing:
        lead = "No analysis of the models' inside was asked for in this study."
        return Section("mechanism", "Mechanism", lead=lead)
    return Section(
        "mechanism",
        "Mechanism",
        lead="What changes inside. A better model looks different in every lens because it is "
        "better, so each picture stands beside its control, and none proves a cause alone. "
        "Blocks are counted from 0.",
        items=items,
        missing=missing,
    )


def failures(study: Study, part: Part) -> list[str]:
    """Return what went wrong in the stages of one analysis."""
    return [
        f"{stage.label} failed: {stage.error or 'no error is recorded'}"
        for stage in study.stages
        if stage.status == "failed" and stage.config.get("probe") == part.name
    ]
