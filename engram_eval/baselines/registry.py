"""What stores text outside of a network's weights: the models that others are held against."""

from typing import TYPE_CHECKING, NamedTuple, cast

from engram_eval.corpus.store import Corpus
from engram_eval.errors import unknown
from engram_eval.stages import resolve

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class Baseline(NamedTuple):
    """A baseline: ``factory(corpus)``, as ``module:function``, returns an lm-eval model."""

    factory: str
    about: str


BASELINES: dict[str, Baseline] = {
    "ngram": Baseline(
        "engram_eval.baselines.ngram:ngram_lm",
        "counts of the training text up to order 5, Witten-Bell smoothed",
    ),
}


def load_baseline(name: str, corpus: Corpus) -> "LM":
    """Build a baseline for a corpus.

    Raises:
        UserError: no baseline has this name.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    return cast("LM", resolve(BASELINES[name].factory)(corpus))
