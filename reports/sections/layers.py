"""Curves over the depth of a model, shared by the analyses that look at every block."""

from collections.abc import Callable, Mapping, Sequence

from engram_eval.records import MetricRow
from reports.blocks import Panel, View
from reports.draw import Canvas, Line, lines, share_axis
from reports.load import Study
from reports.numbers import MANY
from reports.query import pick, value_of, who
from reports.seeds import bundled
from reports.theme import Look
from reports.ticks import place_ticks

WORDS: dict[str | tuple[str, str], str] = {
    ("static_in", "high"): "token read: the most predictable third",
    ("static_in", "low"): "token read: the least predictable third",
    ("static_out", "high"): "next token: the most predictable third",
    ("static_out", "low"): "next token: the least predictable third",
    ("static_in", "name_end"): "token read: the end of a name",
    ("static_out", "name_end"): "next token: the end of a name",
    ("static_in_longest", "high"): "token read: the most predictable third",
    ("static_in_longest", "low"): "token read: the least predictable third",
    ("static_out_longest", "high"): "next token: the most predictable third",
    ("static_out_longest", "low"): "next token: the least predictable third",
    "domain": "by domain",
    "static_in": "by predictability of the token read",
    "static_in_longest": "by predictability of the token read, from its longest match",
    "static_out": "by predictability of the next token",
    "static_out_longest": "by predictability of the next token, from its longest match",
}

SOLID: dict[str | None, str] = {None: "-"}
"""The line style of a value that has no conditions."""

Draw = Callable[[Sequence[MetricRow], int], Canvas]


def drawn_models(study: Study, rows: Sequence[MetricRow]) -> list[str]:
    """Return the models that have rows, in the ledger's order."""
    return [model.name for model in study.models if pick(rows, model=model.name)]


def depth_of(row: MetricRow) -> int:
    """Place the embedding, which enters block 0, one step before the output of block 0."""
    layer = row.layer or 0
    return layer - 1 if row.site == "resid_pre" else layer


def conditions_of(rows: Sequence[MetricRow]) -> list[str | None]:
    """Return the conditions, the plain one first."""
    found: set[str | None] = {row.condition for row in rows}
    return sorted(found, key=lambda condition: (condition is not None, condition or ""))


def layer_panel(
    rows: Sequence[MetricRow],
    look: Mapping[str, Look],
    ylabel: str,
    dashes: Mapping[str | None, str],
    width: int,
    level: str = "",
) -> Canvas:
    """Draw a value by block, one line per model, seed and condition, or a band over seeds.

    Args:
        rows: of one metric and one slice.
        look: of each model.
        ylabel: what the value is.
        dashes: line style by condition; dotted for others.
        width: in drawing units.
        level: a condition that is recorded once per model, drawn over all blocks.
    """
    depths = sorted({depth_of(row) for row in rows})
    few = len({row.model for row in rows}) <= MANY
    drawn = []
    for condition in conditions_of(rows):
        for model in look:
            here = pick(rows, model=model, condition=condition)
            span, dash = depths if condition == level else None, dashes.get(condition, ":")
            seeds = [
                _line([row for row in here if (row.seed or 0) == seed], look[model], dash, span)
                for seed in sorted({row.seed or 0 for row in here})
            ]
            drawn += bundled(seeds, model + _condition(condition), banded=few)
    result = lines(drawn, "after block", ylabel, width, integer_x=True)
    shown = depths if len(depths) <= 12 else depths[:: len(depths) // 8]
    labels = ["emb." if depth < 0 else str(depth) for depth in shown]
    place_ticks(result.axes.xaxis, shown, labels)
    return result


def _condition(condition: str | None) -> str:
    return f", {condition.replace('_', ' ')}" if condition else ""


def _line(rows: Sequence[MetricRow], look: Look, dash: str, span: Sequence[int] | None) -> Line:
    ranked = sorted(rows, key=depth_of)
    first = ranked[0]
    tip = who(first) + _condition(first.condition)
    if span:
        level = value_of(first)
        return Line([span[0], span[-1]], [level, level], look, tip, dash, marked=False)
    x = [depth_of(row) for row in ranked]
    return Line(x, [value_of(row) for row in ranked], look, tip, dash)


def slice_views(rows: Sequence[MetricRow], draw: Draw, hide: str = "") -> list[View]:
    """Show all tokens, then each kind of slice, as one choice each.

    Args:
        rows: of one metric.
        draw: makes a picture of given width from the rows of one slice.
        hide: a label that every row has; it makes panels but no choice of its own.
    """
    groups: dict[tuple[str, ...], dict[str, list[MetricRow]]] = {}
    for row in rows:
        keys = tuple(sorted(key for key in row.slice if key != hide))
        groups.setdefault(keys, {}).setdefault(_title(row, hide), []).append(row)
    return [
        View(_choice(keys), _panels(groups[keys], draw))
        for keys in sorted(groups, key=lambda keys: (len(keys), keys != ("domain",), keys))
    ]


def _panels(parts: Mapping[str, Sequence[MetricRow]], draw: Draw) -> list[Panel]:
    if len(parts) == 1:
        ((title, rows),) = parts.items()
        return [Panel(title, draw(rows, 640), draw(rows, 320))]
    panels = [Panel(title, draw(rows, 320)) for title, rows in parts.items()]
    share_axis([panel.canvas for panel in panels], "y")
    return panels


def _choice(keys: Sequence[str]) -> str:
    return ", ".join(WORDS.get(key, f"by {key}") for key in keys) if keys else "all tokens"


def _title(row: MetricRow, hide: str) -> str:
    named = [row.slice[hide].replace("_", " ")] if hide in row.slice else []
    named += [
        WORDS.get((key, value), value) for key, value in sorted(row.slice.items()) if key != hide
    ]
    return ", ".join(named)
