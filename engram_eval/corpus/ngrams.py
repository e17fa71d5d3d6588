"""Counts of the training text's n-grams, and what a token costs by them.

The one measure of how static a token is: slices, probes and the n-gram baseline all use it.
Probabilities are Witten-Bell, interpolated from order ``n`` down to the uniform distribution
(Witten and Bell 1991, method C; Chen and Goodman 1998, section 2.5):

    p_n(w | h) = (c(hw) + T(h) p_{n-1}(w | h')) / (c(h) + T(h)),        p_0 = 1 / V

where ``T(h)`` counts the distinct tokens seen after ``h`` and ``h'`` is ``h`` without its oldest
token. An unseen ``h`` leaves ``p_{n-1}`` as it is.

No history crosses a document: it reaches back to the last end of text (0 unless a tokenizer has it
elsewhere) and includes it, because it also marks the beginning of the next document.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.corpus.document import BOUNDARY
from engram_eval.errors import UserError

END_ID = "end_id.npy"
"""Written only where documents do not end with 0."""


def history_starts(
    tokens: ArrayLike, history_start: ArrayLike | None = None, end_id: int = BOUNDARY
) -> Ints:
    """Return for each position the first one that its history may include, (T,).

    Args:
        tokens: (T,).
        history_start: (T,), non-decreasing: a further limit, for example the start of the
            sequence where several lie behind each other. None: the beginning of ``tokens``.
        end_id: the token that ends a document.
    """
    tokens = np.asarray(tokens)
    positions = np.arange(len(tokens))
    boundary = np.maximum.accumulate(np.where(tokens == end_id, positions, 0))
    starts = np.concatenate([[0], boundary[:-1]])[: len(tokens)]
    return starts if history_start is None else np.maximum(starts, np.asarray(history_start))


@dataclass(frozen=True)
class NGramModel:
    """Counts of all n-grams up to an order.

    An n-gram is a key: (index of its first n-1 tokens in the table of order n-1) x V + last token.
    This is exact for every vocabulary and order, and continuations of a history lie side by side.

    Attributes:
        vocab_size: V.
        keys: per order (1 first) the sorted keys, int64.
        counts: per order the number of times that each was seen.
        end_id: the token that ends a document.
    """

    vocab_size: int
    keys: tuple[Ints, ...]
    counts: tuple[Ints, ...]
    end_id: int = BOUNDARY

    @classmethod
    def count(
        cls, tokens: ArrayLike, vocab_size: int, max_order: int = 5, end_id: int = BOUNDARY
    ) -> "NGramModel":
        """Count the n-grams of a token stream whose documents end with ``end_id``.

        Raises:
            UserError: no tokens, a token outside the vocabulary, or an order below 1.
        """
        tokens = _checked(tokens, vocab_size)
        if not len(tokens) or max_order < 1:
            raise UserError(f"cannot count {len(tokens)} tokens to order {max_order}")
        reach = np.arange(len(tokens)) - history_starts(tokens, end_id=end_id)
        keys, counts = [], []
        ids = np.zeros_like(tokens)
        for order in range(1, max_order + 1):
            here = _keys(ids, tokens, vocab_size, order)
            seen = reach >= order - 1
            unique, inverse, number = ranked(here[seen])
            ids = np.full_like(tokens, -1)
            ids[seen] = inverse
            keys.append(unique)
            counts.append(number)
        return cls(vocab_size, tuple(keys), tuple(counts), end_id)

    def save(self, folder: Path) -> None:
        """Write one ``order<n>.keys.npy`` and ``order<n>.counts.npy`` per order."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "vocab_size.npy", np.int64(self.vocab_size))
        if self.end_id != BOUNDARY:
            np.save(folder / END_ID, np.int64(self.end_id))
        for order, (keys, counts) in enumerate(zip(self.keys, self.counts, strict=True), start=1):
            np.save(folder / f"order{order}.keys.npy", keys)
            np.save(folder / f"order{order}.counts.npy", counts)

    @classmethod
    def load(cls, folder: Path) -> "NGramModel":
        """Open what ``save`` wrote, as memory maps."""
        orders = len(list(folder.glob("order*.keys.npy")))
        if not orders:
            raise UserError(f"{folder}: no n-gram counts here")
        tables = [
            tuple(
                np.load(folder / f"order{order}.{name}.npy", mmap_mode="r")
                for order in range(1, orders + 1)
            )
            for name in ("keys", "counts")
        ]
        elsewhere = folder / END_ID
        end_id = int(np.load(elsewhere)) if elsewhere.exists() else BOUNDARY
        keys, counts = tables
        return cls(int(np.load(folder / "vocab_size.npy")), keys, counts, end_id)

    @property
    def max_order(self) -> int:
        """Longest n-gram that was counted."""
        return len(self.keys)

    @cached_property
    def _continuations(self) -> tuple[tuple[Ints, Ints], ...]:
        """Per order: c(h) and T(h) of each history h, indexed as in the table below it."""
        sizes = [1, *(len(keys) for keys in self.keys[:-1])]
        result = []
        for size, keys, counts in zip(sizes, self.keys, self.counts, strict=True):
            history = np.asarray(keys) // self.vocab_size
            distinct = np.bincount(history, minlength=size)
            # Sums of counts, exact in float64 up to 2**53.
            total = np.bincount(history, weights=counts, minlength=size).astype(np.int64)
            result.append((total, distinct))
        return tuple(result)

    def ngram_frequency(self, tokens: ArrayLike, order: int) -> Ints:
        """Return how often the n-gram that ends at each position was seen in training, (T,).

        0 where it was never seen, or would reach over the beginning of its document.

        Args:
            tokens: (T,); a document's beginning is known by the end of text before it.
            order: its length, 1 to ``max_order``.
        """
        self._check_order(order)
        tokens = _checked(tokens, self.vocab_size)
        reach = np.arange(len(tokens)) - history_starts(tokens, end_id=self.end_id)
        ids = np.zeros_like(tokens)
        for level in range(1, order + 1):
            if not len(self.keys[level - 1]):
                return np.zeros_like(tokens)
            known = (_previous(ids, level) >= 0) & (reach >= level - 1)
            ids = _find(self.keys[level - 1], _keys(ids, tokens, self.vocab_size, level), known)
        return np.where(ids >= 0, self.counts[order - 1][ids], 0)

    def surprisal_bits(
        self, tokens: ArrayLike, order: int, history_start: ArrayLike | None = None
    ) -> Floats:
        """Return -log2 p(x_t | the ``order`` - 1 tokens before it), (T,).

        Args:
            tokens: (T,); a document's beginning is known by the end of text before it.
            order: 1 (frequency alone) to ``max_order``.
            history_start: see ``history_starts``.
        """
        self._check_order(order)
        tokens = _checked(tokens, self.vocab_size)
        reach = np.arange(len(tokens)) - history_starts(tokens, history_start, self.end_id)
        p = np.full(len(tokens), 1 / self.vocab_size)
        ids = np.zeros_like(tokens)
        for level in range(1, order + 1):
            if not len(self.keys[level - 1]):
                break  # no training document is so long
            history = _previous(ids, level)
            known = (history >= 0) & (reach >= level - 1)
            ids = _find(self.keys[level - 1], _keys(ids, tokens, self.vocab_size, level), known)
            count = np.where(ids >= 0, self.counts[level - 1][ids], 0)
            total, distinct = (
                np.where(known, a[history], 0) for a in self._continuations[level - 1]
            )
            known &= total > 0
            p = np.where(known, (count + distinct * p) / np.maximum(total + distinct, 1), p)
        return -np.log2(p)

    def _check_order(self, order: int) -> None:
        if not 1 <= order <= self.max_order:
            raise UserError(f"n-gram order {order}; counted are 1 to {self.max_order}")


