"""Memories that stand alone: counts of the training text, and what else is mixed into them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from engram_eval.baselines.built import Built, Setting, document_side, known_bits
from engram_eval.baselines.costs import Costs
from engram_eval.baselines.lm import PredictorLM
from engram_eval.baselines.memories import PREDICTORS
from engram_eval.baselines.mixture import Mixture, cross_tuned, tune
from engram_eval.baselines.rag import build_rag
from engram_eval.baselines.training_text import own_text


@contextmanager
def ngram(setting: Setting) -> Iterator[Built]:
    """Interpolated Kneser-Ney of order 5."""
    text, costs = own_text(setting.corpus), Costs(setting.folder)
    with setting.report.task("ngram: build", 1) as bar, costs.timed("build"):
        predictor = PREDICTORS["ngram"](text, setting.folder)
        bar.advance()
    lm = PredictorLM(predictor, text.tokenizer, text.vocabulary)
    val = setting.val_tokens(text)
    with costs.timed("score", len(val)):
        lm.token_bits(text.vocabulary.inner(val))
    yield Built(lm, lm.token_bits, costs.rows())


@contextmanager
def infini(setting: Setting) -> Iterator[Built]:
    """The longest match of any length, mixed into Kneser-Ney."""
    yield _mixed(setting, "infini")


@contextmanager
def cache(setting: Setting) -> Iterator[Built]:
    """The document so far, mixed into Kneser-Ney."""
    yield _mixed(setting, "cache")


@contextmanager
def rag(setting: Setting) -> Iterator[Built]:
    """Passages before the prompt, read by the cache, which can copy from them."""
    reader = _mixed(setting, "cache").lm
    text = own_text(setting.corpus)
    val = text.vocabulary.inner(setting.val_tokens(text))
    yield build_rag(setting, reader, reader.row_bits, val)


def _mixed(setting: Setting, name: str) -> Built:
    """Mix a memory into Kneser-Ney, with weights that validation text has chosen."""
    text, costs = own_text(setting.corpus), Costs(setting.folder)
    with setting.report.task(f"{name}: build and tune", 2) as bar:
        with costs.timed("build"):
            base = PREDICTORS["ngram"](text, setting.folder)
            memory = PREDICTORS[name](text, setting.folder)
        bar.advance()
        val = setting.val_tokens(text)
        stream = np.concatenate([[0], val])
        with costs.timed("score", len(stream)):
            found, p = memory.score(stream), base.score(stream).p
        weights = tune(found, p, memory.kinds)
        costs.tuned(weights, found.kind)
        side = np.concatenate([[0], document_side(val)])
        mixed = cross_tuned(lambda _: found, p, memory.kinds, side)
        bar.advance()
    lm = PredictorLM(Mixture(memory, base, weights), text.tokenizer, text.vocabulary)
    return Built(lm, known_bits(text.vocabulary.inner(val), mixed[1:]), costs.rows())
