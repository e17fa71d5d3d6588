"""The memories that read tokens, each built from a training text."""

from collections.abc import Callable
from pathlib import Path

from engram_eval.baselines.cache import Cache
from engram_eval.baselines.infini import Infini
from engram_eval.baselines.kneser_ney import KneserNey
from engram_eval.baselines.predictor import Predictor
from engram_eval.baselines.training_text import TrainingText
from engram_eval.corpus.document import BOUNDARY
from engram_eval.corpus.ngrams import NGramModel

ORDER = 5


def _ngram(text: TrainingText, folder: Path) -> Predictor:
    # The corpus counts in its own numbers.
    if text.own and text.vocabulary.end == BOUNDARY:
        counts = text.corpus.ngrams()
    else:
        counts = NGramModel.count(text.train, text.vocabulary.size, ORDER)
    found = KneserNey.fit(counts, min(ORDER, counts.max_order))
    found.save(folder / "kneser_ney")
    return found


def _infini(text: TrainingText, folder: Path) -> Predictor:
    return Infini.fit(text.train, text.vocabulary.size, folder / "suffix_array")


def _cache(text: TrainingText, folder: Path) -> Predictor:
    return Cache(text.vocabulary.size)


PREDICTORS: dict[str, Callable[[TrainingText, Path], Predictor]] = {
    "ngram": _ngram,
    "infini": _infini,
    "cache": _cache,
}
"""Called as f(text, folder); what is kept on disk goes into the folder."""
