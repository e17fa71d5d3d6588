"""What predicts the next token from stored text: the common face of all counting memories.

Tokens are numbered so that 0 ends a document, and a history reaches back to the last 0 and
includes it (``corpus.ngrams``); ``vocabulary`` renumbers those of other tokenizers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Ints
from engram_eval.corpus.document import BOUNDARY

# The kind of position at which a predictor gives 0 to every token.
SILENT = "none"
# Numbers of a matrix that is made at a time: 32 MB.
CELLS = 1 << 22


class Scored(NamedTuple):
    """What a predictor says about the tokens of a stream.

    Attributes:
        p: probability of each token after its history, (T,).
        kind: which of the predictor's ``kinds`` of position each one is, (T,).
    """

    p: Floats
    kind: Ints


class Predicted(NamedTuple):
    """What a predictor says will follow.

    Attributes:
        p: of every token, (N, V); rows sum to 1, or to 0 where it says nothing.
        kind: as in ``Scored``, (N,).
    """

    p: Floats
    kind: Ints


class Predictor(ABC):
    """Gives probabilities to the next token.

    Attributes:
        vocab_size: V.
        kinds: names of the kinds of position between which its trustworthiness differs; mixtures
            give each kind a weight of its own.
    """

    vocab_size: int
    kinds: tuple[str, ...] = ("any",)

    @abstractmethod
    def score(self, tokens: Ints, starts: Ints | None = None) -> Scored:
        """Score a stream of documents.

        Args:
            tokens: (T,).
            starts: (T,), non-decreasing: first position that each history may include, beside the
                beginning of the document; None: the beginning of ``tokens``.
        """

    @abstractmethod
    def distributions(self, contexts: Sequence[Ints]) -> Predicted:
        """Return what follows each of N contexts; callers bound N x V (``in_chunks``)."""


def in_chunks(count: int, vocab_size: int) -> list[slice]:
    """Cut N contexts into slices whose distributions fit into ``CELLS`` numbers."""
    step = max(1, CELLS // vocab_size)
    return [slice(start, start + step) for start in range(0, count, step)]


def history(context: Ints) -> Ints:
    """Return the end of a context that belongs to its last document, with the 0 before it.

    >>> history(np.array([5, 0, 7, 8])).tolist()
    [0, 7, 8]
    """
    ends = np.flatnonzero(context[:-1] == BOUNDARY) if len(context) else context
    if len(context) and context[-1] == BOUNDARY:
        return context[-1:]
    return context[ends[-1] :] if len(ends) else context


def window_starts(count: int, seq_len: int) -> Ints:
    """Return the ``starts`` of a stream, (count,), as a model sees its windows.

    The stream's first token is the end of text that stands before it; a model reads of each window
    ``seq_len`` tokens, the one before the first that is scored included.

    >>> window_starts(6, 2).tolist()
    [0, 0, 0, 2, 2, 4]
    """
    return np.maximum(np.arange(count) - 1, 0) // seq_len * seq_len


def join(rows: Sequence[Ints]) -> tuple[Ints, Ints, Ints]:
    """Put rows one behind the other: tokens (T,), the start of each token's row (T,), bounds."""
    lengths = np.array([len(row) for row in rows], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate([np.asarray(row, np.int64) for row in rows]) if rows else bounds[:0]
    return flat, np.repeat(bounds[:-1], lengths), bounds


def spans(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """List the integers from ``first`` to ``last`` (exclusive) of each of N pairs.

    Returns:
        The integers, and for each the pair that it comes from.
    """
    lengths = last - first
    owner = np.repeat(np.arange(len(first)), lengths)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return first[owner] + offsets, owner
