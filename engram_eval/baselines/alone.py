"""Memories that stand alone: counts of the training text, and what else is mixed into them.

Held-out text is scored in the windows of models: whole documents are up to 0.1 bits a byte cheaper
for a cache, which says nothing of memories.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from engram_eval.baselines.built import Built, Setting, document_side, known_bits
from engram_eval.baselines.costs import Costs
from engram_eval.baselines.lm import PredictorLM
from engram_eval.baselines.memories import PREDICTORS
from engram_eval.baselines.mixture import Mixture, cross_tuned, tune
from engram_eval.baselines.predictor import window_starts
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
    bits = functools.partial(lm.token_bits, seq_len=setting.config.seq_len)
    with costs.timed("score", len(val)):
        bits(text.vocabulary.inner(val))
    yield Built(lm, bits, costs.rows())


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
        starts = window_starts(len(stream), setting.config.seq_len)
        with costs.timed("score", len(stream)):
            found, p = memory.score(stream, starts), base.score(stream, starts).p
        weights = tune(found, p, memory.kinds)
        costs.tuned(weights, found.kind)
        side = np.concatenate([[0], document_side(val)])
        mixed = cross_tuned(lambda _: found, p, memory.kinds, side)
        bar.advance()
    lm = PredictorLM(Mixture(memory, base, weights), text.tokenizer, text.vocabulary)
    return Built(lm, known_bits(text.vocabulary.inner(val), mixed[1:]), costs.rows())
