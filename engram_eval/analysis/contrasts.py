"""Contrasts of a study's arms over seeds; plain numpy in, named tuples out. Imports no torch.

A seed fixes the order of the text for every arm, so arms are compared within seeds. Few seeds say
little about the spread; the arms of one scale are trained alike and share one variance, unless
one of them is seen to spread more widely.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Not ``scipy.stats``: its distributions take half a second to import, and sixty times as long.
import scipy

from engram_eval.arrays import Floats
from engram_eval.errors import UserError

Values = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> value."""


NO_SPREAD = 1e-9
"""A standard error at or below this is rounding."""

WIDER, OUTSIDE = 0.1, 0.01
"""Levels at which an arm is taken to spread more widely than the others: one that a contrast is
about, and one that only adds to the pooled variance (``docs/statistics.md``)."""


class Estimate(NamedTuple):
    """A contrast, its standard error, and the degrees of freedom of that error.

    A standard error of 0 says that every seed gave this very value, of ``dof + 1`` seeds. Student's
    t is then 0/0 or infinite, and would take few seeds for certain; the tests below go by signs
    alone: that n seeds lie on one side of a bound has a chance of ``2^-n``, if half of all do.
    """

    value: float
    stderr: float
    dof: float


class Contrast(NamedTuple):
    """A contrast's estimate, and what its variance is made of.

    Attributes:
        pooled: over the study's arms, else the contrast's own.
        wider: its arms that spread more widely than the others, for which it is its own.
        left_out: other arms that do, and so do not count in the pooled variance.
    """

    estimate: Estimate
    pooled: bool
    wider: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class Design(NamedTuple):
    """What is linear in the observations of a layout of arms and seeds.

    Attributes:
        solve: (arms + seeds, n): least-squares effects from n observations.
        residual: (n, n): projects observations on what the effects leave over.
        covariance: (arms, arms): of the arms' effects, in units of the error variance.
        told: (arms + seeds, arms + seeds): projects on what the layout can tell.
        dof: n minus the effects that can be told apart.
    """

    solve: Floats
    residual: Floats
    covariance: Floats
    told: Floats
    dof: int


@functools.lru_cache(maxsize=64)
def block_design(cells: tuple[tuple[str, int], ...]) -> Design:
    """Return the least-squares layout ``value = arm + seed + error`` (randomised blocks).

    Args:
        cells: (arm, seed) of each observation; arms need not have all seeds.
    """
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    seeds = sorted({seed for _, seed in cells})
    matrix = np.zeros((len(cells), len(arms) + len(seeds)))
    for row, (arm, seed) in enumerate(cells):
        matrix[row, arms.index(arm)] = 1.0
        matrix[row, len(arms) + seeds.index(seed)] = 1.0
    solve: Floats = np.linalg.pinv(matrix).astype(np.float64)
    residual = np.eye(len(cells)) - matrix @ solve
    covariance = (solve @ solve.T)[: len(arms), : len(arms)]
    dof = len(cells) - int(np.linalg.matrix_rank(matrix))
    return Design(solve, residual, covariance, solve @ matrix, dof)


def block_contrast(values: Values, weights: Mapping[str, float]) -> Estimate:
    """Estimate ``sum(weight x arm)`` within seeds, with the variance pooled over all arms.

    With two arms of equal seeds this is the paired t-test; arms outside of ``weights`` only add
    degrees of freedom. It rests on equal spreads: see ``wider_arms``.

    Args:
        values: of all arms that are trained alike.
        weights: add up to 0.

    Raises:
        UserError: weights that do not add up to 0, an arm without values, no spread, or arms that
            share no seed with each other.
    """
    _check(values, weights)
    if abs(sum(weights.values())) > 1e-9:
        raise UserError(f"contrast: the weights {dict(weights)} do not add up to 0")
    cells = [(arm, seed) for arm, seeds in values.items() for seed in sorted(seeds)]
    design = block_design(tuple(cells))
    observed = np.array([values[arm][seed] for arm, seed in cells])
    vector = np.array([weights.get(arm, 0.0) for arm in dict.fromkeys(a for a, _ in cells)])
    if design.dof < 1:
        raise UserError("contrast: no degrees of freedom are left for the error")
    asked = np.pad(vector, (0, len(design.told) - vector.size))
    if not np.allclose(asked @ design.told, asked):
        raise UserError(f"contrast: no seeds link the arms {', '.join(weights)}")
    variance = _squares(design, observed) / design.dof
    spread = variance * float(vector @ design.covariance @ vector)
    if spread <= NO_SPREAD**2:
        raise UserError("contrast: no spread over seeds")
    value = float(vector @ (design.solve @ observed)[: vector.size])
    return Estimate(value, math.sqrt(spread), float(design.dof))


