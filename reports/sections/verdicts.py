"""Verdicts: what each published claim came to at this scale, with its effect as a forest plot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from reports.blocks import Block, Cell, Column, Section, Table, View, panel
from reports.draw import Canvas, Dot, dots, zero_line
from reports.load import Study, Verdict
from reports.numbers import MISSING, fixed, listing, p_value, percent
from reports.query import ordered
from reports.theme import GRID, INK, MUTED, Look

FILE = "verdicts.json"
MARKS = {
    "supported": Look(-3, INK, "o"),
    "no_difference": Look(-3, INK, "s"),
    "reversed": Look(-3, INK, "X"),
    "inconclusive": Look(-3, MUTED, "o"),
}
ALPHA = 0.05
# Height of a claim's row where there may be many, in drawing units.
ROW = 20
READ = (
    "Right of the line is what the claim says; one of no difference is reversed on either side. "
    "Bars: 95 % intervals over seeds, not "
    "corrected for the number of claims; the verdicts are. The thin grey bar is the "
    "smallest effect of interest: an interval within it means no difference. "
    "Filled circle supported, square no difference, cross reversed, hollow inconclusive."
)
# Where on the page the rows of a probe, a task or a training are shown.
EVIDENCE = {
    "heldout": "heldout-table",
    "tasks": "against-reference",
    "train": "training-curves",
    "logit_lens": "logit-lens",
    "linear": "linear-probe",
    "knockout": "knock-out",
}
# What the figure at equal loss draws or tells.
AT_EQUAL_LOSS = ("logit_lens", "cka")


def section(study: Study) -> Section:
    """Build the forest plot and the table of claims, or say that there are none."""
    if not study.verdicts:
        lead, missing = _without(study)
        return Section("verdicts", "Verdicts", lead=lead, missing=missing)
    tested = [v for v in study.verdicts if v.effect is not None]
    return Section(
        "verdicts",
        "Verdicts",
        lead="Each claim was written down with its test and its smallest effect of interest before "
        "the runs. A verdict holds at this scale only.",
        items=[
            *([forest_block(tested, study.verdicts)] if tested else []),
            verdict_table(study.verdicts),
            *curve_tables([v for v in study.verdicts if v.shape]),
        ],
        missing=[] if tested else [f"No claim could be tested: {reasons(study.verdicts)}."],
    )


def _without(study: Study) -> tuple[str, list[str]]:
    """Say why there is no claim: in plain words where none is due, else as what is missing."""
    if any(problem.where.startswith(FILE) for problem in study.problems):
        return "", [f"No claim could be read ({FILE})."]
    if study.abridged:
        return "No published claim could be tested in this study.", []
    if study.verdicts is None:
        return "", [f"No verdict is recorded yet ({FILE})."]
    return "No published claim is about this study.", []


def reasons(verdicts: Sequence[Verdict]) -> str:
    """Join the distinct reasons that are recorded."""
    return "; ".join(ordered(v.reason for v in verdicts if v.reason)) or "no reason is recorded"


def tally(verdicts: Sequence[Verdict]) -> str:
    """Count verdicts in a sentence: ``9 claims at this scale: 3 supported ...``."""
    return f"{len(verdicts)} claims at this scale: {_counts(verdicts)}."


def _counted(verdicts: Sequence[Verdict]) -> str:
    return f"{len(verdicts)} claims, each at its study's scale only: {_counts(verdicts)}."


def _counts(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(v.word for v in verdicts)
    return listing([f"{count} {name}" for name, count in counts.most_common()])


def forest_block(verdicts: Sequence[Verdict], every: Sequence[Verdict]) -> Block:
    """Draw the effects and intervals of tested claims, one picture per unit.

    Args:
        verdicts: those that have an effect.
        every: all of them, which the finding counts.
    """
    units = ordered(v.unit for v in verdicts)
    views = [
        View(unit or "effect", [panel(partial(_forest, [v for v in verdicts if v.unit == unit]))])
        for unit in units
    ]
    rows = [_csv(v) for v in verdicts]
    return Block("claims-forest", "Effect of each claim", tally(every), views, rows, key=READ)


def forest_by_study(judged: Sequence[tuple[str, Sequence[Verdict]]]) -> Block:
    """Draw the effects of the tested claims of several studies, one picture per unit.

    Args:
        judged: names of studies with all their verdicts.
    """
    every = [v for _, verdicts in judged for v in verdicts]
    tested = [(name, [v for v in verdicts if v.effect is not None]) for name, verdicts in judged]
    units = ordered(v.unit for _, verdicts in tested for v in verdicts)

    def of(unit: str) -> list[tuple[str, list[Verdict]]]:
        found = [(name, [v for v in verdicts if v.unit == unit]) for name, verdicts in tested]
        return [(name, verdicts) for name, verdicts in found if verdicts]

    views = [View(unit or "effect", [panel(partial(_forests, of(unit)))]) for unit in units]
    rows = [{"run": name, **_csv(v)} for name, verdicts in tested for v in verdicts]
    title = "Effect of each claim, study by study"
    return Block("claims-by-study", title, _counted(every), views, rows, key=READ)


def _forest(verdicts: Sequence[Verdict], width: int) -> Canvas:
    names = [short(v) for v in verdicts]
    found = [_effect_dot(v, position) for position, v in enumerate(verdicts)]
    result = dots(names, found, f"effect, {verdicts[0].unit}", width, apart=False)
    _margins(result, dict(enumerate(verdicts)))
    return result


def _forests(judged: Sequence[tuple[str, Sequence[Verdict]]], width: int) -> Canvas:
    """Draw claims below the name of their study."""
    names, heads, placed = list[str](), dict[int, str](), dict[int, Verdict]()
    for study, verdicts in judged:
        heads[len(names)] = study
        placed |= {len(names) + 1 + i: v for i, v in enumerate(verdicts)}
        names += ["", *map(short, verdicts)]
    found = [
        _effect_dot(v, position, study)
        for position, v in placed.items()
        for study in [heads[max(head for head in heads if head < position)]]
    ]
    unit = judged[0][1][0].unit
    result = dots(names, found, f"effect, {unit}", width, apart=False, row=ROW, heads=heads)
    _margins(result, placed)
    return result


def _effect_dot(v: Verdict, position: int, study: str = "") -> Dot:
    told = f"{v.claim}: {fixed(v.effect, sign=True)} {v.unit}, {v.word}"
    return Dot(
        position,
        v.effect or 0,
        MARKS.get(v.verdict, MARKS["inconclusive"]),
        f"{study}: {told}" if study else told,
        hollow=v.verdict in ("inconclusive", "no_difference"),
        low=v.ci_low,
        high=v.ci_high,
    )


def _margins(target: Canvas, verdicts: Mapping[int, Verdict]) -> None:
    """Draw each row's smallest effect of interest around the line of no effect."""
    for position, v in verdicts.items():
        if v.smallest_effect:
            margin = [-v.smallest_effect, v.smallest_effect]
            target.axes.plot(margin, [position, position], color=GRID, linewidth=9, zorder=0.5)
    zero_line(target)


