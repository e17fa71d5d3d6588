"""A cache: what the document itself has said so far, recent n-grams included.

Kuhn and De Mori (1990, IEEE PAMI 12) for single tokens, Jelinek et al. (1991) for n-grams. Over
the last ``window`` tokens of the document, from order 1 up to ``order``:

    q_n(w | h) = (c(hw) + q_{n-1}(w | h')) / (c(h) + 1),        q_0 = 1 / V

The text of a document is its own training text: nothing is built and nothing stored.
"""

from collections.abc import Sequence

import numpy as np

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.baselines.predictor import Predicted, Predictor, Scored, history
from engram_eval.corpus.document import BOUNDARY
from engram_eval.corpus.ngrams import history_starts

WINDOW, ORDER = 512, 5
# Positions that are scored at a time, so that their numbers stay in a processor's cache.
BLOCK = 8192


class Cache(Predictor):
    """Counts of the document so far.

    Its kinds of position are the order of the longest history that has occurred before (``empty``
    at the document's beginning).

    Args:
        vocab_size: V.
        window: how many tokens it looks back.
        order: longest n-gram, the predicted token included.
    """

    def __init__(self, vocab_size: int, window: int = WINDOW, order: int = ORDER) -> None:
        self.vocab_size, self.window, self.order = vocab_size, window, order
        self.kinds = ("empty", *(f"order {n}" for n in range(1, order + 1)))

    def score(self, tokens: Ints, starts: Ints | None = None) -> Scored:
        """Score a stream of documents; see ``Predictor``."""
        tokens = np.asarray(tokens, np.int32)
        begin = history_starts(tokens, starts)
        parts = [self._score(tokens, begin, at) for at in range(0, len(tokens), BLOCK)]
        if not parts:
            return Scored(np.zeros(0), np.zeros(0, np.int64))
        p, kind = zip(*parts, strict=True)
        return Scored(np.concatenate(p), np.concatenate(kind))

    def _score(self, tokens: Ints, begin: Ints, at: int) -> tuple[Floats, Ints]:
        """Score the positions from ``at`` on, lag by lag: does the token so far back fit?"""
        here = np.arange(at, min(at + BLOCK, len(tokens)))
        reach = here - begin[here]
        seen, hits = np.zeros((2, self.order, len(here)), np.int64)
        # The mark of the document's beginning is no token that was said.
        marked = (tokens[begin[here]] == BOUNDARY) & (reach > 0) & (reach <= self.window)
        seen[0] = np.minimum(reach, self.window) - marked
        for lag in range(1, min(self.window, int(reach.max(initial=0))) + 1):
            said = _equal(tokens, at, lag, len(here)) & (reach >= lag)
            said &= tokens[here] != BOUNDARY
            hits[0] += said
            rows = np.flatnonzero(_equal(tokens, at - 1, lag, len(here)) & (reach > lag))
            rows = rows[tokens[here[rows] - lag] != BOUNDARY]
            for depth in range(1, self.order):
                seen[depth, rows] += 1
                hits[depth, rows] += said[rows]
                rows = rows[reach[rows] > lag + depth]
                back = here[rows] - depth - 1
                rows = rows[tokens[back] == tokens[back - lag]]
                if not len(rows):
                    break
        p = np.full(len(here), 1 / self.vocab_size)
        for count, hit in zip(seen, hits, strict=True):
            p = (hit + p) / (count + 1)
        return p, (seen > 0).sum(axis=0)

    def distributions(self, contexts: Sequence[Ints]) -> Predicted:
        """Return what follows each context; see ``Predictor``."""
        p = np.full((len(contexts), self.vocab_size), 1 / self.vocab_size)
        kind = np.zeros(len(contexts), np.int64)
        for row, context in enumerate(contexts):
            found = history(np.asarray(context, np.int64))
            for depth in range(self.order):
                follows = self._follows(found, depth)
                if not len(follows):
                    break
                p[row] = (np.bincount(follows, minlength=self.vocab_size) + p[row]) / (
                    len(follows) + 1
                )
                kind[row] = depth + 1
        return Predicted(p, kind)

    def _follows(self, told: Ints, depth: int) -> Ints:
        """Return the tokens within the window that followed the last ``depth`` tokens."""
        first = max(depth, len(told) - self.window)
        places = np.arange(first, len(told))
        if depth > len(told):
            return places[:0]
        for back in range(1, depth + 1):
            places = places[told[places - back] == told[len(told) - back]]
        follows = told[places]
        return follows[follows != BOUNDARY]


def _equal(tokens: Ints, at: int, lag: int, size: int) -> Mask:
    """Tell of ``size`` positions from ``at`` on whether the token ``lag`` before is the same."""
    same = np.zeros(size, np.bool_)
    lost = max(0, lag - at)
    first = at + lost
    same[lost:] = tokens[first : at + size] == tokens[first - lag : at + size - lag]
    return same
