"""Finds the metric rows that a claim is about, and makes one number of them per arm and seed."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from engram_eval.claims.claim import MEAN_OF_TASKS, Rows, Score
from engram_eval.errors import UserError
from engram_eval.evaluation.informative import judge_tasks
from engram_eval.records import EQUAL_LOSS, MetricRow, canonical_json

NO_LOGARITHM = "no logarithm of a number that is not above 0"
NO_VALUE = "their rows have no value"
OF_OTHER = "of_other"
OF_PARTNER = {"model", "seed"}
"""All that is said of the model whose loss is met, by a row about one model."""

Trained = tuple[str, int]
Key = tuple[str, str, str, str | None, str | None, int | None, str | None, tuple[str, ...]]


class Table(NamedTuple):
    """Metric rows of trained models, found by what they are about.

    Attributes:
        cells: values by (what the row is about) and (model, seed).
        empty: models that have a row of that key without a value: what was measured is not
            defined, as a share of a gain where nothing was gained.
        asked: the smallest number of items behind a row, by what it is about; 0 where one does not
            say.
        last: whether a model's checkpoint that meets a partner's loss is the end of its training,
            by (model, partner) and seed.
    """

    cells: Mapping[Key, Mapping[Trained, Sequence[float]]]
    empty: Mapping[Key, Collection[str]]
    last: Mapping[tuple[str, str], Mapping[int, bool]]
    asked: Mapping[Key, int]

    def has(self, rows: Rows) -> bool:
        """Tell whether any model has the row."""
        return bool(self._cells(rows))

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

    def step(self, score: Score) -> float:
        """Return by how much one more right answer changes a score of shares at most."""
        asked = [(abs(weight), self.asked.get(_key(rows), 0)) for weight, rows in score.terms]
        return max(weight / n if n else math.inf for weight, n in asked)

    def seeds(self, rows: Rows, model: str) -> list[int]:
        """Return the seeds of a model that have a row with a value."""
        return sorted(seed for name, seed in self._cells(rows) if name == model)

    def _cells(self, rows: Rows) -> Mapping[Trained, Sequence[float]]:
        cells = self.cells.get(_key(rows), {})
        if not rows.equal_loss:
            return cells
        ends = self.cells.get(_key(rows._replace(equal_loss=())), {})
        found = {}
        for model, partner in permutations(rows.equal_loss):
            for seed, last in self.last.get((model, partner), {}).items():
                if rows.other == model:
                    # Beside its own other seeds, for the null: all of them are at their end.
                    last = True
                elif rows.other == partner:
                    last = last and self.last.get((partner, model), {}).get(seed, False)
                chosen = ends if last else cells
                if (model, seed) in chosen:
                    found[model, seed] = chosen[model, seed]
        return found

    def _column(self, rows: Rows) -> dict[Trained, float]:
        cells = self._cells(rows)
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
        rows.equal_loss,
    )


def read_table(rows: Sequence[MetricRow]) -> Table:
    """Index the rows that name a model and a seed, at the end of training.

    Of other checkpoints those count that meet another model's loss: scores under that condition,
    what probes found as ``Rows.equal_loss`` says. Rows about a pair of models are found by the
    partner's name (``Rows.other``).
    """
    cells: dict[Key, dict[Trained, list[float]]] = {}
    empty: dict[Key, set[str]] = {}
    asked: dict[Key, int] = {}
    for row in rows:
        if row.model is None or row.seed is None:
            continue
        about = Rows(row.name, row.metric, row.slice, row.condition, row.site, row.layer)
        early = read_early(row)
        partial = row.step is not None or row.other is not None
        if early is None and partial and row.condition != EQUAL_LOSS:
            continue
        key = _key(about if early is None else early[1])
        if row.value is None:
            empty.setdefault(key, set()).add(row.model)
        else:
            cells.setdefault(key, {}).setdefault((row.model, row.seed), []).append(row.value)
            asked[key] = min(asked.get(key, row.n or 0), row.n or 0)
    cells |= {**_task_means(rows), **_pair_means(rows)}
    return Table(cells, empty, _last(rows), asked)


def _last(rows: Iterable[MetricRow]) -> dict[tuple[str, str], dict[int, bool]]:
    """Return which checkpoints of equal loss are the end of their training.

    That is known by the loss: what a model ends with is what its partner had to meet.
    """
    met = {
        (row.model, str((row.other or {}).get("model")), row.seed): row
        for row in rows
        if row.name == EQUAL_LOSS and row.model is not None and row.seed is not None
    }
    found: dict[tuple[str, str], dict[int, bool]] = {}
    for (model, partner, seed), row in met.items():
        wanted = met.get((partner, model, seed))
        if wanted is not None:
            found.setdefault((model, partner), {})[seed] = row.value == wanted.baseline
    return found


def read_early(row: MetricRow) -> tuple[Trained, Rows] | None:
    """Return whose number an earlier checkpoint's row of a probe is, and as what a claim names it.

    Returns:
        None for rows from the end, about two models, or that no other model's loss belongs to.
    """
    other = row.other or {}
    if row.step is None or row.condition == EQUAL_LOSS or row.name == EQUAL_LOSS:
        return None
    if row.model is None or row.seed is None or set(other) != OF_PARTNER:
        return None
    pair = tuple(sorted((row.model, str(other["model"]))))
    about = Rows(row.name, row.metric, row.slice, row.condition, row.site, row.layer, None, pair)
    return (row.model, row.seed), about


def read_pair(row: MetricRow) -> tuple[Trained, Rows] | None:
    """Return whose number a row about two trained models is, and as what a claim names it.

    Under the condition ``of_other`` the second model's number stands in a row of the first. Where
    one of the two is an earlier checkpoint, that meets the loss of the other.

    Returns:
        None for rows about one model, or about a pair of layers; and for pairs that no claim is
        about: different models of different seeds.
    """
    other = row.other or {}
    second = (other.get("model"), other.get("seed"))
    alone = row.step is not None and set(other) == OF_PARTNER
    whole = not alone and (row.layer is None or other.get("layer") is None)
    if not whole or row.model is None or row.seed is None or None in second:
        return None
    own, partner = (row.model, row.seed), (str(second[0]), int(str(second[1])))
    layer, condition = row.layer, row.condition
    if condition == OF_OTHER:
        own, partner, condition = partner, own, None
        layer = other.get("layer")
    if own[0] != partner[0] and own[1] != partner[1]:
        return None
    met = () if row.step is None else tuple(sorted((own[0], partner[0])))
    about = Rows(row.name, row.metric, row.slice, condition, row.site, layer, partner[0], met)
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
