"""Equivalent layers: how many more blocks would lower the MoE's loss as much as a memory does."""

from collections.abc import Mapping, Sequence
from functools import partial

from engram_eval.analysis.arms import UNDEEPENED, added_blocks
from engram_eval.records import MetricRow
from reports.blocks import Block, View, flat_rows, panel
from reports.draw import Canvas, Dot, Line, dots, lines
from reports.load import Comparison, Study
from reports.numbers import fixed, listing
from reports.query import by_domain, domain_of, heldout, ordered, pick, value_of, who
from reports.theme import Look, looks

METRIC = "equivalent_layers"


def equivalent_block(study: Study) -> Block | None:
    """Draw each memory's worth in blocks, and the losses from which it is read.

    None where the study has no deeper arms.
    """
    found = [c for c in study.comparisons if c.metric == METRIC and c.effect is not None]
    if not found:
        return None
    look, rows = looks(study), heldout(study)
    whole = [row for row in rows if not row.slice]
    models = ordered(c.model_b for c in found)
    worth = panel(partial(_worth, found, look))
    curves = panel(partial(_curves, whole, models, look))
    return Block(
        "equivalent-layers",
        "Equivalent layers: how many more blocks would do as much",
        _finding(found, models),
        [View("blocks", [worth]), View("losses", [curves])],
        flat_rows(rows),
        legend=[*models, UNDEEPENED],
        key="Where a model's held-out loss meets the line of MoEs with more blocks (means over "
        "seeds), the number of blocks is read off; every seed is a point. A bound: no deeper arm "
        "is as good, or the plain MoE is better. Deeper arms cost more parameters and FLOPs than "
        "the memory.",
        strokes={"o": "a bound"},
    )


def _worth(found: Sequence[Comparison], look: Mapping[str, Look], width: int) -> Canvas:
    names = by_domain(domain_of(c) for c in found)
    values = [
        Dot(
            names.index(domain_of(c)),
            float(c.effect or 0),
            look[c.model_b],
            f"{c.model_b}, seed {_seed(c)}: {_told(c)}",
            hollow=c.reason is not None,
        )
        for c in found
        if c.model_b in look
    ]
    return dots(names, values, "blocks more of the MoE", width)


def _told(found: Comparison) -> str:
    return fixed(found.effect, 1) + (f" ({found.reason})" if found.reason else "")


def _seed(found: Comparison) -> str:
    return listing([str(seed) for seed in found.seeds_b])


def _curves(
    rows: Sequence[MetricRow], models: Sequence[str], look: Mapping[str, Look], width: int
) -> Canvas:
    """Draw a line per seed of the MoE over its added blocks, and the others level."""
    placed = [(added_blocks(str(row.model)), row) for row in rows]
    deeper = [(added, row) for added, row in placed if added is not None]
    most = max(added for added, _ in deeper)
    curves = []
    for seed in sorted({row.seed or 0 for _, row in deeper}):
        line = sorted((added, value_of(row)) for added, row in deeper if (row.seed or 0) == seed)
        x, y = zip(*line, strict=True)
        curves.append(Line(x, y, look[UNDEEPENED], f"MoE with more blocks, seed {seed}"))
    for model in models:
        for row in pick(rows, model=model):
            level = value_of(row)
            here = look[model]
            curves.append(Line([0, most], [level, level], here, who(row), "--", marked=False))
    return lines(curves, "blocks more", "bits per byte", width, integer_x=True)


def _finding(found: Sequence[Comparison], models: Sequence[str]) -> str:
    """Quote every seed on all text."""
    told = []
    for model in models:
        here = [c for c in found if c.model_b == model and not c.slice]
        ranked = sorted(here, key=lambda c: c.seeds_b)
        if ranked:
            told.append(f"{model} {listing([_told(c) for c in ranked])}")
    return f"Blocks that a MoE would need more for the same held-out loss: {'; '.join(told)}."
