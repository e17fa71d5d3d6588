"""An n-gram of unlimited order over a suffix array (infini-gram, arXiv:2401.17377 section 2).

The history is the longest end of the document so far that occurs in the training text, and
p(w | h) = c(hw) / c(h). It gives 0 to whatever never followed, so it is only used in a mixture.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.baselines.predictor import (
    CELLS,
    SILENT,
    Predicted,
    Predictor,
    Scored,
    history,
    join,
    spans,
)
from engram_eval.baselines.suffix_array import Queries, Ranges, SuffixArray, build_suffix_array
from engram_eval.corpus.ngrams import history_starts

# Lengths of the match from which on it is trusted differently.
LENGTHS = (1, 4, 8, 16)


class Infini(Predictor):
    """Counts after the longest match.

    Its kinds of position are the length of the match, each ``sparse`` (only one token ever
    followed; the paper gives these a weight of their own) or not, and ``none`` without a match.

    Args:
        index: of the training text.
        vocab_size: V.
    """

    kinds = (SILENT, *(f"{n}+ {kind}" for n in LENGTHS for kind in ("dense", "sparse")))

    def __init__(self, index: SuffixArray, vocab_size: int) -> None:
        self.index, self.vocab_size = index, vocab_size

    @classmethod
    def fit(cls, tokens: Ints, vocab_size: int, folder: Path) -> "Infini":
        """Sort a training text, (T,), into ``folder``."""
        return cls(build_suffix_array(tokens, folder), vocab_size)

    def score(self, tokens: Ints, starts: Ints | None = None) -> Scored:
        """Score a stream of documents; see ``Predictor``."""
        tokens = np.asarray(tokens, np.int64)
        positions = np.arange(len(tokens))
        room = positions - history_starts(tokens, starts)
        # x_t's history begins where x_{t-1} stands; x_0 has none, and ``room`` is 0 there.
        found = self.index.longest(Queries(tokens[::-1] + 1, len(tokens) - positions, room))
        unique, place = _distinct(found)
        p, kind = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64)
        for part in self._parts(unique):
            counts = self._count(unique, part)
            mine = np.flatnonzero((place >= part.start) & (place < part.stop))
            local = place[mine] - part.start
            keys = local * self.vocab_size + tokens[mine]
            at = np.minimum(np.searchsorted(counts.keys, keys), max(len(counts.keys) - 1, 0))
            if len(counts.keys):
                hit = counts.keys[at] == keys
                p[mine] = np.where(hit, counts.numbers[at], 0) / np.maximum(counts.total[local], 1)
            kind[mine] = counts.kind[local]
        return Scored(p, kind)

    def distributions(self, contexts: Sequence[Ints]) -> Predicted:
        """Return what follows each context; see ``Predictor``."""
        flat, _, bounds = join([history(np.asarray(c, np.int64))[::-1] for c in contexts])
        queries = Queries(np.append(flat + 1, 0), bounds[:-1], np.diff(bounds))
        unique, place = _distinct(self.index.longest(queries))
        p = np.zeros((len(unique.first), self.vocab_size))
        kind = np.zeros(len(unique.first), np.int64)
        for part in self._parts(unique):
            counts = self._count(unique, part)
            row, token = counts.keys // self.vocab_size, counts.keys % self.vocab_size
            p[part.start + row, token] = counts.numbers / counts.total[row]
            kind[part] = counts.kind
        return Predicted(p[place], kind[place])

    def _parts(self, ranges: Ranges) -> list[slice]:
        """Cut ranges into slices that hold about ``CELLS`` places."""
        chunk = np.cumsum(ranges.last - ranges.first) // CELLS
        borders = np.flatnonzero(np.diff(chunk)) + 1
        bounds = [0, *borders.tolist(), len(chunk)]
        return [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]

    def _count(self, ranges: Ranges, part: slice) -> "_Counts":
        """Count what follows the histories of some ranges."""
        first, last, length = (array[part] for array in ranges)
        # Without a match every place would count, and say nothing.
        places, owner = spans(first, np.where(length > 0, last, first))
        token = self.index.following(places)
        real = token >= 0
        keys, numbers = np.unique(owner[real] * self.vocab_size + token[real], return_counts=True)
        total = np.bincount(owner[real], minlength=len(first))
        distinct = np.bincount(keys // self.vocab_size, minlength=len(first))
        level = np.searchsorted(LENGTHS, length, side="right") - 1
        kind = np.where(total > 0, 1 + 2 * level + (distinct == 1), 0)
        return _Counts(keys, numbers, total, kind)


class _Counts:
    """What follows some histories: sorted keys (history x V + token), how often; totals, kinds."""

    def __init__(self, keys: Ints, numbers: Ints, total: Ints, kind: Ints) -> None:
        self.keys, self.numbers, self.total, self.kind = keys, numbers, total, kind


def _distinct(ranges: Ranges) -> tuple[Ranges, Ints]:
    """Return each range once, and which one each query has."""
    table, place = np.unique(np.stack(ranges, axis=1), axis=0, return_inverse=True)
    return Ranges(*table.T), place.ravel()
