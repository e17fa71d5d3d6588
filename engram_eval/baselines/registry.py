"""What stores text outside of a network's weights: the models that others are held against.

A baseline stands alone (``ngram``) or around a model of the study (``moe+ngram``).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, cast

from engram_eval.errors import UserError, look_up, unknown
from engram_eval.stages import resolve

if TYPE_CHECKING:
    from engram_eval.baselines.built import Built, Setting

AROUND = "+"


class Baseline(NamedTuple):
    """A baseline. ``alone`` and ``around`` are context managers of a ``Setting``.

    Attributes:
        alone: ``module:function`` that builds it by itself; None where it needs a model.
        around: the same, around the setting's model.
        about: one line.
    """

    alone: str | None
    around: str
    about: str


def _entry(name: str, about: str, alone: bool = True) -> Baseline:
    by_itself = f"engram_eval.baselines.alone:{name}" if alone else None
    return Baseline(by_itself, f"engram_eval.baselines.beside:{name}", about)


BASELINES: dict[str, Baseline] = {
    "ngram": _entry("ngram", "interpolated Kneser-Ney of order 5 over the training text"),
    "infini": _entry("infini", "the longest match in the training text, of any length"),
    "cache": _entry("cache", "what the document itself has said so far"),
    "knn": _entry("knn", "what followed where the model was in a similar state", alone=False),
    "rag": _entry("rag", "the best passages of the training documents before the prompt"),
}


class Listed(NamedTuple):
    """A baseline as a study lists it; ``model`` is the one that it is put around."""

    name: str
    model: str | None


def read_listed(text: str) -> Listed:
    """Read ``ngram`` or ``moe+ngram``."""
    model, sign, name = text.rpartition(AROUND)
    return Listed(name, model if sign else None)


def check_listed(texts: Sequence[str], models: Sequence[str]) -> None:
    """Check the baselines of a study.

    Raises:
        UserError: an unknown baseline or model, one that needs a model and has none, or the same
            one twice.
    """
    for text in texts:
        name, model = read_listed(text)
        alone = look_up("baseline", name, BASELINES).alone
        if model is not None and model not in models:
            raise unknown("model", model, models)
        if model is None and alone is None:
            raise needs_model(name)
    if len(set(texts)) < len(texts):
        raise UserError(f"baselines: one is listed twice: {', '.join(texts)}")


def needs_model(name: str) -> UserError:
    """Say that a baseline cannot stand alone."""
    return UserError(f"baseline {name!r} is put around a model: write MODEL{AROUND}{name}")


def build_baseline(name: str, setting: "Setting") -> "AbstractContextManager[Built]":
    """Build a baseline, alone or, where the setting has a model, around it.

    Raises:
        UserError: no baseline has this name, or it needs a model.
    """
    found = look_up("baseline", name, BASELINES)
    target = found.around if setting.model else found.alone
    if target is None:
        raise needs_model(name)
    return cast("AbstractContextManager[Built]", resolve(target)(setting))
