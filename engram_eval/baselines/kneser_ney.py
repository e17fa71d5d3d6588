"""Interpolated Kneser-Ney smoothing with three discounts per order (Chen and Goodman 1998).

    p_n(w | h) = max(a_n(hw) - D_n(a), 0) / S(h) + g(h) p_{n-1}(w | h'),        p_0 = 1 / V
    g(h) = (D_1 N_1(h) + D_2 N_2(h) + D_3+ N_3+(h)) / S(h)

``a`` are counts at the highest order and numbers of distinct left neighbours below it (section
3.3); n-grams that begin a document have no left neighbour and keep their counts, as in KenLM
(Heafield et al. 2013). ``S`` sums ``a`` over continuations, ``N_i`` counts those with a = i.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engram_eval.arrays import Floats, Ints
from engram_eval.baselines.predictor import Predicted, Predictor, Scored, history, spans
from engram_eval.corpus.document import BOUNDARY
from engram_eval.corpus.ngrams import NGramModel, history_starts
from engram_eval.errors import UserError

# KenLM's, where a text is too small to estimate them.
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Level:
    """One order n.

    Attributes:
        keys: sorted; (index of the n-gram's history in the order below) x V + last token.
        discounted: a - D(a) of each n-gram, over S(h): its own part of the probability.
        backoff: g of each history, by its index in the order below.
        seen: whether anything follows each history.
    """

    keys: Ints
    discounted: Floats
    backoff: Floats
    seen: np.ndarray


class KneserNey(Predictor):
    """Interpolated Kneser-Ney over counts.

    Args:
        levels: of order 1 and up.
        vocab_size: V.
    """

    def __init__(self, levels: Sequence[Level], vocab_size: int) -> None:
        self.levels, self.vocab_size = tuple(levels), vocab_size

    @classmethod
    def fit(cls, counts: NGramModel, order: int) -> "KneserNey":
        """Estimate from counts of all orders up to ``order``.

        Raises:
            UserError: so many orders were not counted.
        """
        if not 1 <= order <= counts.max_order:
            raise UserError(f"n-gram order {order}; counted are 1 to {counts.max_order}")
        adjusted = _adjusted_counts(counts, order)
        sizes = [1, *(len(keys) for keys in counts.keys)]
        levels = [
            _level(np.asarray(keys), a, size, counts.vocab_size)
            for keys, a, size in zip(counts.keys[:order], adjusted, sizes, strict=False)
        ]
        return cls(levels, counts.vocab_size)

    def save(self, folder: Path) -> None:
        """Write one array per field and order."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, level in enumerate(self.levels, start=1):
            for name in ("keys", "discounted", "backoff", "seen"):
                np.save(folder / f"order{number}.{name}.npy", getattr(level, name))

    @property
    def order(self) -> int:
        """Longest n-gram, the predicted token included."""
        return len(self.levels)

    def score(self, tokens: Ints, starts: Ints | None = None) -> Scored:
        """Score a stream of documents; see ``Predictor``."""
        tokens = np.asarray(tokens, np.int64)
        reach = np.arange(len(tokens)) - history_starts(tokens, starts)
        p = np.full(len(tokens), 1 / self.vocab_size)
        ids = np.zeros_like(tokens)
        for number, level in enumerate(self._filled(), start=1):
            before = ids if number == 1 else np.concatenate([[-1], ids[:-1]])[: len(ids)]
            known = (before >= 0) & (reach >= number - 1)
            ids = _find(level.keys, before * self.vocab_size + tokens, known)
            p = _interpolate(p, level, np.where(known, before, 0), ids, known)
        return Scored(p, np.zeros(len(tokens), np.int64))

    def distributions(self, contexts: Sequence[Ints]) -> Predicted:
        """Return what follows each context; see ``Predictor``."""
        recent = _recent(contexts, self.order - 1)
        p = np.full((len(contexts), self.vocab_size), 1 / self.vocab_size)
        for number, level in enumerate(self._filled(), start=1):
            ids = self._history_ids(recent, number - 1)
            rows = np.flatnonzero((ids >= 0) & level.seen[np.maximum(ids, 0)])
            first, last = (
                np.searchsorted(level.keys, (ids[rows] + step) * self.vocab_size) for step in (0, 1)
            )
            places, owner = spans(first, last)
            p[rows] *= level.backoff[ids[rows], None]
            p[rows[owner], level.keys[places] % self.vocab_size] += level.discounted[places]
        return Predicted(p, np.zeros(len(contexts), np.int64))

    def _filled(self) -> tuple[Level, ...]:
        """Return the orders that have n-grams: short documents have no long ones."""
        return tuple(level for level in self.levels if len(level.keys))

    def _history_ids(self, recent: Ints, length: int) -> Ints:
        """Return the index of the last ``length`` tokens in the table of that order, or -1."""
        ids = np.zeros(len(recent), np.int64)
        for number in range(length):
            column = recent[:, recent.shape[1] - length + number]
            known = (ids >= 0) & (column >= 0)
            ids = _find(self.levels[number].keys, ids * self.vocab_size + column, known)
        return ids


def _interpolate(p: Floats, level: Level, before: Ints, ids: Ints, known: np.ndarray) -> Floats:
    own = np.where(ids >= 0, level.discounted[ids], 0.0)
    return np.where(known & level.seen[before], own + level.backoff[before] * p, p)


def _find(table: Ints, keys: Ints, wanted: np.ndarray) -> Ints:
    """Return the index of each wanted key in a sorted table, -1 where it is not there."""
    if not len(table):
        return np.full_like(keys, -1)
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(wanted & (table[index] == keys), index, -1)


def _recent(contexts: Sequence[Ints], length: int) -> Ints:
    """Return the last tokens of each context's document, (N, length), -1 where there are none."""
    recent = np.full((len(contexts), length), -1, np.int64)
    for row, context in enumerate(contexts):
        found = history(context[-length:] if length else context[:0])
        if len(found):
            recent[row, -len(found) :] = found
    return recent


def _adjusted_counts(counts: NGramModel, order: int) -> list[Ints]:
    """Return ``a`` per order: counts at the highest, distinct left neighbours below."""
    vocab = counts.vocab_size
    keys = [np.asarray(table) for table in counts.keys[:order]]
    # Of every n-gram: its first token, and the index of all but that one in the order below.
    first, suffix = [keys[0]], [np.zeros(len(keys[0]), np.int64)]
    adjusted = []
    for number in range(1, order):
        prefix, last = keys[number] // vocab, keys[number] % vocab
        shorter = np.searchsorted(keys[number - 1], suffix[number - 1][prefix] * vocab + last)
        left = np.bincount(shorter, minlength=len(keys[number - 1])).astype(np.int64)
        starts = (first[number - 1] == BOUNDARY) & (number > 1)
        # The text's first tokens have nothing before them and may have no left neighbour at all.
        kept = np.asarray(counts.counts[number - 1])
        adjusted.append(np.where(starts, kept, np.maximum(left, 1)))
        first.append(first[number - 1][prefix])
        suffix.append(shorter)
    return [*adjusted, np.asarray(counts.counts[order - 1])]


def _level(keys: Ints, adjusted: Ints, histories: int, vocab_size: int) -> Level:
    """Discount one order's counts and work out what its histories leave to the order below."""
    before = keys // vocab_size
    discount = np.array([0.0, *discounts(adjusted)])[np.minimum(adjusted, 3)]
    total = np.bincount(before, weights=adjusted, minlength=histories)
    left_over = np.bincount(before, weights=discount, minlength=histories)
    safe = np.maximum(total, 1.0)
    return Level(keys, (adjusted - discount) / safe[before], left_over / safe, total > 0)


def discounts(adjusted: Ints) -> tuple[float, float, float]:
    """Estimate D_1, D_2, D_3+ from how many n-grams have counts of 1 to 4 (ibid. eq. 17)."""
    n1, n2, n3, n4 = (int((adjusted == value).sum()) for value in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    inside = all(0 <= value <= limit for value, limit in zip(found, (1, 2, 3), strict=True))
    return found if inside else FALLBACK
