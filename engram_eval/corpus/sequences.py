"""The sequences in which models read a corpus, and the part that was read by an early end.

What stands beside a model reads the model's own text: with as much of another, the two together
would have read twice as much, and whole documents drawn at random are a poorer sample of it.
"""

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.corpus.retold import retell
from engram_eval.corpus.store import Corpus


def sequence_order(n_sequences: int, seed: int, epoch: int) -> Ints:
    """Return the order in which an epoch reads the sequences of a text, (n_sequences,)."""
    return np.random.default_rng([seed, epoch]).permutation(n_sequences)


def as_read(corpus: Corpus, tokens: int, sequence: int, seed: int) -> Corpus:
    """Return a corpus whose training text is what a model read of it in so many tokens.

    Documents that were read in part are there in pieces, each ended by an end of text.

    Args:
        corpus: the whole.
        tokens: that the model was trained on; 0, or at least an epoch: all.
        sequence: tokens of the sequences in which it read them.
        seed: of its training run, which drew their order.
    """
    stream = np.asarray(corpus.tokens("train"), np.int64)
    count = (len(stream) - 1) // sequence if tokens else 0
    if tokens == 0 or tokens // sequence >= count:
        return corpus
    read = np.zeros(len(stream), bool)
    chosen = sequence_order(count, seed, 0)[: max(1, tokens // sequence)]
    # The last token of a sequence is a label alone.
    read[chosen[:, None] * sequence + np.arange(sequence + 1)] = True
    pieces: list[Ints] = []
    facts = []
    for start, end, domain, _ in corpus.docs("train").tolist():
        places = start + np.flatnonzero(read[start : end - 1])
        for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if len(part):
                pieces.append(np.append(stream[part], corpus.end_id))
                facts.append((domain, int(corpus.token_bytes[stream[part]].sum())))
    return retell(corpus, pieces, facts)