def short(verdict: Verdict) -> str:
    """Return a claim's name without that of its study."""
    return verdict.id.partition(".")[2].replace("_", " ") or verdict.id


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """List every claim with the published figure beside ours and where its evidence is."""
    columns = [
        Column("Claim", numeric=False),
        Column("Verdict", numeric=False),
        Column("Effect [95 % interval, not corrected]", numeric=False),
        Column("p, corrected"),
        Column("Published", numeric=False),
        Column("Seeds"),
        Column("Power, %"),
        Column("Evidence", numeric=False),
    ]
    return Table(
        "Claims, the published figure beside ours",
        columns,
        [_row(v) for v in verdicts],
        ident="claims",
        stacked=True,
        note="Verdicts are corrected for the number of claims (Holm), the intervals over seeds are "
        'not: one that excludes 0 can stand beside "inconclusive". p: of no difference; below '
        "it, where that is shown, of one as large as the smallest effect of interest. Power: the "
        "chance to find that effect with this spread, after correction. In small letters: a "
        "claim's name in the figure above.",
    )


def claims_by_study(judged: Sequence[tuple[str, Sequence[Verdict]]]) -> Table:
    """List every claim of several studies, those of one claim below each other.

    Args:
        judged: names of studies with all their verdicts.
    """
    heads = ("Claim", "Study", "Verdict", "Effect [95 % interval, not corrected]", "Published")
    found = [(study, v) for study, verdicts in judged for v in verdicts]
    order = ordered(v.id for _, v in found)
    body = [
        [
            Cell(v.claim, small=short(v)),
            Cell(study),
            Cell(v.word, v.word, tag=v.tag, title=v.reason or ""),
            Cell(_effect(v), v.effect, title=v.test or ""),
            Cell(v.published or MISSING),
        ]
        for study, v in sorted(found, key=lambda one: order.index(one[1].id))
    ]
    columns = [Column(head, numeric=False) for head in heads]
    return Table("Each claim, study by study", columns, body, ident="claims", stacked=True)