def wider_arms(values: Values, arms: Iterable[str], level: float = WIDER) -> tuple[str, ...]:
    """Return those of ``arms`` that spread more widely over seeds than the other arms do.

    For each, a one-sided F test at ``level`` of what its observations add to the residual sum of
    squares of all others (Chow 1960), which is exact where all arms spread alike. Arms that are too
    few to tell (two, or fewer seeds than two) are not wider.

    Args:
        values: of all arms that are trained alike.
        arms: which to look at, each with values.
        level: how often an arm that spreads no more widely is taken for one.
    """
    return tuple(arm for arm in arms if _p_wider(values, arm) < level)


def _p_wider(values: Values, arm: str) -> float:
    """Return the p-value of "this arm spreads no more widely than the others"."""
    cells = [(other, seed) for other, seeds in values.items() for seed in sorted(seeds)]
    rest = [cell for cell in cells if cell[0] != arm]
    if not rest:
        return 1.0
    squares, dof = _residual(values, cells)
    squares_rest, dof_rest = _residual(values, rest)
    if dof_rest < 1 or dof == dof_rest:
        return 1.0
    own, others = (squares - squares_rest) / (dof - dof_rest), squares_rest / dof_rest
    if others <= NO_SPREAD**2:
        return 0.0 if own > NO_SPREAD**2 else 1.0
    return float(scipy.special.fdtrc(dof - dof_rest, dof_rest, max(own, 0.0) / others))


def _residual(values: Values, cells: Sequence[tuple[str, int]]) -> tuple[float, int]:
    """Return the residual sum of squares of a layout of arms and seeds, and its freedom."""
    design = block_design(tuple(cells))
    return _squares(design, np.array([values[arm][seed] for arm, seed in cells])), design.dof


def _squares(design: Design, observed: Floats) -> float:
    left = design.residual @ observed
    return float(left @ left)


def seed_contrast(values: Values, weights: Mapping[str, float], counted: bool = False) -> Estimate:
    """Estimate ``sum(weight x arm)`` from its value at each seed that all these arms have.

    No variance is shared between arms: for arms that are trained differently. With weights that do
    not add up to 0 it tests whether a value is 0, which makes sense for one that is a difference.

    Args:
        values: of these arms.
        weights: of arms.
        counted: the values count right answers, of which trainings can give as many in every seed;
            the estimate then has no standard error. Bits never agree to the last digit, unless the
            same numbers were read twice.

    Raises:
        UserError: an arm without values, fewer than two common seeds, or no spread over them.
    """
    _check(values, weights)
    shared = set.intersection(*(set(values[arm]) for arm in weights))
    if len(shared) < 2:
        raise UserError(f"contrast: {len(shared)} seeds that all arms have; at least 2 are needed")
    each = np.array(
        [sum(w * values[arm][seed] for arm, w in weights.items()) for seed in sorted(shared)]
    )
    stderr = float(each.std(ddof=1) / math.sqrt(each.size))
    if stderr <= NO_SPREAD:
        if not counted:
            raise UserError("contrast: no spread over seeds")
        # Thirds of questions do not add up to exactly 0, nor to the same number.
        return Estimate(round(float(each.mean()), 9), 0.0, float(each.size - 1))
    return Estimate(float(each.mean()), stderr, float(each.size - 1))


