"""How long each of several things takes, from turns in which each of them is timed once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

LEVEL = 0.95


class Timing(NamedTuple):
    """How long something takes, beside a reference.

    Attributes:
        seconds: the reference's median times ``ratio``.
        ratio: to the reference: the median over turns, so that what slows a whole turn, or a
            single time, counts for nothing.
        low, high: where that median lies with 95 % confidence, whatever the times' distribution
            (order statistics); None for fewer than six turns.
    """

    seconds: float
    ratio: float
    low: float | None
    high: float | None


def compared(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, Timing]:
    """Compare times of the same turns.

    Args:
        times: name -> seconds, turn by turn.
        reference: one of the names.
    """
    base = np.asarray(times[reference], dtype=np.float64)
    found = {}
    for name, each in times.items():
        ratios = np.sort(np.asarray(each) / base)
        ratio = float(np.median(ratios))
        found[name] = Timing(float(np.median(base)) * ratio, ratio, *_interval(ratios))
    return found


def _interval(ordered: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the median of sorted values by the sign test."""
    # So many values on either side are improbable below half of what the level leaves.
    outside = int(binom.ppf((1 - LEVEL) / 2, len(ordered), 0.5))
    if outside < 1:
        return None, None
    return float(ordered[outside - 1]), float(ordered[len(ordered) - outside])
