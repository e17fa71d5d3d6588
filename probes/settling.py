"""When a prediction is there: numbers over depth, from a curve or from token to token.

Depth d counts blocks: 0 is the embedding, d is the residual stream after block d - 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engram_eval.analysis.stats import LEVEL, resample
from engram_eval.arrays import Floats, Ints, Mask

EARLY_SHARE = 1 / 3
DRAWS = 400


class Bounds(NamedTuple):
    """A value with a bootstrap interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def early_weights(n_layers: int, share: float = EARLY_SHARE) -> Floats:
    """Return weights (n_layers + 1,) of depths whose sum of products is the mean height of a curve.

    The mean height over depths 0 to ``share * n_layers`` is the area under the piecewise linear
    curve there, divided by that depth.
    """
    end = share * n_layers
    weights = np.zeros(n_layers + 1)
    for first in range(n_layers):
        part = min(1.0, end - first)
        if part > 0:
            # The area under a line from a to b over [0, part]: a (part - part^2/2) + b part^2/2.
            weights[first] += part - part**2 / 2
            weights[first + 1] += part**2 / 2
    return weights / end


def fall_depth(curve: Floats, share: float) -> float | None:
    """Return where a curve (depths,) first falls to ``share`` of its first value.

    Linear between depths; 0 is the first depth. None where the curve starts at 0 or never falls
    so far.
    """
    goal = share * curve[0]
    below = np.flatnonzero(curve <= goal)
    if curve[0] <= 0 or below.size == 0:
        return None
    end = int(below[0])
    before, after = curve[end - 1], curve[end]
    return float(end - 1 + (before - goal) / (before - after))


def rise_depth(curve: Floats, share: float) -> float | None:
    """Return where a curve (depths,) first reaches ``share`` of its maximum.

    Linear between depths; 0 where it begins there. None where nothing lies above 0.
    """
    top = float(curve.max())
    if top <= 0:
        return None
    end = int(np.flatnonzero(curve >= share * top)[0])
    if end == 0:
        return 0.0
    before, after = curve[end - 1], curve[end]
    return float(end - 1 + (share * top - before) / (after - before))


def fall_bounds(values: Floats, documents: Ints, share: float, rng: np.random.Generator) -> Bounds:
    """Return ``fall_depth`` of the mean curve with an interval from a bootstrap over documents.

    Args:
        values: per depth and token, (depths, n).
        documents: which one each token is from, (n,).
        share: see ``fall_depth``.
        rng: draws the documents.
    """
    value = fall_depth(values.mean(axis=1), share)
    if value is None or (documents == documents[0]).all():
        return Bounds(value, None, None)
    curves = drawn_means(values, documents, DRAWS, rng)
    return Bounds(value, *interval([fall_depth(curve, share) for curve in curves]))


def drawn_means(values: Floats, documents: Ints, draws: int, rng: np.random.Generator) -> Floats:
    """Return the means of values (k, n) over tokens in a bootstrap over documents, (draws, k)."""
    code = np.unique(documents, return_inverse=True)[1]
    rows = (*values, np.ones(documents.size))
    sums = np.stack([np.bincount(code, weights=row) for row in rows], axis=1).astype(np.float64)
    drawn = resample(len(sums), draws, rng)
    return (drawn @ sums[:, :-1]) / (drawn @ sums[:, -1])[:, None]


def interval(draws: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the percentile interval of draws; None where too many of them are undefined."""
    known = np.array([draw for draw in draws if draw is not None])
    if not len(known) or len(known) < LEVEL * len(draws):
        return None, None
    low, high = np.quantile(known, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def prediction_depth(agrees: Mask) -> Ints:
    """Return per token the first depth from which on the lens agrees with the model's choice.

    Baldock et al. 2021 (arXiv:2106.09647), with a lens in place of their nearest neighbours.

    Args:
        agrees: whether the likeliest token is the model's own, (depths, n).

    Returns:
        (n,); the number of depths where not even the last agrees.
    """
    suffix = np.logical_and.accumulate(agrees[::-1], axis=0)[::-1]
    first: Ints = len(agrees) - suffix.sum(axis=0)
    return first
