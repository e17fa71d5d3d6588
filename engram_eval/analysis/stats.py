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

from engram_eval.arrays import Floats, Ints
from engram_eval.errors import UserError

LEVEL = 0.95
"""Coverage of all intervals."""

# Bounds the resampling matrix to 64 MB however many items there are.
_CHUNK_CELLS = 8_000_000

# What rounding leaves of the weight of items that share nothing.
_ROUNDING = 1e-9


class Interval(NamedTuple):
    """An estimate, its confidence bounds and the two-sided p-value of "it is zero"."""

    value: float
    low: float
    high: float
    p: float


def _vector(values: npt.ArrayLike, what: str) -> Floats:
    """Check that ``values`` are finite numbers, at least one, and return them flat."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not array.size:
        raise UserError(f"{what}: no values, at least 1 is needed")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: holds values that are not finite")
    return array


class Ratio(NamedTuple):
    """A ratio of sums with its standard error; None where it is not defined."""

    value: float | None
    stderr: float | None


def ratio(top: Floats, bottom: Floats, clusters: Sequence[object] | Ints | None = None) -> Ratio:
    """Return ``sum(top) / sum(bottom)`` and its linearised, cluster-robust standard error.

    Cochran (1977), Sampling Techniques, eq. 6.13, without the finite-population factor and with
    the usual small-sample factor G / (G - 1). Where ``bottom`` is 1 it is the error of a mean, of
    independent items s / sqrt(n).

    Args:
        top: e.g. the bits of each item, (n,).
        bottom: e.g. the bytes of each item, (n,).
        clusters: label of each item, (n,); items of one label are no independent evidence. Or
            (n, k) where each item depends on several sources, as a pair does on two people
            (``shared_error``).

    Returns:
        No value where the denominator is not positive, and no error of a single cluster.
    """
    below = float(bottom.sum())
    if below <= 0:
        return Ratio(None, None)
    value = float(top.sum()) / below
    rest = top - value * bottom
    if isinstance(clusters, np.ndarray) and clusters.ndim > 1:
        error = shared_error(rest, bottom, clusters)
    else:
        error = _clustered_error(rest, range(len(rest)) if clusters is None else clusters)
    return Ratio(value, None if error is None else error / below)


def _clustered_error(rest: Floats, clusters: Sequence[object] | Ints) -> float | None:
    """Return the standard error of the sum of residuals; None of a single cluster."""
    if isinstance(clusters, np.ndarray):
        # Whole numbers are quick to tell apart, and a probe asks thousands of times.
        codes = clusters - clusters.min()
    else:
        index: dict[object, int] = {}
        codes = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    count = int((np.bincount(codes) > 0).sum())
    if count < 2:
        return None
    sums = np.bincount(codes, weights=rest)
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum()))


def shared_error(rest: Floats, bottom: Floats, sources: Ints) -> float | None:
    """Return the standard error of a sum over items that share sources, on whichever side.

    Items vary together if any source of one is a source of the other; items of the same sources,
    in any order, are one cell. The cluster-robust variance for dyads (Fafchamps & Gubert 2007;
    Aronow, Samii & Assenova 2015, arXiv:1312.3398): the sum of the products of all residuals that
    share a source. Clustering by each side and subtracting both (Cameron, Gelbach & Miller 2011)
    would leave out who stands first in one pair and second in another. Residuals sum to 0, which
    takes the share of such products from what is expected; it is given back, as G / (G - 1) does
    for G equal clusters. By chance, the result may be less than that of cells that share nothing,
    or negative; then theirs is returned.

    Args:
        rest: residuals, (n,).
        bottom: weights of the items, (n,); the error is that of a ratio if divided by their sum.
        sources: of each item, (n, k), numbered together.

    Returns:
        None where all cells share a source with all others.
    """
    cells, code = np.unique(np.sort(sources, axis=1), axis=0, return_inverse=True)
    sums, weights = (np.bincount(code.reshape(-1), weights=each) for each in (rest, bottom))
    sharing = (cells[:, None, :, None] == cells[None, :, None, :]).any(axis=(2, 3))
    whole = weights.sum() ** 2
    left = 1 - float(weights @ sharing @ weights) / whole
    if left < _ROUNDING:
        return None
    together = float(sums @ sharing @ sums) / left
    apart = float(sums @ sums) / (1 - float(weights @ weights) / whole)
    return math.sqrt(max(together, apart))


def bootstrap_ratios(
    tops: Floats,
    bottoms: Floats,
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


def _ratio_draws(tops: Floats, bottoms: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return draws of the ratios, (resamples, k), in chunks of bounded memory."""
    size = len(tops)
    chunk = max(1, _CHUNK_CELLS // size)
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = resample(size, rows, rng)
        parts.append((drawn @ tops) / (drawn @ bottoms))
    return np.concatenate(parts)


def resample(units: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return how often a bootstrap draws each unit, (draws, units)."""
    picks = rng.integers(0, units, (draws, units)) + units * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * units)
    return counts.reshape(draws, units).astype(np.float64)


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


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return p-values that control the chance of any false positive (Holm 1979)."""
    p = _vector(p_values, "holm")
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _unsort(scaled, order)


def _unsort(values: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """Put sorted values back where they came from, capped at 1."""
    result = np.empty_like(values)
    result[order] = np.minimum(values, 1.0)
    return result


def centred(score: float, chance: float) -> float:
    """Rescale a score so that chance is 0 and perfect is 1; below chance is negative."""
    if not 0 <= chance < 1:
        raise UserError(f"centred: chance {chance} is not in [0, 1)")
    return (score - chance) / (1 - chance)
