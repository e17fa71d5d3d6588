"""Picks recorded rows; adds nothing to them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from engram_eval.records import MetricRow
from reports.load import Comparison, Model, Rows, Study

T = TypeVar("T", bound=Hashable)


def asked(study: Study, part: str, key: str, otherwise: Any) -> Any:
    """Return what the study's configuration asks for, or ``otherwise`` where it does not say."""
    config = study.config.get(part)
    return config.get(key, otherwise) if isinstance(config, Mapping) else otherwise


def pick(rows: Iterable[MetricRow], **wanted: Any) -> list[MetricRow]:
    """Return the rows whose fields equal the wanted values and that have a value of their own."""
    # One field after the other, because most rows differ in the first.
    if isinstance(rows, Rows) and "name" in wanted:
        rows = rows.named.get(wanted.pop("name"), [])
    for name, value in wanted.items():
        get = attrgetter(name)
        rows = [row for row in rows if get(row) == value]
    return [row for row in rows if row.value is not None]


def value_of(row: MetricRow) -> float:
    """Return the value of a row that ``pick`` returned."""
    assert row.value is not None
    return float(row.value)


def values(rows: Iterable[MetricRow]) -> list[float]:
    """Return the values in the order of their seeds."""
    return [value_of(row) for row in sorted(rows, key=lambda row: row.seed or 0)]


def who(row: MetricRow) -> str:
    """Name the model and seed of a row."""
    return f"{row.model}" if row.seed is None else f"{row.model}, seed {row.seed}"


def domain_of(row: MetricRow | Comparison) -> str:
    """Return the domain that a row or a difference is about, ``all`` where it names none."""
    return row.slice.get("domain", "all")


def by_domain(names: Iterable[str]) -> list[str]:
    """Return distinct domains in the order of every table and picture: all text, then by name."""
    return sorted(set(names), key=lambda name: (name != "all", name))


def only_domain(row: MetricRow) -> bool:
    """Tell whether a row's slice names a domain, or nothing, and not some finer group."""
    return set(row.slice) <= {"domain"}


def ordered(names: Iterable[T], first: Sequence[T] = ()) -> list[T]:
    """Return distinct names in order of appearance, those of ``first`` in front."""
    seen = list(dict.fromkeys(names))
    return [n for n in first if n in seen] + [n for n in seen if n not in first]


def heldout(study: Study, metric: str = "bits_per_byte") -> list[MetricRow]:
    """Return the held-out rows per domain of the trained models and the baselines.

    Where the evaluation of a trained model is missing, those of all at the end of training instead:
    fewer sequences, but the same for every model. Baselines were not scored on them.
    """
    if scored_in_training_alone(study):
        return [row for row in _last_validation(study) if row.metric == metric]
    rows = pick(study.rows, name="heldout", metric=metric, condition=None)
    return [row for row in rows if only_domain(row)]


def scored_in_training_alone(study: Study) -> bool:
    """Return whether a model that was trained to its end lacks its evaluation of held-out text."""
    if not asked(study, "evaluate", "heldout", True):
        return False
    rows = pick(study.rows, name="heldout", metric="bits_per_byte", condition=None)
    scored = {(row.model, row.seed) for row in rows}
    apart = told_apart(study)
    return any(
        (row.model, row.seed) not in scored
        for row in _last_validation(study)
        if row.model not in apart
    )


def told_apart(study: Study) -> set[str]:
    """Return the models with a text of their own that are there to be told changed facts.

    They are scored on these, and not on the study's text.
    """
    told = {str(way).rpartition("+")[0] for way in asked(study, "update", "ways", ())}
    models = study.config.get("models")
    listed = [each for each in models if isinstance(each, Mapping)] if models else []
    return {str(each.get("name")) for each in listed if each.get("corpus")} & told


def loaded(study: Study) -> bool:
    """Tell whether all models of a study were trained before, and only opened by it."""
    models = study.config.get("models")
    listed = models if isinstance(models, list) else []
    return bool(listed) and all(isinstance(each, Mapping) and each.get("path") for each in listed)


def _last_validation(study: Study) -> list[MetricRow]:
    """Return the validation rows per domain of each trained model's last step."""
    rows = [r for r in pick(study.rows, name="train", split="val") if only_domain(r) and r.step]
    last: dict[tuple[str | None, int | None], int] = {}
    for row in rows:
        run = row.model, row.seed
        last[run] = max(last.get(run, 0), row.step or 0)
    return [row for row in rows if row.step == last[row.model, row.seed]]


def memories(study: Study) -> list[Model]:
    """Return the models with a memory that are matched in cost to another one."""
    known = {model.name for model in study.models}
    return [
        m for m in study.models if m.matched_to in known and m.architecture.get("engram_layers")
    ]


def headline_pair(study: Study) -> tuple[Model, Model] | None:
    """Return (reference, candidate): the models that the study's question sets side by side.

    The candidate is the last model matched to another one, of those with a memory where there
    are some, and the plain ``engram`` among these; without a match, the last two models.
    """
    by_name = {model.name: model for model in study.models}
    memory = memories(study)
    plain = [m for m in memory if m.name == "engram"]
    matched = [m for m in study.models if m.matched_to in by_name]
    for model in (plain or memory or matched)[-1:]:
        return by_name[str(model.matched_to)], model
    return (study.models[-2], study.models[-1]) if len(study.models) > 1 else None


def pooled_comparisons(study: Study, metric: str) -> list[Comparison]:
    """Return the headline pair's comparisons, each over as many seeds as there is one for."""
    pair = headline_pair(study)
    names = None if pair is None else (pair[0].name, pair[1].name)
    return widest(
        c for c in study.comparisons if c.metric == metric and (c.model_a, c.model_b) == names
    )


def widest(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Keep, of comparisons about the same thing, the one over most seeds."""
    found: dict[Hashable, Comparison] = {}
    for c in comparisons:
        about = (c.model_a, c.model_b, c.name, c.metric, c.split, tuple(sorted(c.slice.items())))
        if about not in found or _weight(c) > _weight(found[about]):
            found[about] = c
    return list(found.values())


def _weight(found: Comparison) -> tuple[int, bool]:
    """Prefer what covers more seeds, and a test over seeds to one over items."""
    return len(found.seeds_a) + len(found.seeds_b), found.units == "seeds"
