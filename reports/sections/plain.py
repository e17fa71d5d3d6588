"""A plain picture of a probe that none was made for: every metric by block, or as dots."""

from collections.abc import Mapping, Sequence

from engram_eval.records import METRICS, MetricRow
from reports.blocks import Block, Note, Panel, View, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.query import ordered
from reports.sections.category_dots import category_dots
from reports.sections.layers import SOLID, drawn_models, layer_panel, slice_views
from reports.theme import Look, looks


def plain_block(study: Study, rows: Sequence[MetricRow]) -> Block | Note:
    """Draw each metric and site of a probe over blocks, and what has no block as dots.

    What two blocks of two models have in common (``other`` names a block) is only told of.
    """
    name, look = rows[0].name, looks(study)
    told = f"The probe {name} has {len(rows)} rows in metrics.jsonl"
    drawn = [row for row in rows if "layer" not in (row.other or {})]
    if not drawn:
        return Note(f"{told}; no picture is made of them here.")
    metrics = ordered((row.metric, row.site) for row in drawn)
    views = [
        view
        for metric, site in metrics
        for view in _views([row for row in drawn if (row.metric, row.site) == (metric, site)], look)
    ]
    return Block(
        name.replace(":", "-").replace(".", "-"),
        f"The probe {name}",
        f"{told}, drawn as they are; what they mean is said where the probe is written.",
        views,
        flat_rows(rows),
        legend=drawn_models(study, drawn),
    )


def _views(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> list[View]:
    """Draw one metric at one site."""
    site, metric = rows[0].site, rows[0].metric.partition(":")[2] or rows[0].metric
    unit = METRICS[metric].unit if metric in METRICS else ""
    label = metric + (f", {unit}" if unit and unit != "1" else "")
    title = metric + (f" of {site}" if site else "")

    def by_block(part: Sequence[MetricRow], width: int) -> Canvas:
        return layer_panel(part, look, label, SOLID, width)

    layered = [row for row in rows if row.layer is not None]
    found = [View(f"{title}, {view.label}", view.panels) for view in slice_views(layered, by_block)]
    flat = [row for row in rows if row.layer is None]
    if flat:
        found.append(View(title, [Panel("", category_dots(flat, _about, look, label))]))
    return found


def _about(row: MetricRow) -> str:
    """Name what a row is about, beside its model: a condition, a slice, or all tokens."""
    said = [row.condition, *(f"{key} {value}" for key, value in sorted(row.slice.items()))]
    return ", ".join(part for part in said if part) or "all"
