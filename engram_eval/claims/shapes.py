"""Which curve fits a row of arms best, and where it is lowest. Reported beside a verdict.

Curves are least-squares fits to every arm and seed at once, seeds levelled first, and compared by
AICc (Hurvich & Tsai 1989). This describes; the verdict itself rests on declared contrasts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Not ``from scipy import stats``: half a second that most of what needs these sums never uses.
import scipy

from engram_eval.analysis.contrasts import Values
from engram_eval.arrays import Floats

CURVES: Mapping[str, Callable[[Floats], list[list[Floats]]]] = {
    "flat": lambda x: [[]],
    "step at the end": lambda x: [[(x == x.max()).astype(np.float64)]],
    "line": lambda x: [[x]],
    "flat, then a line": lambda x: [[np.maximum(x - bend, 0.0)] for bend in _bends(x)],
    "a line, then flat": lambda x: [[np.minimum(x - bend, 0.0)] for bend in _bends(x)],
    "parabola": lambda x: [[x, x**2]],
}
"""Columns beside an intercept; of several, one for each place of a bend, the best counts."""


def describe_shape(axis: Mapping[str, float], values: Values) -> dict[str, Any] | None:
    """Return the weights of evidence of each curve, and the parabola's lowest point.

    Args:
        axis: arm -> place on the axis.
        values: arm -> seed -> loss.

    Returns:
        ``weights`` (Akaike weights, adding up to 1), ``best``, ``lowest`` with ``low`` and ``high``
        (95 %, Fieller 1954, cut off at the axis' ends; null where the parabola opens downwards);
        None with fewer than four arms or two seeds that all arms have.
    """
    arms = [arm for arm in axis if values.get(arm)]
    shared = sorted(set.intersection(*(set(values[arm]) for arm in arms))) if arms else []
    if len(arms) < 4 or len(shared) < 2:
        return None
    x = np.array([axis[arm] for arm in arms])
    y = np.array([[values[arm][seed] for seed in shared] for arm in arms])
    y = y - y.mean(axis=0)
    scores = {name: _aicc(designs(x), y) for name, designs in CURVES.items()}
    least = min(scores.values())
    odds = {name: math.exp((least - score) / 2) for name, score in scores.items()}
    total = sum(odds.values())
    return {
        "weights": {name: value / total for name, value in odds.items()},
        "best": max(odds, key=lambda name: odds[name]),
        **_lowest(x, y),
    }


def _bends(x: Floats) -> Floats:
    """Return where a curve may bend: every place but the two outermost."""
    return np.unique(x)[1:-1]


def _aicc(designs: list[list[Floats]], y: Floats) -> float:
    """Return AICc of the best least-squares fit with an intercept; y is (arms, seeds)."""
    squares = max(min(_squares(columns, y) for columns in designs), 1e-18)
    # Intercept, error variance, seeds' levels and the place of a bend are parameters too.
    n, k = y.size, len(designs[0]) + 1 + y.shape[1] + (len(designs) > 1)
    return n * math.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _squares(columns: list[Floats], y: Floats) -> float:
    design = np.column_stack([np.ones(len(y)), *columns])
    fitted = design @ np.linalg.lstsq(design, y.mean(axis=1), rcond=None)[0]
    return float(np.square(y - fitted[:, None]).sum())


def _lowest(x: Floats, y: Floats) -> dict[str, float | None]:
    """Return the parabola's lowest point within the range, and Fieller's interval of it.

    All places are in it at which the parabola's slope is not told apart from 0.
    """
    design = np.column_stack([np.ones_like(x), x, x**2])
    fit = np.linalg.lstsq(design, y.mean(axis=1), rcond=None)[0]
    slope, curve = fit[1:]
    if curve <= 0:
        return {"lowest": None, "low": None, "high": None}
    dof = y.size - len(fit) - (y.shape[1] - 1)
    variance = float(np.square(y - (design @ fit)[:, None]).sum()) / dof / y.shape[1]
    spread = float(scipy.stats.t.ppf(0.975, dof)) ** 2 * variance * np.linalg.inv(design.T @ design)
    # Roots of (slope + 2 curve place)^2 = t^2 var(slope + 2 curve place).
    square = 4 * (curve**2 - spread[2, 2])
    roots = np.roots([square, 4 * (slope * curve - spread[1, 2]), slope**2 - spread[1, 1]])
    bounded = square > 0 and np.isreal(roots).all()
    low, high = sorted(roots.real) if bounded else (x.min(), x.max())
    places = {"lowest": -slope / (2 * curve), "low": low, "high": high}
    return {name: float(np.clip(place, x.min(), x.max())) for name, place in places.items()}
