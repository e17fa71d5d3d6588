"""What a token costs after the longest part of its history that the training text contains.

An n-gram of unlimited order, after infini-gram (arXiv:2401.17377 section 2): the history is the
longest suffix ``h`` of the document so far that occurs in the training text, and

    p(w | h) = (c(hw) + p_n(w)) / (c(h) + 1)

with ``p_n`` the interpolated n-gram model, which also serves where it sees all of ``h``.
Infini-gram itself leaves ``p_n`` out and so gives probability 0 to what it has not seen.


Method: train and scored text are reversed, one behind the other, so that histories become
prefixes, and ranked by their first 1, 2, 4, ... tokens (prefix doubling, Manber and Myers 1993).
Equal ranks are equal strings, which answers every question below exactly.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.corpus.ngrams import NGramModel, history_starts
from engram_eval.errors import UserError


class Match(NamedTuple):
    """The longest match at each position t, arrays (T,).

    Attributes:
        length: tokens of history before t that occur together in the training text.
        occurrences: how often they do; the number of training tokens where ``length`` is 0.
        surprisal_bits: of x_t after that history.
    """

    length: Ints
    occurrences: Ints
    surprisal_bits: Floats


def longest_match(
    model: NGramModel,
    train: ArrayLike,
    tokens: ArrayLike,
    max_length: int = 64,
    history_start: ArrayLike | None = None,
) -> Match:
    """Find the longest training match before each position and the cost of what follows.

    Takes memory of about 4 bytes x (train + scored tokens) x log2(2 max_length).

    Args:
        model: counts of the same training text.
        train: the training stream; documents end with ``model.end_id``.
        tokens: the text to score, (T,); histories do not cross documents.
        max_length: longest match looked for, at least 1.
        history_start: see ``ngrams.history_starts``.
    """
    if max_length < 1:
        raise UserError(f"max_length {max_length}: must be at least 1")
    train, tokens = np.asarray(train, np.int64), np.asarray(tokens, np.int64)
    starts = history_starts(tokens, history_start, model.end_id)
    room = np.minimum(np.arange(len(tokens)) - starts, max_length)
    index = _Index(train, tokens, model.vocab_size, max_length)
    length, anchor = index.nearest(room)
    first, last = index.occurrences(anchor, length)
    follows = index.count_following(first, last, tokens)
    p = 2 ** -model.surprisal_bits(tokens, model.max_order, history_start)
    beyond = length >= model.max_order
    p = np.where(beyond, (follows + p) / (last - first + 1), p)
    return Match(length, last - first, -np.log2(p))


class _Index:
    """Histories of both texts, ranked by their 1, 2, 4, ... most recent tokens.

    A history is known by where it begins in the reversed text. ``order`` lists the histories
    that end inside the training text, sorted; its positions are called places.
    """

    def __init__(self, train: Ints, tokens: Ints, vocab_size: int, max_length: int) -> None:
        # Two ids outside the vocabulary end the texts, so that no match runs over an end.
        pad = np.full(2 * max_length + 1, vocab_size + 1)
        text = np.concatenate([train[::-1], [vocab_size], tokens[::-1], pad])
        self.ranks = _ranks(text, max_length)
        self.train = train
        self.order = np.argsort(self.ranks[-1][: len(train)], kind="stable")
        # x_t's history begins where x_{t-1} stands; x_0 has none, and ``room`` is 0 there.
        self.begin = len(train) + 1 + len(tokens) - np.arange(len(tokens))

    def nearest(self, room: Ints) -> tuple[Ints, Ints]:
        """Return the longest match (at most ``room``) of each history and a place that has it."""
        sorted_ranks = self.ranks[-1][self.order]
        right = np.searchsorted(sorted_ranks, self.ranks[-1][self.begin])
        places = np.stack([np.maximum(right - 1, 0), np.minimum(right, len(self.order) - 1)])
        lengths = np.stack([self._common(self.order[place]) for place in places])
        best = lengths.argmax(axis=0)
        here = np.arange(len(room))
        return np.minimum(lengths[best, here], room), places[best, here]

    def _common(self, others: Ints) -> Ints:
        """Return how many tokens each history shares with another one, from the most recent on."""
        length = np.zeros(len(others), np.int64)
        for level in range(len(self.ranks) - 1, -1, -1):
            rank = self.ranks[level]
            length += np.where(rank[self.begin + length] == rank[others + length], 1 << level, 0)
        return length

    def occurrences(self, anchor: Ints, length: Ints) -> tuple[Ints, Ints]:
        """Return first and last (exclusive) place whose history shares ``length`` tokens."""
        return self._first(anchor, length), self._last(anchor, length) + 1

    def _first(self, anchor: Ints, length: Ints) -> Ints:
        """Find, by bisection, the first place that shares ``length`` tokens with the anchor."""
        low, high = np.zeros_like(anchor), anchor
        while (low < high).any():
            middle = (low + high) // 2
            same = self._same(anchor, middle, length)
            low, high = np.where(same, low, middle + 1), np.where(same, middle, high)
        return high

    def _last(self, anchor: Ints, length: Ints) -> Ints:
        """Find the last such place."""
        low, high = anchor, np.full_like(anchor, len(self.order) - 1)
        while (low < high).any():
            middle = (low + high + 1) // 2
            same = self._same(anchor, middle, length)
            low, high = np.where(same, middle, low), np.where(same, high, middle - 1)
        return low

    def _same(self, place: Ints, other_place: Ints, length: Ints) -> Mask:
        """Tell whether two histories share ``length`` tokens: two overlapping powers of two."""
        one, other = self.order[place], self.order[other_place]
        level = np.frexp(np.maximum(length, 1))[1] - 1
        shift = np.maximum(length - (1 << level), 0)
        same = (self.ranks[level, one] == self.ranks[level, other]) & (
            self.ranks[level, one + shift] == self.ranks[level, other + shift]
        )
        return same | (length == 0)

    def count_following(self, first: Ints, last: Ints, tokens: Ints) -> Ints:
        """Count, among the places from first to last, those that are followed by each token."""
        # The token after the history that begins at reversed position r is the one before r.
        after = np.append(self.train, -1)[len(self.train) - self.order]
        size = len(self.order) + 1
        keys = np.sort(after * size + np.arange(len(after)))
        low, high = (np.searchsorted(keys, tokens * size + place) for place in (first, last))
        return high - low


def _ranks(text: Ints, max_length: int) -> NDArray[np.int32]:
    """Rank all positions by their next 1, 2, 4, ... tokens up to ``max_length``: (levels, N)."""
    levels = [np.unique(text, return_inverse=True)[1]]
    width = 1
    while width < max_length:
        rank = levels[-1].astype(np.int64)
        later = np.append(rank[width:], np.full(width, rank[-1]))
        levels.append(np.unique(rank * len(text) + later, return_inverse=True)[1])
        width *= 2
    return np.stack(levels).astype(np.int32)
