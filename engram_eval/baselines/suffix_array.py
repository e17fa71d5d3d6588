"""A suffix array over the training text, read through memory maps.

The text is stored backwards, so that the histories before its tokens are suffixes and the longest
history that a query shares with the text stands next to the query's place in the sorted order.
All queries are answered together: a bisection compares four tokens of each at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_eval.arrays import Ints, Mask
from engram_eval.errors import UserError

CHUNK = 4
# Beyond every stored token; these are shifted by 1 and end with zeros.
ABOVE, BELOW = 1 << 40, -1


class Queries(NamedTuple):
    """Histories to look for, most recent token first.

    Attributes:
        tokens: all of them in one array, each token plus 1, (T,).
        begin: where each history's most recent token stands, (N,).
        room: how many tokens it has, (N,).
    """

    tokens: Ints
    begin: Ints
    room: Ints

    def pick(self, rows: Ints) -> "Queries":
        """Return some of the queries."""
        return Queries(self.tokens, self.begin[rows], self.room[rows])


class Ranges(NamedTuple):
    """Places, in sorted order, whose histories share ``length`` tokens with each query, (N,)."""

    first: Ints
    last: Ints
    length: Ints


@dataclass(frozen=True, eq=False)
class SuffixArray:
    """A sorted text.

    Attributes:
        text: the tokens, each plus 1, last one first, then ``CHUNK`` zeros.
        order: positions of ``text``, sorted by what begins there, (T,).
        heads: where each first token's suffixes begin in ``order``, and the end of the last.
    """

    text: NDArray[Any]
    order: NDArray[Any]
    heads: Ints

    def longest(self, queries: Queries) -> Ranges:
        """Find the longest beginning of each query that the text contains, and where."""
        size = len(self.order)
        place = self._bisect(queries, BELOW, *self._bucket(queries))
        shared = [self._shared(np.clip(place + step, 0, size - 1), queries) for step in (-1, 0)]
        length = np.maximum(*shared)
        cut = queries._replace(room=length)
        first = self._bisect(cut, BELOW, *self._around(cut, BELOW, place, -1))
        last = self._bisect(cut, ABOVE, *self._around(cut, ABOVE, place, 1))
        return Ranges(first, last, length)

    def following(self, places: Ints) -> Ints:
        """Return the token that follows each place's history, -1 where the text ends."""
        position = np.asarray(self.order[places], np.int64)
        return np.where(
            position > 0, self.text[np.maximum(position - 1, 0)].astype(np.int64) - 1, -1
        )

    def _bucket(self, queries: Queries) -> tuple[Ints, Ints]:
        """Bound each query's place by its first token."""
        first = _query_at(queries, np.arange(len(queries.begin)), 0, BELOW)[:, 0]
        known = np.clip(first, 0, len(self.heads) - 2)
        return self.heads[known].copy(), self.heads[known + (first == known)].copy()

    def _bisect(self, queries: Queries, end: int, low: Ints, high: Ints) -> Ints:
        """Return how many suffixes are less than each query with ``end`` behind it.

        The answer lies within ``low`` and ``high``, which are changed.
        """
        while len(open_ := np.flatnonzero(low < high)):
            middle = (low[open_] + high[open_]) // 2
            less = self._less(middle, queries.pick(open_), end)
            low[open_] = np.where(less, middle + 1, low[open_])
            high[open_] = np.where(less, high[open_], middle)
        return low

    def _around(self, queries: Queries, end: int, place: Ints, way: int) -> tuple[Ints, Ints]:
        """Bound what ``_bisect`` looks for, near ``place``: most matches are few.

        Steps away from the place, to lower (-1) or higher (1) ones, are doubled until one is
        beyond the answer.
        """
        low, high = np.zeros_like(place), np.full_like(place, len(self.order))
        open_, step = np.arange(len(place)), 1
        while len(open_):
            probe = place[open_] + way * step - (way > 0)
            inside = (probe >= 0) & (probe < len(self.order))
            open_, probe = open_[inside], probe[inside]
            less = self._less(probe, queries.pick(open_), end)
            low[open_] = np.where(less, np.maximum(low[open_], probe + 1), low[open_])
            high[open_] = np.where(less, high[open_], np.minimum(high[open_], probe))
            open_ = open_[less == (way > 0)]
            step *= 2
        return low, high

    def _less(self, places: Ints, queries: Queries, end: int) -> Mask:
        """Tell whether the suffix at each place is less than the query, ``end`` behind it."""
        less = np.zeros(len(places), np.bool_)
        open_, offset = np.arange(len(places)), 0
        position = np.asarray(self.order[places], np.int64)
        while len(open_):
            ours = self._text_at(position[open_] + offset)
            theirs = _query_at(queries, open_, offset, end)
            differ = ours != theirs
            decided = differ.any(axis=1)
            column = differ.argmax(axis=1)
            rows = np.arange(len(open_))
            less[open_] = decided & (ours[rows, column] < theirs[rows, column])
            # A query that is over and still equal is less or greater by its ``end`` alone.
            open_ = open_[~decided]
            offset += CHUNK
        return less

    def _shared(self, places: Ints, queries: Queries) -> Ints:
        """Return how many tokens the suffix at each place and the query have in common."""
        length = np.zeros(len(places), np.int64)
        open_, offset = np.arange(len(places)), 0
        position = np.asarray(self.order[places], np.int64)
        while len(open_):
            ours = self._text_at(position[open_] + offset)
            same = ours == _query_at(queries, open_, offset, BELOW)
            run = np.where(same.all(axis=1), CHUNK, (~same).argmax(axis=1))
            length[open_] += run
            open_ = open_[run == CHUNK]
            offset += CHUNK
        return length

    def _text_at(self, positions: Ints) -> Ints:
        """Return the next tokens of the text, (N, CHUNK)."""
        within = np.minimum(positions, len(self.text) - CHUNK)
        return self.text[within[:, None] + np.arange(CHUNK)].astype(np.int64)


