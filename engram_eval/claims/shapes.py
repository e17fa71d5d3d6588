"""Which curve fits a row of arms best, and where it is lowest. Reported beside a verdict.

Curves are least-squares fits to every arm and seed at once, seeds levelled first, and compared by
AICc (Hurvich & Tsai 1989). This describes; the verdict itself rests on declared contrasts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engram_eval.contrasts import Array, Values

RESAMPLES = 2_000

CURVES: Mapping[str, Callable[[Array], list[Array]]] = {
    "flat": lambda x: [],
    "step at the end": lambda x: [(x == x.max()).astype(np.float64)],
    "line": lambda x: [x],
    "parabola": lambda x: [x, x**2],
}


def describe_shape(axis: Mapping[str, float], values: Values) -> dict[str, Any] | None:
    """Return the weights of evidence of each curve, and the parabola's lowest point.

    Args:
        axis: arm -> place on the axis.
        values: arm -> seed -> loss.

    Returns:
        ``weights`` (Akaike weights, adding up to 1), ``best``, ``lowest`` with ``low`` and ``high``
        (95 % bootstrap over seeds; null where the parabola opens downwards); None with fewer than
        four arms or two seeds that all arms have.
    """
    arms = [arm for arm in axis if values.get(arm)]
    shared = sorted(set.intersection(*(set(values[arm]) for arm in arms))) if arms else []
    if len(arms) < 4 or len(shared) < 2:
        return None
    x = np.array([axis[arm] for arm in arms])
    y = np.array([[values[arm][seed] for seed in shared] for arm in arms])
    y = y - y.mean(axis=0)
    scores = {name: _aicc(columns(x), y) for name, columns in CURVES.items()}
    least = min(scores.values())
    odds = {name: math.exp((least - score) / 2) for name, score in scores.items()}
    total = sum(odds.values())
    return {
        "weights": {name: value / total for name, value in odds.items()},
        "best": max(odds, key=lambda name: odds[name]),
        **_lowest(x, y),
    }


def _aicc(columns: list[Array], y: Array) -> float:
    """Return AICc of a least-squares fit with an intercept; y is (arms, seeds)."""
    design = np.column_stack([np.ones(len(y)), *columns])
    fitted = design @ np.linalg.lstsq(design, y.mean(axis=1), rcond=None)[0]
    squares = max(float(np.square(y - fitted[:, None]).sum()), 1e-18)
    # Intercept and error variance are parameters too.
    n, k = y.size, design.shape[1] + 1
    return n * math.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _lowest(x: Array, y: Array) -> dict[str, float | None]:
    """Return the parabola's lowest point within the range, with its interval over seeds."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, y.shape[1], (RESAMPLES, y.shape[1]))
    means = np.column_stack([y.mean(axis=1), y[:, picks].mean(axis=2)])
    curve, slope, _ = np.polyfit(x, means, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(-slope / (2 * curve), x.min(), x.max())
    if curve[0] <= 0:
        return {"lowest": None, "low": None, "high": None}
    drawn = vertex[1:][curve[1:] > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"lowest": float(vertex[0]), "low": float(low), "high": float(high)}
