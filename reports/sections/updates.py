"""Facts that change after training: what each way of telling a model does to all it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from engram_eval.records import BEFORE_UPDATE, MetricRow
from reports.blocks import Block, Cell, Column, Item, Table, View, flat_rows, panel
from reports.draw import HOLLOW, Canvas, Dot, dots
from reports.load import Study
from reports.numbers import fixed, middle, percent
from reports.query import ordered, pick, value_of, values, who
from reports.sections.columns import seeds_cell
from reports.theme import REFERENCE, Look, looks

NAME, BEFORE = "update", BEFORE_UPDATE

ALONE = REFERENCE._replace(marker="s")
"""How a memory without a model is drawn: unlike a reference's lines, a square can be hollow."""


class Asked(NamedTuple):
    """What is asked before and after, by the labels of its rows, and what stands over it."""

    label: str
    band: str
    slice: Mapping[str, str]


ASKED = (
    Asked("as told", "changed facts", {"facts": "changed", "wording": "told"}),
    Asked("in other words", "changed facts", {"facts": "changed", "wording": "untold"}),
    Asked("old value as told", "changed facts", {"facts": "stale", "wording": "told"}),
    Asked("other facts", "the same people", {"facts": "neighbours"}),
    Asked("all facts", "other people", {"facts": "unchanged"}),
)


def update_items(study: Study) -> list[Item]:
    """Return a picture and a table with a row per way; none where no fact changed."""
    rows = pick(study.rows, name=NAME)
    if not rows:
        return []
    ways = _ways(study, rows)
    return [_block(study, rows, ways), _table(rows, ways)]


def _ways(study: Study, rows: Sequence[MetricRow]) -> list[str]:
    asked = study.config.get("update")
    listed = asked.get("ways", ()) if isinstance(asked, Mapping) else ()
    return ordered((str(row.model) for row in rows), first=listed)


def _block(study: Study, rows: Sequence[MetricRow], ways: Sequence[str]) -> Block:
    look = {way: looks(study).get(way.rpartition("+")[0], ALONE) for way in ways}
    views = []
    for asked in ASKED:
        part = pick(rows, metric="exact_match", slice=dict(asked.slice))
        label = f"{asked.band}, {asked.label}"
        draw = partial(_picture, part, ways, look, "share answered")
        views.append(View(label, [panel(draw)]))
    text = pick(rows, metric="bits_per_byte")
    if text:
        label = "bits per byte (lower is better)"
        views.append(View("other text", [panel(partial(_picture, text, ways, look, label))]))
    before = any(row.condition == BEFORE for row in rows)
    return Block(
        NAME,
        "Facts that change after training",
        finding(rows, ways),
        views,
        flat_rows(rows),
        legend=[m for m in ordered(way.rpartition("+")[0] for way in ways) if m],
        key="Each point is one seed; an answer counts if greedy decoding writes it whole. Nobody "
        "is scored by whom a rate was chosen. "
        "Added: new passages beside the old text of an index; replaced: what tells the old values "
        "is taken out. A model's name stands before what it was told by; grey is no model at all.",
        strokes={HOLLOW: "before anything was told"} if before else {},
    )


def finding(rows: Sequence[MetricRow], ways: Sequence[str]) -> str:
    """Name the ways that answer most changed facts, and what is lost most elsewhere."""
    parts = []
    for asked in ASKED[:2]:
        shares = _middles(rows, ways, asked)
        best = max(shares, key=shares.__getitem__, default="")
        parts += [f"most {asked.label} by {best} ({percent(shares[best])} %)"] if best else []
    told = f"Changed facts are answered {' and '.join(parts)}"
    before, after = (_middles(rows, ways, ASKED[-1], condition) for condition in (BEFORE, None))
    lost = {way: before[way] - after[way] for way in after if way in before}
    worst = max(lost, key=lost.__getitem__, default="")
    if worst:
        fall = f"{percent(before[worst])} to {percent(after[worst])} %"
        told += f"; facts of other people go from {fall} by {worst}"
    return f"{told} (middle seeds)."


def _middles(
    rows: Sequence[MetricRow], ways: Sequence[str], asked: Asked, condition: str | None = None
) -> dict[str, float]:
    """Return the middle seed's share of right answers by way, where it was asked."""
    found = {way: values(_of(rows, way, "exact_match", asked.slice, condition)) for way in ways}
    return {way: middle(shares) for way, shares in found.items() if shares}


def _picture(
    rows: Sequence[MetricRow],
    ways: Sequence[str],
    look: Mapping[str, Look],
    label: str,
    width: int,
) -> Canvas:
    drawn = []
    # What was before lies below.
    for row in sorted(rows, key=lambda row: row.condition is None):
        way, before = str(row.model), row.condition == BEFORE
        tip = f"{who(row)}{', before' if before else ''}: {fixed(value_of(row))}"
        drawn.append(Dot(ways.index(way), value_of(row), look[way], tip, hollow=before))
    return dots(ways, drawn, label, width, apart=False, row=26)


def _table(rows: Sequence[MetricRow], ways: Sequence[str]) -> Table:
    columns = [Column("Way", numeric=False)]
    columns += [Column(f"{asked.label}, %", band=asked.band) for asked in ASKED]
    columns += [Column(label, band="other text") for label in ("bits/byte", "added")]
    columns += [Column(label, band="the update") for label in ("s", "MB written", "rate")]
    return Table(
        "What an update changes, and what it costs",
        columns,
        [_cells(rows, way) for way in ways],
        ident="update-costs",
        note="The middle of all seeds, below it the lowest and the highest; right of an arrow what "
        "is answered after the update, left of it before. Seconds of the steps themselves, or to "
        "build an index anew; written is what differs of the weights, or the whole index. The rate "
        "is over the peak rate in training, chosen among several by people who are not scored.",
    )


def _cells(rows: Sequence[MetricRow], way: str) -> list[Cell]:
    cells = [Cell(way)]
    for asked in ASKED:
        before, after = (
            values(_of(rows, way, "exact_match", asked.slice, condition))
            for condition in (BEFORE, None)
        )
        cell = seeds_cell(after, percent)
        arrow = f"{percent(middle(before))} → {cell.text}" if before else cell.text
        cells.append(replace(cell, text=arrow))
    old, new = (values(_of(rows, way, "bits_per_byte", {}, c)) for c in (BEFORE, None))
    added = [b - a for a, b in zip(old, new, strict=True)] if len(old) == len(new) else []
    cells += [seeds_cell(new, fixed), seeds_cell(added, partial(fixed, sign=True))]
    cells.append(seeds_cell(values(_of(rows, way, "update_seconds", {})), partial(fixed, digits=2)))
    sizes = [value / 1e6 for value in values(_of(rows, way, "update_bytes", {}))]
    cells.append(seeds_cell(sizes, partial(fixed, digits=2)))
    cells.append(seeds_cell(values(_of(rows, way, "update_rate", {})), partial(fixed, digits=2)))
    return cells


def _of(
    rows: Sequence[MetricRow],
    way: str,
    metric: str,
    labels: Mapping[str, str],
    condition: str | None = None,
) -> list[MetricRow]:
    return pick(rows, model=way, metric=metric, slice=dict(labels), condition=condition)
