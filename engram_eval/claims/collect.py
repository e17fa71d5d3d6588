"""Finds the metric rows that a claim is about, and makes one number of them per arm and seed."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engram_eval.claims.claim import MEAN_OF_TASKS, Rows, Score
from engram_eval.errors import UserError
from engram_eval.evaluation.informative import judge_tasks
from engram_eval.files import canonical_json
from engram_eval.records import EQUAL_LOSS, MetricRow

NO_LOGARITHM = "no logarithm of a number that is not above 0"
NO_VALUE = "their rows have no value"
OF_OTHER = "of_other"
OF_PARTNER = {"model", "seed"}
"""All that is said of the model whose loss is met, by a row about one model."""

Trained = tuple[str, int]
"""Model and seed."""


class Key(NamedTuple):
    """What a row is about: ``Rows`` with its labels as canonical JSON, so that it can be hashed."""

    name: str
    metric: str
    slice: str
    condition: str | None
    site: str | None
    layer: int | None
    other: str | None
    equal_loss: tuple[str, ...]


@dataclass
class Column:
    """What the rows about one thing say of each trained model.

    Attributes:
        values: more than one where several rows fit, which a score refuses.
        undefined: models that have a row without a value: what was measured is not defined, as a
            share of a gain where nothing was gained.
        asked: the smallest number of items behind a row; 0 where one does not say.
    """

    values: dict[Trained, list[float]] = field(default_factory=dict)
    undefined: set[str] = field(default_factory=set)
    asked: int = 0

    def add(self, who: Trained, value: float | None, asked: int) -> None:
        """Take in one row."""
        if value is None:
            self.undefined.add(who[0])
            return
        self.asked = min(self.asked, asked) if self.values else asked
        self.values.setdefault(who, []).append(value)


class Table(NamedTuple):
    """Metric rows of trained models, found by what they are about.

    Attributes:
        columns: by what they are about.
        last: whether a model's checkpoint that meets a partner's loss is the end of its training,
            by model, partner and seed.
    """

    columns: Mapping[Key, Column]
    last: Mapping[tuple[str, str, int], bool]

    def has(self, rows: Rows) -> bool:
        """Tell whether any model has the row."""
        return bool(self._values(rows))

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
        terms = [(weight, self._single(rows)) for weight, rows in score.terms]
        shared = set.intersection(*(set(values) for _, values in terms))
        found: dict[str, dict[int, float]] = {}
        for model, seed in sorted(shared):
            if arms is not None and model not in arms:
                continue
            numbers = [(weight, values[model, seed]) for weight, values in terms]
            if score.log and min(value for _, value in numbers) <= 0:
                raise UserError(f"{model} seed {seed}: {NO_LOGARITHM}")
            found.setdefault(model, {})[seed] = sum(
                weight * (math.log(value) if score.log else value) for weight, value in numbers
            )
        return found

    def without_value(self, score: Score) -> set[str]:
        """Return the models with a row of a score that has no value."""
        return {model for _, rows in score.terms for model in self._column(rows).undefined}

    def step(self, score: Score) -> float:
        """Return by how much one more right answer changes a score of shares at most."""
        asked = [(abs(weight), self._column(rows).asked) for weight, rows in score.terms]
        return max(weight / n if n else math.inf for weight, n in asked)

    def seeds(self, rows: Rows, model: str) -> list[int]:
        """Return the seeds of a model that have a row with a value."""
        return sorted(seed for name, seed in self._values(rows) if name == model)

    def all_at_their_ends(self, pair: Collection[str]) -> tuple[int, int]:
        """Return in how many seeds two models are nearest in loss at their ends, and of how many.

        What is read of them at equal loss is there what was read at the end.
        """
        seeds = [seed for a, b, seed in self.last if {a, b} == set(pair)]
        ended = [seed for a, b, seed in self.last if {a, b} == set(pair) and self._met(a, b, seed)]
        return len(set(ended)), len(set(seeds))

    def _column(self, rows: Rows) -> Column:
        return self.columns.get(_key(rows), Column())

    def _single(self, rows: Rows) -> dict[Trained, float]:
        """Return the one value of each trained model."""
        found = self._values(rows)
        for (model, seed), values in found.items():
            if len(values) > 1:
                raise UserError(f"{model} seed {seed}: {len(values)} rows fit {rows}")
        return {who: values[0] for who, values in found.items()}

    def _values(self, rows: Rows) -> Mapping[Trained, Sequence[float]]:
        if rows.equal_loss:
            return self._at_equal_loss(rows)
        return self._column(rows).values

    def _at_equal_loss(self, rows: Rows) -> Mapping[Trained, Sequence[float]]:
        """Return the values of two models, each from the checkpoint that meets the other's loss."""
        early = self._column(rows).values
        ends = self._column(rows._replace(equal_loss=())).values
        found = {}
        for model, partner, seed in self.last:
            if {model, partner} != set(rows.equal_loss):
                continue
            values = ends if self._ended(rows.other, model, partner, seed) else early
            if (model, seed) in values:
                found[model, seed] = values[model, seed]
        return found

    def _ended(self, other: str | None, model: str, partner: str, seed: int) -> bool:
        """Tell whether a row beside a model ``other`` (None: alone) is from the end of training."""
        if other == model:
            # Beside its own other seeds, for the null: all of them are at their end.
            return True
        last = self.last[model, partner, seed]
        return last and (other != partner or self._met(model, partner, seed))

    def _met(self, model: str, partner: str, seed: int) -> bool:
        """Tell whether each of two models is nearest to the other's loss at its own end."""
        found = (self.last.get((a, b, seed)) for a, b in ((model, partner), (partner, model)))
        return all(found)


