"""Finds the metric rows that a claim is about, and makes one number of them per arm and seed."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from engram_eval.claims.claim import MEAN_OF_TASKS, Rows, Score
from engram_eval.errors import UserError
from engram_eval.evaluation.informative import judge_tasks
from engram_eval.records import EQUAL_LOSS, MetricRow, canonical_json

NO_LOGARITHM = "no logarithm of a number that is not above 0"
NO_VALUE = "their rows have no value"
OF_OTHER = "of_other"

Trained = tuple[str, int]
Key = tuple[str, str, str, str | None, str | None, int | None, str | None]


class Table(NamedTuple):
    """Metric rows of trained models, found by what they are about.

    Attributes:
        cells: values by (what the row is about) and (model, seed).
        empty: models that have a row of that key without a value: what was measured is not
            defined, as a share of a gain where nothing was gained.
    """

    cells: Mapping[Key, Mapping[Trained, Sequence[float]]]
    empty: Mapping[Key, Collection[str]]

    def has(self, rows: Rows) -> bool:
        """Tell whether any model has the row."""
        return _key(rows) in self.cells

    def values(
        self, score: Score, arms: Collection[str] | None = None
    ) -> dict[str, dict[int, float]]:
        """Return a score of every arm by seed; models that lack one of its rows are left out.

        Args:
            score: what is taken of each model.
            arms: only these; None: all.

        Raises:
            UserError: the logarithm of a number that is not positive, or two rows that both fit.
        """
        columns = [(weight, self._column(rows)) for weight, rows in score.terms]
        shared = set.intersection(*(set(cells) for _, cells in columns))
        found: dict[str, dict[int, float]] = {}
        for model, seed in sorted(shared):
            if arms is not None and model not in arms:
                continue
            numbers = [(weight, cells[model, seed]) for weight, cells in columns]
            if score.log and min(value for _, value in numbers) <= 0:
                raise UserError(f"{model} seed {seed}: {NO_LOGARITHM}")
            found.setdefault(model, {})[seed] = sum(
                weight * (math.log(value) if score.log else value) for weight, value in numbers
            )
        return found

    def without_value(self, score: Score) -> set[str]:
        """Return the models with a row of a score that has no value."""
        return {model for _, rows in score.terms for model in self.empty.get(_key(rows), ())}

    def seeds(self, rows: Rows, model: str) -> list[int]:
        """Return the seeds of a model that have a row with a value."""
        return sorted(seed for name, seed in self.cells.get(_key(rows), {}) if name == model)

    def _column(self, rows: Rows) -> dict[Trained, float]:
        cells = self.cells.get(_key(rows), {})
        for (model, seed), values in cells.items():
            if len(values) > 1:
                raise UserError(f"{model} seed {seed}: {len(values)} rows fit {rows}")
        return {who: values[0] for who, values in cells.items()}


def _key(rows: Rows) -> Key:
    return (
        rows.name,
        rows.metric,
        canonical_json(dict(rows.slice)),
        rows.condition,
        rows.site,
        rows.layer,
        rows.other,
    )


def read_table(rows: Sequence[MetricRow]) -> Table:
    """Index the rows that name a model and a seed, at the end of training.

    Of other checkpoints those count that meet another model's loss, under that condition. Rows
    about a pair of models are found by the partner's name (``Rows.other``).
    """
    cells: dict[Key, dict[Trained, list[float]]] = {}
    empty: dict[Key, set[str]] = {}
    for row in rows:
        if row.model is None or row.seed is None:
            continue
        partial = row.step is not None or row.other is not None
        if partial and row.condition != EQUAL_LOSS:
            continue
        key = _key(Rows(row.name, row.metric, row.slice, row.condition, row.site, row.layer))
        if row.value is None:
            empty.setdefault(key, set()).add(row.model)
        else:
            cells.setdefault(key, {}).setdefault((row.model, row.seed), []).append(row.value)
    return Table({**cells, **_task_means(rows), **_pair_means(rows)}, empty)


def read_pair(row: MetricRow) -> tuple[Trained, Rows] | None:
    """Return whose number a row about two trained models is, and as what a claim names it.

    Under the condition ``of_other`` the second model's number stands in a row of the first.

    Returns:
        None for rows about one model, about other checkpoints, or about a pair of layers; and for
        pairs that no claim is about: different models of different seeds.
    """
    other = row.other or {}
    second = (other.get("model"), other.get("seed"))
    whole = row.step is None and (row.layer is None or other.get("layer") is None)
    if not whole or row.model is None or row.seed is None or None in second:
        return None
    own, partner = (row.model, row.seed), (str(second[0]), int(str(second[1])))
    layer, condition = row.layer, row.condition
    if condition == OF_OTHER:
        own, partner, condition = partner, own, None
        layer = other.get("layer")
    if own[0] != partner[0] and own[1] != partner[1]:
        return None
    about = Rows(row.name, row.metric, row.slice, condition, row.site, layer, partner[0])
    return own, about


def _pair_means(rows: Iterable[MetricRow]) -> dict[Key, dict[Trained, list[float]]]:
    """Return the mean over a model's partners of one name, by trained model."""
    found: dict[Key, dict[Trained, list[float]]] = {}
    for row in rows:
        pair = read_pair(row) if row.value is not None else None
        if pair is not None and row.value is not None:
            who, about = pair
            found.setdefault(_key(about), {}).setdefault(who, []).append(row.value)
    return {
        key: {who: [statistics.fmean(values)] for who, values in cells.items()}
        for key, cells in found.items()
    }


def _task_means(rows: Iterable[MetricRow]) -> dict[Key, dict[Trained, list[float]]]:
    """Return the mean accuracy over the informative tasks of each domain, by trained model."""
    rows = list(rows)
    judged = judge_tasks(rows)
    found: dict[Key, dict[Trained, list[float]]] = {}
    for row in rows:
        whole = row.metric == "acc" and row.split == "test" and set(row.slice) == {"domain"}
        whole = whole and row.condition is None
        if not whole or row.model is None or row.seed is None or row.value is None:
            continue
        if row.name in judged and judged[row.name].informative:
            key = _key(Rows(MEAN_OF_TASKS, "acc", row.slice))
            found.setdefault(key, {}).setdefault((row.model, row.seed), []).append(row.value)
    return {
        key: {who: [statistics.fmean(values)] for who, values in cells.items()}
        for key, cells in found.items()
    }
