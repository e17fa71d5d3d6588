"""How often the n-grams that tokens complete were trained on, which are names; training text."""

from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Ints, Mask
from engram_eval.corpus.same_tokenizer import Identity, tokenizer_identity
from engram_eval.corpus.store import Corpus
from probes.names import name_spans
from probes.sample import Sample

TEXT_TOKENS = 131_072


class Patterns(NamedTuple):
    """A sample and what is known of the pattern that ends at each input, each (n,).

    Attributes:
        bigram_count, trigram_count: of the n-gram that ends here, in training.
        name_first: whether a name of several tokens begins here.
        in_name: whether this is a token of one.
    """

    sample: Sample
    bigram_count: Ints
    trigram_count: Ints
    name_first: Mask
    in_name: Mask


class Text(NamedTuple):
    """A long piece of training text, each document ended by the end of text.

    Attributes:
        tokens: ids, (T,).
        tokenizer: by what the one is recognised whose tokens these are; None where it is not known.
    """

    tokens: Ints
    tokenizer: Identity | None = None


def count_patterns(corpus: Corpus, sample: Sample) -> Patterns:
    """Look up the n-grams of a sample in the counts of the training text, and its names."""
    model, stream = corpus.ngrams(), np.asarray(corpus.tokens("val")).astype(np.int64)
    places = sample.inputs.position
    two, three = (model.ngram_frequency(stream, order)[places] for order in (2, 3))
    first, inside = _names(corpus, len(stream))
    return Patterns(sample, two, three, first[places], inside[places])


def _names(corpus: Corpus, length: int) -> tuple[Mask, Mask]:
    """Return which tokens of the validation stream begin a name and which belong to one, (T,)."""
    first, last = name_spans(corpus).T
    starts = np.bincount(first, minlength=length + 1)
    ends = np.bincount(last + 1, minlength=length + 1)
    return starts[:length] > 0, np.cumsum(starts - ends)[:length] > 0


def training_text(corpus: Corpus, _sample: Sample | None = None) -> Text:
    """Return the beginning of the training text; its documents are in random order."""
    tokens = np.asarray(corpus.tokens("train")[:TEXT_TOKENS]).astype(np.int64)
    return Text(tokens, tokenizer_identity(corpus.folder / "tokenizer"))