def _key(rows: Rows) -> Key:
    return Key(**{**rows._asdict(), "slice": canonical_json(dict(rows.slice))})


def read_table(rows: Sequence[MetricRow]) -> Table:
    """Index the rows that name a model and a seed, at the end of training.

    Of other checkpoints those count that meet another model's loss: scores under that condition,
    what probes found as ``Rows.equal_loss`` says. Rows about a pair of models are found by the
    partner's name (``Rows.other``).
    """
    columns: dict[Key, Column] = defaultdict(Column)
    for row in rows:
        found = _read_alone(row)
        if found is not None:
            who, about = found
            columns[_key(about)].add(who, row.value, row.n or 0)
    return Table({**columns, **_means(_of_tasks(rows)), **_means(_of_pairs(rows))}, _last(rows))


def _last(rows: Iterable[MetricRow]) -> dict[tuple[str, str, int], bool]:
    """Return which checkpoints of equal loss are the end of their training.

    That is known by the loss: what a model ends with is what its partner had to meet.
    """
    met = {
        (row.model, str((row.other or {}).get("model")), row.seed): row
        for row in rows
        if row.name == EQUAL_LOSS and row.model is not None and row.seed is not None
    }
    return {
        (model, partner, seed): row.value == met[partner, model, seed].baseline
        for (model, partner, seed), row in met.items()
        if (partner, model, seed) in met
    }


def _about(row: MetricRow) -> Rows:
    return Rows(row.name, row.metric, row.slice, row.condition, row.site, row.layer)


def _read_alone(row: MetricRow) -> tuple[Trained, Rows] | None:
    """Return whose number a row about one model is, and as what a claim names it."""
    if row.model is None or row.seed is None:
        return None
    if (early := read_early(row)) is not None:
        return early
    partial = row.step is not None or row.other is not None
    if partial and row.condition != EQUAL_LOSS:
        return None
    return (row.model, row.seed), _about(row)


def read_early(row: MetricRow) -> tuple[Trained, Rows] | None:
    """Return whose number an earlier checkpoint's row of a probe is, and as what a claim names it.

    Returns:
        None for rows from the end, about two models, or that no other model's loss belongs to.
    """
    other = row.other or {}
    if row.step is None or EQUAL_LOSS in (row.condition, row.name):
        return None
    if row.model is None or row.seed is None or set(other) != OF_PARTNER:
        return None
    pair = tuple(sorted((row.model, str(other["model"]))))
    return (row.model, row.seed), _about(row)._replace(equal_loss=pair)


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
    if row.model is None or row.seed is None or None in second:
        return None
    if row.step is not None and set(other) == OF_PARTNER:
        return None
    if row.layer is not None and other.get("layer") is not None:
        return None
    own, partner = (row.model, row.seed), (str(second[0]), int(str(second[1])))
    about = _about(row)
    if row.condition == OF_OTHER:
        own, partner = partner, own
        about = about._replace(condition=None, layer=other.get("layer"))
    if own[0] != partner[0] and own[1] != partner[1]:
        return None
    met = () if row.step is None else tuple(sorted((own[0], partner[0])))
    return own, about._replace(other=partner[0], equal_loss=met)


Numbered = tuple[Trained, Rows, float]


def _of_pairs(rows: Iterable[MetricRow]) -> Iterator[Numbered]:
    """Yield the numbers of pairs; a model has several partners of one name."""
    for row in rows:
        pair = read_pair(row)
        if pair is not None and row.value is not None:
            yield *pair, row.value


def _of_tasks(rows: Sequence[MetricRow]) -> Iterator[Numbered]:
    """Yield the accuracies in informative tasks, all tasks of a domain under one name."""
    judged = judge_tasks(rows)
    for row in rows:
        if row.model is None or row.seed is None or row.value is None or row.name not in judged:
            continue
        whole = row.split == "test" and set(row.slice) == {"domain"} and row.condition is None
        if whole and row.metric == "acc" and judged[row.name].informative:
            yield (row.model, row.seed), Rows(MEAN_OF_TASKS, "acc", row.slice), row.value


def _means(numbers: Iterable[Numbered]) -> dict[Key, Column]:
    """Return the mean of each trained model's numbers about one thing."""
    found: dict[Key, dict[Trained, list[float]]] = defaultdict(lambda: defaultdict(list))
    for who, about, value in numbers:
        found[_key(about)][who].append(value)
    return {
        key: Column({who: [statistics.fmean(values)] for who, values in each.items()})
        for key, each in found.items()
    }
