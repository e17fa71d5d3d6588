"""Benchmarks: what every model scores on held-out text and on tasks, and how they differ."""

from collections.abc import Callable

from reports.blocks import Cell, Column, Item, Section, Table
from reports.load import Comparison, Study
from reports.numbers import fixed, percent
from reports.query import by_domain, domain_of, headline_pair, ordered, widest
from reports.sections.columns import comparison_row, difference_note, effect_cell, turned
from reports.sections.heldout import heldout_items
from reports.sections.offload import offload_tables
from reports.sections.scores import DOMAINS, task_items, uninformative_items
from reports.sections.updates import update_items
from reports.theme import looks


def section(study: Study) -> Section:
    """Build the summary over all models, then tasks, held-out text, storages, changed facts."""
    return Section(
        "benchmarks",
        "Benchmarks",
        lead="Tasks are scored by the likelihood of each option. Beside the accuracy stands what "
        "the right answer costs in bits per byte, which small models show first. Bits per byte "
        "do not depend on the tokenizer; lower is better.",
        items=[
            *reference_table(study),
            *task_items(study),
            *heldout_items(study),
            *offload_tables(study),
            *update_items(study),
            *uninformative_items(study),
        ],
    )


def reference_table(study: Study) -> list[Item]:
    """Hold every model against the reference; empty without differences of several models."""
    pair = headline_pair(study)
    if pair is None:
        return []
    reference = pair[0].name
    others = [n for n in [*study.baselines(), *(m.name for m in study.models)] if n != reference]
    found = {name: against(study, reference, name) for name in others}
    found = {name: effects for name, effects in found.items() if effects}
    keys = ordered(key for effects in found.values() for key in effects)
    if len(found) < 2:
        return []
    look = looks(study)
    write: dict[str, Callable[..., str]] = {"acc": percent, "bits_per_byte": fixed}
    kinds = {"acc": "tasks", "bits_per_byte": "held-out text"}
    body = [
        [
            Cell(domain),
            Cell(kinds[metric]),
            *(effect_cell(e.get((metric, domain)), write[metric]) for e in found.values()),
        ]
        for metric, domain in keys
    ]
    shown = [c for effects in found.values() for c in effects.values()]
    columns = [Column(name, chip=look[name].number if name in look else None) for name in found]
    table = Table(
        f"Every model against {reference}",
        [Column("Domain", numeric=False), Column("Measured on", numeric=False), *columns],
        body,
        ident="against-reference",
        note=f"Better than {reference} by: held-out text in bits per byte, tasks as the mean "
        f"accuracy of the informative ones in percentage points. {difference_note(shown)}",
        data=[comparison_row(c) for c in shown],
    )
    return [turned(table, labels=2)]


Key = tuple[str, str]


def against(study: Study, reference: str, name: str) -> dict[Key, Comparison]:
    """Return by (metric, domain) how much better a model is than the reference."""
    turned = [
        found
        for c in study.comparisons
        if (found := c.seen_from(reference)) is not None and found.model_b == name
    ]
    kept = [c for c in widest(turned) if set(c.slice) <= {"domain"}]
    texts = {domain_of(c): c for c in kept if (c.name, c.metric) == ("heldout", "bits_per_byte")}
    tasks = {domain_of(c): c for c in kept if (c.name, c.metric) == ("tasks", "acc")}
    return {("bits_per_byte", domain): texts[domain] for domain in by_domain(texts)} | {
        ("acc", domain): tasks[domain] for domain in ordered(tasks, first=DOMAINS)
    }
