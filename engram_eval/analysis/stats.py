"""Uncertainty over items and over seeds; plain numpy in, named tuples out. Imports no torch.

Items and seeds answer different questions. An interval over items says what other items of the
same kind would have given with these very weights; only several seeds say what another training
run would have given. No function here mixes the two.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Not ``from scipy import stats``: half a second that most of what needs these sums never uses.
import scipy

from engram_eval.errors import UserError

Array = npt.NDArray[np.float64]

LEVEL = 0.95
"""Coverage of all intervals."""

# Bounds the resampling matrix to 64 MB however many items there are.
_CHUNK_CELLS = 8_000_000


class Interval(NamedTuple):
    """An estimate, its confidence bounds and the two-sided p-value of "it is zero"."""

    value: float
    low: float
    high: float
    p: float


def _vector(values: npt.ArrayLike, what: str, least: int = 1) -> Array:
    """Check that ``values`` are at least ``least`` finite numbers and return them flat."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size < least:
        raise UserError(f"{what}: {array.size} values, at least {least} are needed")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: holds values that are not finite")
    return array


def clustered_stderr(values: npt.ArrayLike, clusters: Sequence[object]) -> float:
    """Return the standard error of the mean of items that share sources.

    The cluster-robust sandwich of an intercept-only regression with the usual small-sample
    factor G / (G - 1); clusters of one item give s / sqrt(n).

    Raises:
        UserError: if lengths differ or there are fewer than two clusters.
    """
    array = _vector(values, "clustered_stderr", least=2)
    if len(clusters) != array.size:
        raise UserError(f"clustered_stderr: {array.size} values, {len(clusters)} clusters")
    sums = _cluster_sums(array - array.mean(), clusters)
    if sums.size < 2:
        raise UserError("clustered_stderr: one cluster; at least 2 are needed")
    factor = sums.size / (sums.size - 1)
    return float(math.sqrt(factor * np.square(sums).sum()) / array.size)


def _cluster_sums(values: Array, clusters: Sequence[object]) -> Array:
    """Sum ``values`` within each cluster, in the order of first appearance."""
    index: dict[object, int] = {}
    codes = [index.setdefault(cluster, len(index)) for cluster in clusters]
    return np.bincount(codes, weights=values, minlength=len(index)).astype(np.float64)


def bootstrap_ratios(
    tops: Array,
    bottoms: Array,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> list[Interval]:
    """Bootstrap ``sum(top) / sum(bottom)`` of several quantities over the same units.

    With differences in bits above and bytes below this is the difference in bits per byte. All
    columns see the same draws, which costs hardly more than one. Percentile intervals; p is
    twice the smaller tail at zero, with one added to both counts (Davison & Hinkley 1997,
    eq. 4.11), so never 0; nor is it below 2^(1 - n), which is what n equal signs are worth: a
    bootstrap of few units that all say the same would take them for certain.

    Args:
        tops: numerators, (n, k): n units, k quantities.
        bottoms: denominators of the same shape, positive.
        rng: source of the resampling.
        resamples: bootstrap draws.

    Raises:
        UserError: if there are fewer than two units.
    """
    if len(tops) < 2:
        raise UserError("bootstrap: one unit; at least 2 are needed")
    draws = _ratio_draws(tops, bottoms, resamples, rng)
    lows, highs = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
    tails = np.minimum((draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0))
    p = np.clip(2 * (tails + 1) / (resamples + 1), 2.0 ** (1 - len(tops)), 1.0)
    values = tops.sum(axis=0) / bottoms.sum(axis=0)
    return [Interval(*map(float, entry)) for entry in zip(values, lows, highs, p, strict=True)]


def _ratio_draws(tops: Array, bottoms: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Return draws of the ratios, (resamples, k), in chunks of bounded memory."""
    size = len(tops)
    chunk = max(1, _CHUNK_CELLS // size)
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        picks = rng.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        drawn = counts.astype(np.float64)
        parts.append((drawn @ tops) / (drawn @ bottoms))
    return np.concatenate(parts)


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the exact two-sided p-value that two models are right equally often.

    Args:
        a: right (1) or wrong (0) per item, shape (n,).
        b: the same items by the second model, shape (n,).
    """
    first, second = _vector(a, "mcnemar"), _vector(b, "mcnemar")
    if first.size != second.size or not np.isin([*first, *second], (0.0, 1.0)).all():
        raise UserError("mcnemar: needs two lists of 0 and 1 of equal length")
    only_a, only_b = int((first > second).sum()), int((first < second).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: npt.ArrayLike) -> Array:
    """Return p-values that control the chance of any false positive (Holm 1979)."""
    p = _vector(p_values, "holm")
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _unsort(scaled, order)


def _unsort(values: Array, order: npt.NDArray[np.intp]) -> Array:
    """Put sorted values back where they came from, capped at 1."""
    result = np.empty_like(values)
    result[order] = np.minimum(values, 1.0)
    return result


def centred(score: float, chance: float) -> float:
    """Rescale a score so that chance is 0 and perfect is 1; below chance is negative."""
    if not 0 <= chance < 1:
        raise UserError(f"centred: chance {chance} is not in [0, 1)")
    return (score - chance) / (1 - chance)
