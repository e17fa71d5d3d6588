"""Each way of telling what has changed. A new one is a file, and a line here.

A study lists ``MODEL+way``, or a memory's way alone: the memory then stands by itself, on the text
of the models that are told.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engram_eval.baselines.registry import BASELINES, read_listed
from engram_eval.config import UpdateConfig
from engram_eval.errors import UserError, unknown


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
    if name not in WAYS:
        raise unknown("way of updating", name, WAYS)
    return WAYS[name]


def options_for(way: str, update: UpdateConfig) -> UpdateConfig:
    """Return the options that a way depends on, all others as they are by default."""
    rates = find_way(way).rates
    used = ("people", "changes", *(("steps", "batch_size", rates) if rates else ()))
    return UpdateConfig(**{name: getattr(update, name) for name in used})


def check_rows(update: UpdateConfig, with_memory: Mapping[str, bool]) -> None:
    """Check that ways which move rows are asked of models that have some.

    Args:
        update: names of models in it exist.
        with_memory: of each model, as far as it is known before it is opened.

    Raises:
        UserError: a model has none.
    """
    for listed in update.ways:
        name, model = read_listed(listed)
        if find_way(name).moves_rows and not with_memory.get(str(model), True):
            having = ", ".join(each for each, has in with_memory.items() if has) or "none"
            raise UserError(
                f"update.ways: {listed!r} moves rows of a memory, which {model} has not; "
                f"models with one: {having}"
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
    for field, least in (("people", 4), ("changes", 1), ("steps", 1), ("batch_size", 1)):
        if getattr(update, field) < least:
            raise UserError(f"update.{field}={getattr(update, field)}: at least {least} is needed")
    for field in ("weight_rates", "row_rates"):
        rates = getattr(update, field)
        if not rates or min(rates) <= 0:
            raise UserError(f"update.{field}={list(rates)}: at least one, each above 0")