def curve_tables(verdicts: Sequence[Verdict]) -> list[Table]:
    """Say of claims about a curve which forms fit it, and where it is lowest; none without any."""
    if not verdicts:
        return []
    forms = ordered(form for v in verdicts for form in (v.shape or {}).get("weights", {}))
    columns = [
        Column("Claim", numeric=False),
        *(Column(f"{form}, %") for form in forms),
        Column("Lowest at", numeric=False),
    ]
    return [
        Table(
            "Which curve the arms lie on",
            columns,
            [_curve(v, v.shape, forms) for v in verdicts if v.shape],
            ident="curves",
            note="Weights of evidence by AICc, all seeds at once. Lowest: of a parabola, on the "
            "axis of the study, with its 95 % interval, cut off at the ends.",
        )
    ]


def _curve(v: Verdict, shape: Mapping[str, Any], forms: Sequence[str]) -> list[Cell]:
    weights, place = shape.get("weights", {}), MISSING
    if shape.get("lowest") is not None:
        lowest, low, high = (fixed(shape.get(key), 2) for key in ("lowest", "low", "high"))
        place = f"{lowest} [{low}, {high}]"
    told = [Cell(percent(weights.get(form)), weights.get(form)) for form in forms]
    return [Cell(v.claim), *told, Cell(place, shape.get("lowest"))]


def _row(v: Verdict) -> list[Cell]:
    return [
        Cell(v.claim, small=short(v)),
        Cell(v.word, v.word, tag=v.tag, title=v.reason or ""),
        Cell(_effect(v), v.effect, title=v.test or ""),
        _corrected(v),
        Cell(f"{v.published} ({v.source})" if v.source else v.published or MISSING),
        Cell(MISSING if v.seeds is None else str(v.seeds), v.seeds),
        Cell(percent(v.power), v.power) if v.effect is not None else Cell(MISSING),
        Cell(v.score or MISSING, link=evidence(v)),
    ]


def _corrected(v: Verdict) -> Cell:
    """Write the corrected p of no difference, and below it that of equivalence where it counts."""
    same = v.p_equivalence
    shown = same is not None and same < ALPHA
    small = f"equal: {p_value(same)}" if shown else ""
    return Cell(p_value(v.p_difference), v.p_difference, small=small)


def _effect(v: Verdict) -> str:
    if v.effect is None:
        return v.reason or "no reason is recorded"
    interval = " in every seed,"
    if v.ci_low is not None and v.ci_high is not None:
        interval = f" [{fixed(v.ci_low, sign=True)}, {fixed(v.ci_high, sign=True)}]"
    edge = ", tuned to the edge of what was tried" if v.at_edge else ""
    caution = edge if v.tuned else ", untuned"
    return f"{fixed(v.effect, sign=True)}{interval} {v.unit}{caution}"


def evidence(verdict: Verdict) -> str:
    """Return the id of the figure or table that shows the rows of a claim, or ""."""
    names = [str(row.get("name")) for row in verdict.rows]
    if any(row.get("equal_loss") for row in verdict.rows) and names[0] in AT_EQUAL_LOSS:
        return "equal-loss"
    return next((EVIDENCE.get(name, name.replace("_", "-")) for name in names), "")


def _csv(v: Verdict) -> dict[str, Any]:
    flat = {k: x for k, x in vars(v).items() if not isinstance(x, Mapping | list)}
    seeds = {f"{arm}, seed {s}": x for arm, by in v.values.items() for s, x in by.items()}
    return flat | seeds
