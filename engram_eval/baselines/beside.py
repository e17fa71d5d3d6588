"""Memories around a trained model, with weights that validation text has chosen."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.baselines.around import Memory, TokenMemory, around
from engram_eval.baselines.built import Built, Setting, document_side, known_bits
from engram_eval.baselines.costs import Costs
from engram_eval.baselines.knn import (
    CELL,
    LEARN_FROM,
    Datastore,
    KnnMemory,
    States,
    best_temperature,
    build_datastore,
    states,
)
from engram_eval.baselines.memories import PREDICTORS
from engram_eval.baselines.mixture import SetBy, cross_tuned, tune
from engram_eval.baselines.model_rows import model_row_bits
from engram_eval.baselines.predictor import Scored, window_starts
from engram_eval.baselines.rag import build_rag
from engram_eval.baselines.training_text import TrainingText, text_for
from engram_eval.evaluation.fast_lm import FastLM
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.stage import TOKENS_PER_REQUEST, fast_lm, hf_lm


class Carrier(NamedTuple):
    """The model that a memory is put around.

    Attributes:
        lm: with its own predictions.
        text: the training text in its tokens.
        val: validation tokens that tune, (T,), as ``text.vocabulary`` numbers them.
        p: what the model gives to them, (T,).
    """

    lm: FastLM
    text: TrainingText
    val: Ints
    p: Floats


class Tuned(NamedTuple):
    """A memory and what it gives to the validation tokens.

    Attributes:
        memory: as all of them have set it.
        found: what it gives to each of them.
        kinds: its kinds of position.
        set_by: what it gives as some of them alone set it.
    """

    memory: Memory
    found: Scored
    kinds: tuple[str, ...]
    set_by: SetBy


def ngram(setting: Setting) -> AbstractContextManager[Built]:
    """Kneser-Ney around a model."""
    return _tokens(setting, "ngram")


def infini(setting: Setting) -> AbstractContextManager[Built]:
    """The longest match around a model."""
    return _tokens(setting, "infini")


def cache(setting: Setting) -> AbstractContextManager[Built]:
    """The document so far around a model."""
    return _tokens(setting, "cache")


def knn(setting: Setting) -> AbstractContextManager[Built]:
    """kNN-LM around a model.

    Its row ``memory_temperature`` is that of the mixture that answers tasks, which all validation
    tokens chose, as they did the weight of ``memory_weight``; held-out text is scored half by half
    at the temperature and weight of the other half.
    """

    def build(carrier: Carrier, costs: Costs) -> Tuned:
        with costs.timed("build"):
            store = _datastore(carrier, setting)
            store.save(setting.folder / "knn")
        queries = np.concatenate(list(_states(carrier, carrier.val, setting)))
        with costs.timed("score", len(queries)):
            near = store.search(queries)
        val, kind = carrier.val, np.zeros(len(carrier.val), np.int64)

        def chosen_by(part: Mask) -> float:
            return best_temperature(near.of(part), val[part], carrier.p[part])

        def votes(temperature: float) -> Scored:
            return Scored(near.p_of(val, temperature), kind)

        temperature = chosen_by(np.ones(len(val), bool))
        costs.settings["memory_temperature"] = temperature
        memory = KnnMemory(store, temperature, carrier.text.vocabulary)
        return Tuned(memory, votes(temperature), ("any",), lambda part: votes(chosen_by(part)))

    return _mixed(setting, build)


@contextmanager
def rag(setting: Setting) -> Iterator[Built]:
    """Passages before the prompt of a model."""
    lm = hf_lm(_folder(setting), setting.config.batch_size)
    text = text_for(setting.corpus, lm.tokenizer, _vocab_size(lm), setting.report)
    budget = setting.config.batch_size * TOKENS_PER_REQUEST
    val = text.vocabulary.inner(setting.val_tokens(text))
    yield build_rag(setting, lm, lambda rows: model_row_bits(lm.model, rows, budget), val)


def _tokens(setting: Setting, name: str) -> AbstractContextManager[Built]:
    def build(carrier: Carrier, costs: Costs) -> Tuned:
        text, seq_len = carrier.text, setting.config.seq_len
        with costs.timed("build"):
            predictor = PREDICTORS[name](text, setting.folder)
        stream = np.concatenate([[0], carrier.val])
        with costs.timed("score", len(stream)):
            found = predictor.score(stream, window_starts(len(stream), seq_len))
        memory = TokenMemory(predictor, text.vocabulary)
        scored = Scored(found.p[1:], found.kind[1:])
        return Tuned(memory, scored, predictor.kinds, lambda _: scored)

    return _mixed(setting, build)


def _datastore(carrier: Carrier, setting: Setting) -> Datastore:
    """Store the state before every training token."""
    train, lm = carrier.text.train, carrier.lm
    width = int(lm.model.get_output_embeddings().weight.shape[1])
    rng = np.random.default_rng(0)
    starts = rng.permutation(len(train) // setting.config.seq_len + 1) * setting.config.seq_len
    wanted = -(-len(train) // CELL) * LEARN_FROM // setting.config.seq_len + 1
    chosen = [train[at : at + setting.config.seq_len] for at in sorted(starts[:wanted])]
    sample = np.concatenate(list(_states(carrier, np.concatenate(chosen), setting)))
    found = _states(carrier, train, setting)
    return build_datastore(found, train, width, sample, 0, setting.report)


def _states(carrier: Carrier, tokens: Ints, setting: Setting) -> Iterator[States]:
    vocabulary = carrier.text.vocabulary
    batch = max(1, setting.config.batch_size // 4)
    return states(
        carrier.lm.model,
        vocabulary.inner(tokens),
        vocabulary.end,
        setting.config.seq_len,
        batch,
    )


@contextmanager
def _mixed(setting: Setting, build: Callable[[Carrier, Costs], Tuned]) -> Iterator[Built]:
    """Build a memory, tune it on validation text and put it around the model."""
    costs = Costs(setting.folder)
    carrier = _carrier(setting)
    with setting.report.task("memory: build and tune", 1) as bar:
        tuned = build(carrier, costs)
        weights = tune(tuned.found, carrier.p, tuned.kinds)
        costs.tuned(weights, tuned.found.kind)
        mixed = cross_tuned(tuned.set_by, carrier.p, tuned.kinds, document_side(carrier.val))
        bar.advance()
    lm = carrier.lm
    with around(lm.model, tuned.memory, weights):
        mixture = fast_lm(lm.model, lm.tokenizer, setting.config.batch_size)
        val = carrier.text.vocabulary.inner(carrier.val)
        yield Built(mixture, known_bits(val, mixed), costs.rows())


def _carrier(setting: Setting) -> Carrier:
    lm = hf_lm(_folder(setting), setting.config.batch_size)
    text = text_for(setting.corpus, lm.tokenizer, _vocab_size(lm), setting.report)
    val = setting.val_tokens(text)
    bits = token_bits(
        lm.model,
        text.vocabulary.inner(val),
        setting.config.seq_len,
        max(1, setting.config.batch_size // 4),
        lm.device,
        text.vocabulary.end,
    )
    return Carrier(lm, text, val, 2.0**-bits)


def _folder(setting: Setting) -> Path:
    assert setting.model is not None
    return setting.model


def _vocab_size(lm: FastLM) -> int:
    """Return the number of logits, which may be more than the tokenizer has tokens."""
    return int(lm.model.get_output_embeddings().weight.shape[0])
