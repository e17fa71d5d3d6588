"""Part of a corpus: as much training text as somebody else has read."""

import numpy as np

from engram_eval.corpus.retold import retell
from engram_eval.corpus.store import Corpus


def excerpt(corpus: Corpus, tokens: int, seed: int = 0) -> Corpus:
    """Return a corpus with about as many training tokens: whole documents, drawn at random.

    Args:
        corpus: the whole.
        tokens: at least so many, by less than a document more; 0, or as many as there are: all.
        seed: draws the documents.
    """
    docs = corpus.docs("train")
    sizes = docs[:, 1] - docs[:, 0]
    if tokens == 0 or tokens >= sizes.sum():
        return corpus
    order = np.random.default_rng([seed, len(docs)]).permutation(len(docs))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), tokens)) + 1
    kept, stream = docs[np.sort(order[:enough])], corpus.tokens("train")
    return retell(corpus, [stream[start:end] for start, end, *_ in kept], kept[:, 2:])
