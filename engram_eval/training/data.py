"""Batches as a pure function of tokens, shape, seed and step.

Nothing has to be saved to resume, and models trained with one seed see the same text in the
same order, which is what makes their comparison paired.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_eval.arrays import Ints
from engram_eval.corpus.sequences import sequence_order
from engram_eval.errors import UserError
from engram_eval.training.lookup import Lookup


class Batch(NamedTuple):
    """One step's text.

    Attributes:
        inputs: (B, T) int64 tokens.
        labels: (B, T) int64, the token that follows each input.
        sequences: (B,) which sequences of the corpus these are, for messages.
        epoch: 0-based pass over the corpus in which the batch begins.
        domains: (B, T) the domain that each label belongs to, where the documents are known.
        lookup: what the memory reads, where it has been looked up already.
    """

    inputs: Tensor
    labels: Tensor
    sequences: Ints
    epoch: int
    domains: Ints | None = None
    lookup: Lookup | None = None


class Batches:
    """The endless, shuffled stream of training sequences, cut into batches.

    The text is cut into sequences of ``seq_len`` inputs; every token but the first is predicted
    exactly once in an epoch (the last, incomplete sequence is left out). Each epoch has its own
    permutation, drawn from ``(seed, epoch)``. A batch may span two epochs.

    Args:
        tokens: (N,) the text.
        seq_len, batch_size, seed: see above.
        docs: (documents, 4) as ``Corpus.docs`` returns them; batches then know their domains.

    Raises:
        UserError: if the text is shorter than one sequence.
    """

    def __init__(
        self,
        tokens: NDArray[np.integer],
        seq_len: int,
        batch_size: int,
        seed: int,
        docs: Ints | None = None,
    ) -> None:
        self.tokens, self.seq_len, self.batch_size, self.seed = tokens, seq_len, batch_size, seed
        self.docs = docs
        self.n_sequences = (len(tokens) - 1) // seq_len
        if self.n_sequences < 1:
            raise UserError(
                f"the corpus has {len(tokens)} training tokens; one sequence takes {seq_len + 1}: "
                "give more text or a smaller train.seq_len"
            )
        # Two epochs are all that one batch can touch, if it is not larger than the corpus.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: sequence_order(self.n_sequences, seed, epoch)
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of a 0-based step."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, positions = np.divmod(places, self.n_sequences)
        sequences = np.array(
            [self._order(int(e))[p] for e, p in zip(epochs, positions, strict=True)]
        )
        spans = sequences[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        text = torch.from_numpy(self.tokens[spans].astype(np.int64))
        domains = self._domains(spans[:, 1:])
        return Batch(text[:, :-1], text[:, 1:], sequences, int(epochs[0]), domains)

    def epochs(self, steps: int) -> float:
        """Return how often the text has been seen after ``steps`` steps."""
        return steps * self.batch_size / self.n_sequences

    def _domains(self, places: Ints) -> Ints | None:
        if self.docs is None:
            return None
        numbers = np.searchsorted(self.docs[:, 0], places, side="right") - 1
        return np.asarray(self.docs[numbers, 2])
