"""Gates, routers and the table: what is used, by whom, and how often."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.blocks import Block, Cell, Column, Panel, Table, View, flat_rows, panel
from reports.draw import Canvas, Line, lines
from reports.load import Study
from reports.numbers import MISSING, fixed
from reports.query import ordered, pick, value_of, values, who
from reports.sections.category_dots import by_model, category_dots
from reports.sections.columns import seeds_cell, seeds_note
from reports.sections.layers import SOLID, drawn_models, layer_panel
from reports.theme import Look, looks

POLICIES = {"hottest": "-", "lfu": "--", "lru": ":"}
STROKES = {
    "-": "the rows read most, known in hindsight",
    "--": "least frequently used goes",
    ":": "least recently used goes",
    "o": "rows drawn at random",
}


def gates_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw the mean gate by n-gram count, domain and predictability."""
    look, kept = looks(study), pick(rows, metric="gate_mean")
    models = drawn_models(study, kept)
    views = []
    for label, title in (
        ("trigram_count", "by the trigram's count in training"),
        ("bigram_count", "by the bigram's count in training"),
        ("domain", "by domain"),
        ("static_in", "by predictability"),
        ("name", "by place in a name"),
    ):
        part = sorted((row for row in kept if set(row.slice) == {label}), key=_least)
        if part:
            drawn = category_dots(part, _only_label, look, "gate")
            views.append(View(title, [Panel("", drawn)]))
    whole = [row for row in kept if not row.slice]
    return Block(
        "gates",
        "Gates: when the memory is let in",
        f"Mean gate: {by_model(models, whole)}.",
        views,
        flat_rows(rows),
        legend=models,
        key="The mean over tokens; one point per seed and memory layer.",
    )


def names_tables(study: Study, rows: Sequence[MetricRow]) -> list[Table]:
    """List how well the gate alone tells the end of a name, beside frequency; none without it."""
    auroc, look = pick(rows, metric="auroc"), looks(study)
    if not auroc:
        return []
    body = []
    for model in drawn_models(study, auroc):
        for layer in ordered(row.layer for row in pick(auroc, model=model)):
            here = pick(auroc, model=model, layer=layer)
            alone = [row.baseline for row in here if row.baseline is not None]
            write = partial(fixed, digits=2)
            cells = [seeds_cell(values(here), write), seeds_cell(alone, write)]
            body.append([Cell(model), Cell(MISSING if layer is None else str(layer)), *cells])
    return [
        Table(
            "How well the gate alone tells the end of a name",
            [Column("Model", numeric=False), *map(Column, ("Block", "gate", "frequency alone"))],
            body,
            ident="gates-names",
            sortable=False,
            note=f"AUROC: 0.5 tells nothing, 1 all; below 0.5 the gate is less open there. "
            f"{seeds_note(auroc, bold=False)}".strip(),
            chips={name: look[name].number for name in look},
            data=flat_rows(auroc),
        )
    ]


def _least(row: MetricRow) -> int:
    """Return the number that a label such as ``8-63`` begins with; 0 for words."""
    found = re.match(r"\d+", _only_label(row))
    return int(found[0]) if found else 0


def _only_label(row: MetricRow) -> str:
    return next(iter(row.slice.values()))


def router_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw domain specialisation, entropy and load of the routers by block."""
    look = looks(study)
    titles = {
        "mutual_information_bits": "expert and domain, bits per choice",
        "entropy_bits": "entropy of a token's scores, bits",
        "router_load_max": "fullest expert over the mean",
    }
    views = []
    for metric, title in titles.items():
        part = [row for row in pick(rows, metric=metric) if not row.slice]
        views.append(View(title, [panel(partial(layer_panel, part, look, title, SOLID))]))
    shared = pick(rows, metric="mutual_information_bits")
    most = max(shared, key=value_of)
    return Block(
        "router",
        "Routers: do experts specialise by domain?",
        f"Most in {who(most)}, block {most.layer}: {fixed(value_of(most), 2)} bits per choice; "
        f"{fixed(most.baseline, 2)} with the documents' domains shuffled.",
        views,
        flat_rows(rows),
        legend=drawn_models(study, rows),
    )


def usage_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw cache curves, and what collides."""
    look = looks(study)
    curve, models = pick(rows, metric="cache_hit_rate"), drawn_models(study, rows)
    crowded = [row for row in pick(rows, metric="crowding") if row.condition]
    touched = pick(rows, metric="rows_touched")
    views = [
        View("cache of hot rows", [panel(partial(_curves, curve, look))]),
        View("use of rows", _use_panels(touched, crowded, look)),
    ]
    small = [r for r in pick(curve, condition="hottest") if r.slice["cached_share"] == "0.1"]
    told = "Share of reads that the hottest tenth of the rows serves"
    return Block(
        "memory-usage",
        "The table: rows in use, collisions, hot rows",
        f"{told}: {by_model(models, small)}.",
        views,
        flat_rows(rows),
        legend=models,
        key="Collisions: the share of a row's reads that other n-grams make, in each n-gram's "
        "least crowded head.",
        strokes=STROKES,
    )


def _use_panels(
    touched: Sequence[MetricRow], crowded: Sequence[MetricRow], look: Mapping[str, Look]
) -> list[Panel]:
    return [
        Panel(title, category_dots(part, _order, look, label))
        for title, part, label in (
            ("rows read in the text", touched, "share of rows"),
            ("reads shared with others", crowded, "share of a row's reads"),
        )
        if part
    ]


def _order(row: MetricRow) -> str:
    return f"{row.slice.get('order', '?')}-grams, block {row.layer}"


def _curves(rows: Sequence[MetricRow], look: Mapping[str, Look], width: int) -> Canvas:
    drawn = []
    for policy, dash in POLICIES.items():
        for name in ordered(f"{who(row)}, block {row.layer}" for row in rows):
            part = [
                row
                for row in pick(rows, condition=policy)
                if f"{who(row)}, block {row.layer}" == name
            ]
            ranked = sorted(part, key=lambda row: float(row.slice["cached_share"]))
            if ranked:
                x = [100 * float(row.slice["cached_share"]) for row in ranked]
                y = [value_of(row) for row in ranked]
                drawn.append(Line(x, y, look[str(ranked[0].model)], f"{name}, {policy}", dash))
    return lines(drawn, "rows in the cache, % of the table", "reads served", width)