def _query_at(queries: Queries, rows: Ints, offset: int, end: int) -> Ints:
    """Return the next tokens of queries, (N, CHUNK), ``end`` from where they are over."""
    columns = offset + np.arange(CHUNK)
    within = columns < queries.room[rows, None]
    places = np.minimum(queries.begin[rows, None] + columns, len(queries.tokens) - 1)
    return np.where(within, queries.tokens[places], end)


def build_suffix_array(tokens: Ints, folder: Path) -> SuffixArray:
    """Sort a text, write it to ``text.npy`` and ``order.npy`` and open them as memory maps.

    Args:
        tokens: (T,), in reading order.
        folder: is made.

    Raises:
        UserError: the package that sorts is not installed.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError as error:
        raise UserError(
            "the infini baseline needs: pip install 'engram-eval[baselines]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    width = 2 if tokens.max(initial=0) < (1 << 16) - 1 else 4
    backwards = tokens[::-1] + 1
    # Big-endian bytes sort like the numbers that they spell (infini-gram, arXiv:2401.17377 A).
    spelt = backwards.astype(f">u{width}").view(np.uint8)
    sorted_bytes = divsufsort(spelt)
    order = sorted_bytes[sorted_bytes % width == 0] // width
    padded = np.concatenate([backwards, np.zeros(CHUNK, np.int64)]).astype(f"<u{width}")
    np.save(folder / "text.npy", padded)
    np.save(folder / "order.npy", order.astype("<u4" if len(order) < 1 << 32 else "<u8"))
    return open_suffix_array(folder)


def open_suffix_array(folder: Path) -> SuffixArray:
    """Open what ``build_suffix_array`` wrote."""
    text, order = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("text", "order"))
    counts = np.bincount(text[:-CHUNK])
    return SuffixArray(text, order, np.concatenate([[0], np.cumsum(counts)]))
