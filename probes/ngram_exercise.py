"""Which of two 3-grams has ended that have their last two tokens in common?

The place where it is read, and the one before, hold nothing that tells the two apart: the first of
three tokens must have come along. Pairs are taken in turn from the corpus's domains, the ones first
that most documents hold, so that no domain is most of what is asked (sums, otherwise: their digits
are the commonest 3-grams of the pocket corpus). Of a document each 3-gram is asked once.
"""

from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.corpus.store import Corpus
from probes.exercises import Exercise, make_exercise, padded

NAME = "ngram_ended"
PAIRS, ORDER = 12, 3
# Of each 3-gram; with fewer, half of them would hardly test it.
FEWEST_DOCUMENTS, MOST_DOCUMENTS = 8, 60
CONTEXT = 32


class Grams(NamedTuple):
    """All 3-grams inside of documents.

    Attributes:
        place: of the last token in the stream, (n,).
        code: the three tokens as one number, (n,).
        document: (n,).
        vocabulary: tokens are below it.
    """

    place: Ints
    code: Ints
    document: Ints
    vocabulary: int

    def first_of_documents(self) -> "Grams":
        """Keep the first time that each document has a 3-gram, by 3-gram and document."""
        names = np.unique(self.code, return_inverse=True)[1].astype(np.int64)
        both = names * (int(self.document.max(initial=0)) + 1) + self.document
        kept = np.unique(both, return_index=True)[1]
        return self._replace(
            place=self.place[kept], code=self.code[kept], document=self.document[kept]
        )


def ngram_exercise(corpus: Corpus, rng: np.random.Generator) -> Exercise | None:
    """Make the exercise from the validation text; None where too few 3-grams recur.

    Args:
        corpus: whose text is read.
        rng: draws documents, the control task and the split.
    """
    stream = np.asarray(corpus.tokens("val")).astype(np.int64)
    docs = corpus.docs("val")
    grams = grams_of(stream, np.repeat(np.arange(len(docs)), docs[:, 1] - docs[:, 0]))
    grams = grams.first_of_documents()
    asked = pairs(grams, docs[:, 2])
    if not len(asked):
        return None
    chosen = np.concatenate([_some(np.flatnonzero(grams.code == code), rng) for code in asked])
    place = grams.place[chosen]
    texts = [stream[max(0, end - CONTEXT + 1) : end + 1].tolist() for end in place]
    token = padded(texts)
    ends = np.array([len(text) for text in texts]) - 1
    return make_exercise(
        NAME,
        np.arange(len(texts)) * token.shape[1] + ends,
        grams.code[chosen],
        stream[place],
        grams.document[chosen],
        rng,
        token,
    )


def grams_of(stream: Ints, document: Ints) -> Grams:
    """Return the 3-grams of a stream of token ids (n,), each of which is of a document (n,)."""
    place = np.arange(ORDER - 1, len(stream))
    place = place[document[place - ORDER + 1] == document[place]]
    size = int(stream.max(initial=0)) + 1
    code = np.zeros_like(place)
    for back in reversed(range(ORDER)):
        code = code * size + stream[place - back]
    return Grams(place, code, document[place], size)


def pairs(grams: Grams, domain: Ints) -> Ints:
    """Return the 3-grams that are asked for, two by two.

    Args:
        grams: each once a document.
        domain: of every document.
    """
    codes, index, held = np.unique(grams.code, return_index=True, return_counts=True)
    often = held >= FEWEST_DOCUMENTS
    # By ending, the one first that more documents hold; of equals, the lower number.
    order = np.lexsort((codes, -held, codes % grams.vocabulary**2))
    order = order[often[order]]
    ending = codes[order] % grams.vocabulary**2
    starts, sizes = np.unique(ending, return_index=True, return_counts=True)[1:]
    two = np.stack([order[starts[sizes > 1]], order[starts[sizes > 1] + 1]], axis=1)
    two = two[np.argsort(-held[two[:, 1]], kind="stable")]
    where = domain[grams.document[index[two[:, 1]]]]
    return np.asarray(codes[two[_turns(where)[:PAIRS]]].reshape(-1), dtype=np.int64)


def _turns(kind: Ints) -> Ints:
    """Return places in ``kind`` (n,) so that all kinds have their first before any its second."""
    rank = np.zeros_like(kind)
    for one in np.unique(kind):
        rank[kind == one] = np.arange((kind == one).sum())
    return np.argsort(rank, kind="stable")


def _some(places: Ints, rng: np.random.Generator) -> Ints:
    """Return at most as many places as one 3-gram is asked for."""
    if len(places) <= MOST_DOCUMENTS:
        return places
    return np.sort(rng.choice(places, MOST_DOCUMENTS, replace=False))
