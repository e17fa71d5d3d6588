"""Held-out loss in full, and how much of each generated skill was learnt."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Cell, Column, Item, Note, Panel, Table, View, flat_rows
from reports.draw import Canvas, Dot, dots
from reports.load import Study
from reports.numbers import MANY, MISSING, fixed
from reports.query import (
    asked,
    by_domain,
    domain_of,
    heldout,
    only_domain,
    pick,
    pooled_comparisons,
    value_of,
    who,
)
from reports.sections.columns import (
    WIDEST,
    difference_columns,
    difference_note,
    effect_cell,
    headline_names,
    model_columns,
    models_of,
    seed_cells,
    seeds_note,
    turned,
)
from reports.sections.effects import heldout_differences
from reports.theme import INK, Look, looks


def heldout_items(study: Study) -> list[Item]:
    """Return the differences, the table of all domains and the picture of the answers' bits."""
    rows = heldout(study)
    if not rows and not asked(study, "evaluate", "heldout", True):
        return [Note("Held-out text was not scored in this study.")]
    if not rows:
        return [Note("No held-out loss is recorded yet.")]
    answers = [r for r in heldout(study, "bits_per_answer") if r.slice]
    if answers:
        skills: Item = answers_block(study, answers)
    else:
        skills = Note("No loss on answers alone is recorded.")
    return [*heldout_differences(study), domain_table(study, rows), skills]


def domain_table(study: Study, rows: Sequence[MetricRow]) -> Table:
    """List bits per byte per domain and model, with the difference of the headline pair."""
    effects = {
        domain_of(c): c
        for c in pooled_comparisons(study, "bits_per_byte")
        if c.name == "heldout" and set(c.slice) <= {"domain"}
    }
    models = models_of(rows, study)
    effects = effects if len(models) <= WIDEST else {}
    columns = [Column("Domain", numeric=False), *model_columns(study, models)]
    columns += difference_columns(study, effects.values())
    body = []
    for domain in by_domain(domain_of(row) for row in rows):
        here = [row for row in rows if domain_of(row) == domain]
        cells = [Cell(domain), *seed_cells(here, models, fixed, best="low")]
        cells += [effect_cell(effects.get(domain), fixed)] if effects else []
        body.append(cells)
    told = difference_note(effects.values(), headline_names(study)) if effects else ""
    table = Table(
        "Held-out bits per byte by domain",
        columns,
        body,
        ident="heldout-table",
        note=f"{seeds_note(rows)} {told}".strip(),
        data=flat_rows(rows),
    )
    return turned(table)


def answers_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Place each model between "skill absent" and "skill perfect" in each generated domain."""
    domains = by_domain(domain_of(row) for row in rows)
    look = looks(study)
    bounds = [
        row
        for metric in ("entropy_absent_bits", "entropy_perfect_bits")
        for row in pick(study.rows, name="heldout", metric=metric)
        if only_domain(row)
    ]
    panels = [Panel(d, _panel(d, rows, bounds, look)) for d in domains]
    return Block(
        "answer-bits",
        "What was learnt of each generated skill",
        "The left dashed line is a perfect model, the right one a model that knows the format "
        "alone. " + _nearest(rows, domains),
        [View("bits per answer", panels)],
        flat_rows([*rows, *bounds]),
        key="Both lines are computed from the generator, not measured.",
    )


def _panel(
    domain: str, rows: Sequence[MetricRow], bounds: Sequence[MetricRow], look: dict[str, Look]
) -> Canvas:
    here = [row for row in rows if domain_of(row) == domain and row.model in look]
    models = [name for name in look if pick(here, model=name)]
    drawn = [
        Dot(
            models.index(str(row.model)),
            value_of(row),
            look[str(row.model)],
            f"{who(row)}: {fixed(value_of(row), 2)} bit per answer",
        )
        for row in here
    ]
    row = 24 if len(models) > MANY else None
    result = dots(models, drawn, "bits per answer (lower is better)", apart=False, row=row)
    for metric in ("entropy_perfect_bits", "entropy_absent_bits"):
        found = [r for r in bounds if domain_of(r) == domain and r.metric == metric]
        if found:
            result.axes.axvline(value_of(found[0]), color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    return result


def _nearest(rows: Sequence[MetricRow], domains: Sequence[str]) -> str:
    """Name the lowest point of each domain."""
    parts = []
    for domain in domains:
        best = min((r for r in rows if domain_of(r) == domain), key=value_of)
        absent = MISSING if best.baseline is None else fixed(best.baseline, 1)
        parts.append(f"{domain} {fixed(value_of(best), 1)} ({best.model}) against {absent}")
    return f"Lowest point against the format alone, in bits: {'; '.join(parts)}."