def ranked(values: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the sorted distinct values, where each of ``values`` stands among them, and how often.

    What ``np.unique`` does, in a quarter of the time: value and place fit into one number as a
    rule, and sorting numbers is much cheaper than sorting places by them.
    """
    place_bits = len(values).bit_length()
    if not len(values) or int(values.max()).bit_length() + place_bits > 63:
        return np.unique(values, return_inverse=True, return_counts=True)
    packed = np.sort((values << place_bits) | np.arange(len(values)))
    ordered = packed >> place_bits
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.diff(first, append=len(values))
    rank = np.empty_like(values)
    rank[packed & ((1 << place_bits) - 1)] = np.repeat(np.arange(len(first)), counts)
    return ordered[first], rank, counts


def _checked(tokens: ArrayLike, vocab_size: int) -> Ints:
    """Return tokens as int64; one outside the vocabulary would be taken for another n-gram."""
    result = np.asarray(tokens).astype(np.int64)
    if len(result) and not 0 <= result.min() <= result.max() < vocab_size:
        raise UserError(
            f"tokens from {result.min()} to {result.max()}; the vocabulary has {vocab_size}"
        )
    return result


def _previous(ids: Ints, order: int) -> Ints:
    """Return the history's index at each position, given those of order - 1; -1 where unknown."""
    return ids if order == 1 else np.concatenate([[-1], ids[:-1]])[: len(ids)]


def _keys(ids: Ints, tokens: Ints, vocab_size: int, order: int) -> Ints:
    """Build the key of the n-gram that ends at each position."""
    return _previous(ids, order) * vocab_size + tokens


def _find(table: Ints, keys: Ints, wanted: Mask) -> Ints:
    """Return the index of each wanted key in a sorted table, -1 where it is not there."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(wanted & (table[index] == keys), index, -1)
