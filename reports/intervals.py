"""A comparison of models as a Markdown table: every difference with its interval."""

from collections.abc import Mapping, Sequence

from reports.load import Comparison, Study
from reports.numbers import MISSING, fixed, p_value

# How a metric is written: heading, factor, digits.
SHOWN: Mapping[str, tuple[str, float, int]] = {
    "acc": ("accuracy, %", 100, 1),
    "acc_norm": ("accuracy by length, %", 100, 1),
    "exact_match": ("exact match, %", 100, 1),
    "f1": ("F1, %", 100, 1),
    "pass_at_1": ("pass@1, %", 100, 1),
    "bits_per_byte": ("bits/byte", 1, 3),
}


def interval_table(study: Study) -> str:
    """Return one line for each task and metric, of each model beside the first one; "" without any.

    The difference is turned so that more is better for the other model. Held-out text, slices and
    tasks that tell nobody apart are left out where there are more than two models.
    """
    models = study.config.get("models") or [{}]
    first = str(models[0].get("name"))
    seen = [c.seen_from(first) for c in study.comparisons if _is_whole_task(c)]
    found = [c for c in seen if c is not None]
    others = list(dict.fromkeys(c.model_b for c in found))
    if len(others) > 1:
        found = [c for c in found if c.informative is not False]
    if not found:
        return ""
    order = list(SHOWN)
    found.sort(key=lambda c: (others.index(c.model_b), c.name, order.index(c.metric)))
    head = ["task", "measure", first, "other", "better by", "95 % interval", "p (Holm)", "items"]
    lines = [table_row(["other model", *head]), table_row(["---"] * 3 + ["---:"] * 6)]
    lines += [table_row([c.model_b, *_cells(study, c)]) for c in found]
    return "\n".join(lines) + "\n"


def _is_whole_task(found: Comparison) -> bool:
    whole = set(found.slice) <= {"domain"} and found.name not in ("tasks", "heldout")
    return whole and found.metric in SHOWN and found.units == "items"


def _cells(study: Study, found: Comparison) -> list[str]:
    label, factor, digits = SHOWN[found.metric]
    values = [
        _score(study, found, model, seeds)
        for model, seeds in ((found.model_a, found.seeds_a), (found.model_b, found.seeds_b))
    ]
    low, high = (_number(v, factor, digits) for v in (found.ci_low, found.ci_high))
    p = found.p if found.p_adjusted is None else found.p_adjusted
    return [
        found.name,
        label,
        *(_number(value, factor, digits) for value in values),
        _number(found.effect, factor, digits),
        f"{low} to {high}" if MISSING not in (low, high) else MISSING,
        p_value(p) + ("" if found.p_adjusted is not None or p is None else " (alone)"),
        str(found.n or MISSING),
    ]


def _score(study: Study, found: Comparison, model: str, seeds: Sequence[int]) -> float | None:
    """Return a model's score, the mean over the seeds that are compared."""
    values = [
        row.value
        for row in study.rows
        if row.model == model
        and row.name == found.name
        and row.metric == found.metric
        and row.split == "test"
        and dict(row.slice) == dict(found.slice)
        and (row.seed in seeds or not seeds)
        and row.value is not None
    ]
    return sum(values) / len(values) if values else None


def _number(value: float | None, factor: float, digits: int) -> str:
    return MISSING if value is None else fixed(factor * value, digits)


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table; a bar within a cell is escaped."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
