"""Which tasks can tell models apart: neither out of reach for all nor solved by all."""

from collections.abc import Iterable
from typing import NamedTuple

from scipy.stats import binomtest

from engram_eval.records import MetricRow

SOLVED = 0.975
ALPHA = 0.05
_NO_MODELS = frozenset({"baseline"})


class Judgement(NamedTuple):
    """Whether a task informs, and why not (or what it was judged by)."""

    informative: bool
    reason: str


def judge_tasks(rows: Iterable[MetricRow]) -> dict[str, Judgement]:
    """Judge every task by the accuracies of the trained models; baselines have no say.

    A task informs if at least one model is significantly above chance (exact binomial test, one
    sided, Bonferroni over the models, items of one source counted by what they tell together) and
    at least one is below 97.5 %.

    Args:
        rows: metric rows of any kind; used are ``acc`` rows with a baseline, over all items, of
            models as they are at the end of training.
    """
    scores: dict[str, list[MetricRow]] = {}
    for row in rows:
        whole = row.metric == "acc" and row.split == "test" and set(row.slice) <= {"domain"}
        whole = whole and row.condition is None
        if whole and row.stage not in _NO_MODELS and None not in (row.value, row.baseline, row.n):
            scores.setdefault(row.name, []).append(row)
    return {task: _judge(found) for task, found in sorted(scores.items())}


def _judge(rows: list[MetricRow]) -> Judgement:
    best = max(_value(row) for row in rows)
    if all(_value(row) >= SOLVED for row in rows):
        return Judgement(False, f"all models solve it (lowest {min(map(_value, rows)):.1%})")
    if not any(_p_chance(row) < ALPHA / len(rows) for row in rows):
        chance = rows[0].baseline
        return Judgement(False, f"no model is above chance {chance:.1%} (best {best:.1%})")
    return Judgement(True, f"best model {best:.1%}, chance {rows[0].baseline:.1%}")


def _value(row: MetricRow) -> float:
    return float(row.value or 0.0)


def _p_chance(row: MetricRow) -> float:
    """Return how likely guessing is to score at least this much."""
    n = _independent(row)
    right = round(_value(row) * n)
    return float(binomtest(right, n, float(row.baseline or 0.0), alternative="greater").pvalue)


def _independent(row: MetricRow) -> int:
    """Return as how many independent items those of a row count, which may share sources.

    So many would have the standard error that theirs has, which is s / sqrt(n) of n such items.
    """
    n, value = int(row.n or 0), _value(row)
    if not row.stderr:
        return n
    return min(n, 1 + round(value * (1 - value) / row.stderr**2))
