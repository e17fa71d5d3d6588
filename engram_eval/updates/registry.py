"""Each way of telling what has changed. A new one is a file, and a line here.

A study lists ``MODEL+way``, or a memory's way alone: the memory then stands by itself, on the text
of the models that are told.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engram_eval.baselines.registry import BASELINES, read_listed
from engram_eval.config import CorpusConfig, UpdateConfig
from engram_eval.errors import UserError, look_up, unknown

LEAST_PEOPLE = 4
"""Of whom some choose rates and some are scored."""


class Way(NamedTuple):
    """A way of telling changed facts.

    Attributes:
        function: ``module:function``; takes a ``updates.told.Told`` and returns metric rows.
        about: one line.
        alone: whether it needs no model.
        rates: which field of ``UpdateConfig`` it chooses a rate of gradient descent from, if any.
        moves_rows: whether it needs a model with a table of rows.
    """

    function: str
    about: str
    alone: bool = False
    rates: str = ""
    moves_rows: bool = False


def _index(memory: str, about: str) -> dict[str, Way]:
    """Return both ways of bringing a memory's text up to date."""
    alone = BASELINES[memory].alone is not None
    return {
        f"{memory}_{state}": Way(
            f"engram_eval.updates.index:{memory}_{state}", f"{about}, {what}", alone
        )
        for state, what in (("added", "old ones kept"), ("replaced", "old ones taken out"))
    }


WAYS: dict[str, Way] = {
    "finetune": Way(
        "engram_eval.updates.weights:finetune",
        "all weights, by gradient descent",
        rates="weight_rates",
    ),
    "rows": Way(
        "engram_eval.updates.weights:rows",
        "rows of the memory's table alone, by gradient descent",
        rates="row_rates",
        moves_rows=True,
    ),
    **_index("ngram", "an n-gram model counts the new passages"),
    **_index("knn", "the new passages' states join those of a kNN-LM"),
    **_index("rag", "the new passages are retrieved before the prompt; alone, a cache reads them"),
}


def find_way(name: str) -> Way:
    """Look a way up; an unknown name raises ``UserError`` with the nearest match."""
    return look_up("way of updating", name, WAYS)


def options_for(way: str, update: UpdateConfig) -> UpdateConfig:
    """Return the options that a way depends on, all others as they are by default."""
    rates = find_way(way).rates
    used = ("people", "changes", *(("steps", "batch_size", rates) if rates else ()))
    return UpdateConfig(**{name: getattr(update, name) for name in used})


def check_told(update: UpdateConfig, architectures: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that ways which move weights are asked of models that allow it.

    Args:
        update: names of models in it exist.
        architectures: of the models, as far as they are known before one is opened.

    Raises:
        UserError: rows of a model that has none or does not train them, or a table that does not
            lie on the device.
    """
    having = [name for name, keys in architectures.items() if _has_rows(keys)]
    for listed in update.ways:
        name, model = read_listed(listed)
        way, keys = find_way(name), architectures.get(str(model))
        if keys is None or not way.rates:
            continue
        if way.moves_rows and not _has_rows(keys):
            raise UserError(
                f"update.ways: {listed!r} moves rows that are trained, which {model} has not; "
                f"models with some: {', '.join(having) or 'none'}"
            )
        storage = keys.get("engram_storage", "device")
        if storage != "device":
            raise UserError(
                f"update.ways: {listed!r} moves weights; engram_storage of {model} is {storage!r}, "
                "and must be 'device' for it"
            )


def _has_rows(keys: Mapping[str, Any]) -> bool:
    return bool(keys.get("engram_layers")) and not keys.get("engram_frozen_table", False)


def other_tokens(listed: str, model: str) -> UserError:
    """Return the error for a way that is asked of a model with another tokenizer than the text."""
    return UserError(
        f"update.ways: {listed!r}: {model} has another tokenizer than the text of the study, in "
        "whose tokens facts are told and asked"
    )


def check_people(text: CorpusConfig, what: str) -> None:
    """Check that a text tells of people whose facts can change.

    Args:
        text: how it is made.
        what: how an error calls it.

    Raises:
        UserError: it tells of none, or of too few.
    """
    people = 0 if text.paths else text.entities.n_entities
    if people < LEAST_PEOPLE:
        raise UserError(
            f"update.ways: facts change of generated people, {LEAST_PEOPLE} or more; "
            f"{what} has {people or 'none'}"
        )


def check_update(update: UpdateConfig, models: Sequence[str]) -> None:
    """Check what a study asks for.

    Raises:
        UserError: an unknown way or model, none, the same one twice, or an impossible number.
    """
    for listed in update.ways:
        name, model = read_listed(listed)
        if not find_way(name).alone and model is None:
            raise UserError(f"update.ways: {name!r} needs a model: write MODEL+{name}")
        if model is not None and model not in models:
            raise unknown("model", model, models)
    if update.ways and not any(read_listed(listed).model for listed in update.ways):
        raise UserError("update.ways: none has a model, whose text and seeds the others take")
    if len(set(update.ways)) < len(update.ways):
        raise UserError(f"update.ways: one is listed twice: {', '.join(update.ways)}")
    numbers = {"people": LEAST_PEOPLE, "changes": 1, "steps": 1, "batch_size": 1}
    for field, least in numbers.items():
        if getattr(update, field) < least:
            raise UserError(f"update.{field}={getattr(update, field)}: at least {least} is needed")
    for field in ("weight_rates", "row_rates"):
        rates = getattr(update, field)
        if not rates or min(rates) <= 0:
            raise UserError(f"update.{field}={list(rates)}: at least one, each above 0")