def study_contrast(
    values: Values, weights: Mapping[str, float], *, pooled: bool, counted: bool = False
) -> Contrast:
    """Estimate a contrast with the variance pooled over the arms that spread alike.

    Arms that it is not about and that spread more widely are left out of the pool first; where one
    that it is about does, the contrast's own spread over seeds decides.

    Args:
        values: of all arms that are trained alike.
        weights: of the contrast's arms; they add up to 0 where the variance is pooled.
        pooled: false never pools, for arms that are trained differently.
        counted: see ``seed_contrast``.

    Raises:
        UserError: see ``block_contrast`` and ``seed_contrast``.
    """
    if not pooled:
        return Contrast(seed_contrast(values, weights, counted), pooled=False)
    beside = [arm for arm in values if arm not in weights]
    left_out = wider_arms(values, beside, OUTSIDE)
    alike = {arm: seeds for arm, seeds in values.items() if arm not in left_out}
    if wider := wider_arms(alike, weights):
        return Contrast(seed_contrast(values, weights, counted), pooled=False, wider=wider)
    return Contrast(block_contrast(alike, weights), pooled=True, left_out=left_out)


def _check(values: Values, weights: Mapping[str, float]) -> None:
    for arm in weights:
        if not values.get(arm):
            raise UserError(f"contrast: arm {arm!r} has no values")


def slope_weights(x: Mapping[str, float]) -> dict[str, float]:
    """Return the contrast that is the least-squares slope of arms over ``x``."""
    points = np.array(list(x.values()), dtype=np.float64)
    centred = points - points.mean()
    total = float(centred @ centred)
    return {arm: float(c) / total for arm, c in zip(x, centred, strict=True)}


def by_signs(found: Estimate) -> float:
    """Return the chance that all seeds lie on one side of their median, of an even chance each."""
    return 0.5 ** (found.dof + 1)


def interval(found: Estimate) -> tuple[float, float]:
    """Return Student's 95 % confidence interval of a contrast; it needs a standard error."""
    half = float(scipy.special.stdtrit(found.dof, 0.975)) * found.stderr
    return found.value - half, found.value + half


def p_greater(found: Estimate, bound: float = 0.0) -> float:
    """Return the one-sided p-value of "the contrast is at most ``bound``"."""
    if found.stderr == 0:
        return by_signs(found) if found.value > bound else 1.0
    return float(scipy.special.stdtr(found.dof, (bound - found.value) / found.stderr))


def p_equivalent(found: Estimate, bound: float) -> float:
    """Return the p-value of "the contrast is at least ``bound`` away from 0".

    Two one-sided tests (Schuirmann 1987): the larger of the two p-values.
    """
    mirrored = found._replace(value=-found.value)
    return max(p_greater(found, -bound), p_greater(mirrored, -bound))


def power_of_difference(found: Estimate, effect: float, alpha: float = 0.05) -> float:
    """Return how likely the two-sided t-test finds a true effect of this size, on its side.

    From the noncentral t distribution with the standard error at hand; without one, whether so many
    seeds can find anything by their signs.
    """
    if found.stderr == 0:
        return float(2 * by_signs(found) < alpha)
    critical = float(scipy.special.stdtrit(found.dof, 1 - alpha / 2))
    return 1.0 - float(scipy.special.nctdtr(found.dof, abs(effect) / found.stderr, critical))


def power_of_equivalence(found: Estimate, bound: float, alpha: float = 0.05) -> float:
    """Return how likely the equivalence test passes where the true contrast is 0."""
    if found.stderr == 0:
        return float(by_signs(found) < alpha)
    critical = float(scipy.special.stdtrit(found.dof, 1 - alpha))
    room = bound / found.stderr - critical
    return max(0.0, 2 * float(scipy.special.stdtr(found.dof, room)) - 1)
