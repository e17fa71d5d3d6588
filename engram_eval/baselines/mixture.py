"""Two predictors in one: p = w q + (1 - w) p, one weight for each kind of position.

Weights are the likeliest ones on validation text. Held-out loss is measured on the same text, so
there each half of the documents is scored by weights, and settings of the memory's own, that the
other half has chosen.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.baselines.predictor import SILENT, Predicted, Predictor, Scored

# A weight of 1 would forbid what a memory has not seen.
MOST = 0.9999
# Kinds with fewer validation tokens take the weight of all kinds together.
LEAST_TOKENS = 50
HALVINGS = 30

SetBy = Callable[[Mask], Scored]
"""Returns what a memory gives to all tokens of a text, (T,), as those of a mask have set it."""


class Weights(NamedTuple):
    """How far a memory is trusted: a weight for each kind of position, (kinds,)."""

    values: Floats

    def mix(self, memory: Scored, p: Floats) -> Floats:
        """Mix the probabilities of tokens, (T,)."""
        weight = self.values[memory.kind]
        return weight * memory.p + (1 - weight) * p

    def mean(self, kind: Ints) -> float:
        """Return the average weight over positions."""
        return float(self.values[kind].mean())


def tune(memory: Scored, p: Floats, kinds: Sequence[str]) -> Weights:
    """Return the likeliest weights, each within [0, ``MOST``]; 0 for the kind ``SILENT``.

    The log-likelihood is concave in every weight, so its slope is bisected.

    Args:
        memory: what the memory gives to the tokens of a text, (T,).
        p: what is mixed with it, (T,).
        kinds: the memory's kinds of position.
    """
    overall = _likeliest(memory.p, p, np.zeros_like(memory.kind), 1)
    values = _likeliest(memory.p, p, memory.kind, len(kinds))
    counts = np.bincount(memory.kind, minlength=len(kinds))
    values = np.where(counts < LEAST_TOKENS, overall, values)
    return Weights(np.where(np.array(kinds) == SILENT, 0.0, values))


def _likeliest(q: Floats, p: Floats, kind: Ints, kinds: int) -> Floats:
    low, high = np.zeros(kinds), np.full(kinds, MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        mixed = p + middle[kind] * (q - p)
        slope = np.bincount(kind, (q - p) / np.maximum(mixed, 1e-300), minlength=kinds)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return low


def cross_tuned(set_by: SetBy, p: Floats, kinds: Sequence[str], group: Ints) -> Floats:
    """Mix the probabilities of tokens, (T,), as no token of the same group has chosen.

    Args:
        set_by: the memory; always the same where it has no settings of its own.
        p: see ``tune``.
        kinds: see ``tune``.
        group: 0 or 1 of each token, (T,).
    """
    mixed = np.array(p)
    for side in (0, 1):
        mine, other = group == side, group != side
        memory = set_by(other)
        chosen = tune(Scored(memory.p[other], memory.kind[other]), p[other], kinds)
        mixed[mine] = chosen.mix(Scored(memory.p[mine], memory.kind[mine]), p[mine])
    return mixed


class Mixture(Predictor):
    """A memory around another predictor."""

    def __init__(self, memory: Predictor, base: Predictor, weights: Weights) -> None:
        self.memory, self.base, self.weights = memory, base, weights
        self.vocab_size, self.kinds = base.vocab_size, memory.kinds

    def score(self, tokens: Ints, starts: Ints | None = None) -> Scored:
        """Score a stream of documents; see ``Predictor``."""
        found = self.memory.score(tokens, starts)
        mixed = self.weights.mix(found, self.base.score(tokens, starts).p)
        return Scored(mixed, found.kind)

    def distributions(self, contexts: Sequence[Ints]) -> Predicted:
        """Return what follows each context; see ``Predictor``."""
        found = self.memory.distributions(contexts)
        weight = self.weights.values[found.kind][:, None]
        return Predicted(
            weight * found.p + (1 - weight) * self.base.distributions(contexts).p, found.kind
        )
