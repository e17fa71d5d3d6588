"""How often the n-grams that tokens complete were seen in training, and training text itself."""

from typing import NamedTuple

import numpy as np

from engram_eval.corpus.store import Corpus
from probes.sample import Ints, Sample

TEXT_TOKENS = 131_072


class Patterns(NamedTuple):
    """A sample with the training counts of the n-gram that ends at each input, each (n,)."""

    sample: Sample
    bigram_count: Ints
    trigram_count: Ints


class Text(NamedTuple):
    """A long piece of training text: tokens (T,), whose documents end with token 0."""

    tokens: Ints


def count_patterns(corpus: Corpus, sample: Sample) -> Patterns:
    """Look up the n-grams of a sample in the counts of the training text."""
    model, stream = corpus.ngrams(), np.asarray(corpus.tokens("val")).astype(np.int64)
    places = sample.inputs.position
    two, three = (model.ngram_frequency(stream, order)[places] for order in (2, 3))
    return Patterns(sample, two, three)


def training_text(corpus: Corpus, _sample: Sample | None = None) -> Text:
    """Return the beginning of the training text; its documents are in random order."""
    return Text(np.asarray(corpus.tokens("train")[:TEXT_TOKENS]).astype(np.int64))
