"""The text of an arm that has one of its own."""

from collections.abc import Mapping

from engram_eval.config import CorpusConfig, ModelSpec, StudyConfig
from engram_eval.config_json import from_dict, to_dict


def arm_corpus(study: StudyConfig, model: ModelSpec) -> CorpusConfig:
    """Return what one arm of a study reads: the study's text with the arm's own settings.

    Raises:
        UserError: a key that ``CorpusConfig`` does not have, or a value of the wrong type.
    """
    settings = to_dict(study.corpus)
    for key, value in model.corpus.items():
        part = settings.get(key)
        both = isinstance(value, Mapping) and isinstance(part, Mapping)
        settings[key] = {**part, **value} if both else value
    return from_dict(CorpusConfig, settings, f"models.{model.name}.corpus")


def told_apart(study: StudyConfig) -> frozenset[str]:
    """Return the arms with a text of their own that are there to be told changed facts.

    They are scored on these and on their own text; the study's is none of theirs.
    """
    told = {way.rpartition("+")[0] for way in study.update.ways}
    return frozenset(model.name for model in study.models if model.corpus and model.name in told)
