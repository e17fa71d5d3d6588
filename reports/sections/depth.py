"""Use of depth: what blocks add, how far a change travels, when predictions settle."""

import dataclasses
from collections.abc import Mapping, Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.query import ordered, pick
from reports.sections.category_dots import by_model, category_dots
from reports.sections.layers import SOLID, drawn_models, layer_panel, slice_views
from reports.theme import Look, looks


def depth_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw what blocks add, how far a change travels, and when predictions settle."""
    look = looks(study)
    added = pick(rows, metric="added_norm_ratio")

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        result = layer_panel(part, look, "added over the stream's length", SOLID, width)
        # The first block adds a hundred times what it reads, the later ones a fraction of it.
        result.axes.set_yscale("log")
        result.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return result

    whole = [row for row in added if not row.slice]
    views = [*slice_views(whole, draw), _travel_view(rows, look), _settled_view(rows, look)]
    views[0] = View("what blocks add", views[0].panels)
    settled = [row for row in pick(rows, metric="settled_layer") if row.slice]
    easy, hard = (
        by_model(
            drawn_models(study, rows), [r for r in settled if r.slice.get("difficulty") == kind]
        )
        for kind in ("easy", "hard")
    )
    return Block(
        "depth",
        "Use of depth: what blocks add, and when the model has decided",
        f"Block from which the lens keeps naming the final token, easy third: {easy}; hard third: "
        f"{hard}.",
        views,
        flat_rows(rows),
        legend=drawn_models(study, rows),
        key="Travel: after block 0 one token's stream is replaced by another's.",
    )


def _travel_view(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View:
    change = pick(rows, metric="change_ratio")
    panels = []
    for offset in ordered(row.slice["offset"] for row in change):
        part = [row for row in change if row.slice["offset"] == offset]
        drawn = layer_panel(part, look, "relative change", {"stream_replaced": "-"}, 320)
        panels.append(Panel(f"{offset} tokens later", drawn))
    return View("how far a change travels", panels)


def _settled_view(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View:
    settled = [
        row
        for row in pick(rows, metric="settled_layer")
        if set(row.slice) in ({"difficulty"}, {"domain"})
    ]
    plain = [dataclasses.replace(row, baseline=None) for row in settled]
    drawn = category_dots(plain, lambda row: next(iter(row.slice.values())), look, "block")
    return View("when predictions settle", [Panel("", drawn)])
