"""How often tests over seeds err where arms do not spread alike: simulated, for docs/statistics.md.

``python tests/spreads.py`` prints the table there. Each study has ``ARMS`` arms that do not differ,
of which the first is set against the second; in the bad cases the first spreads two or three times
as widely as all others, or the last one, which is not asked about, three times. Power is for an
effect that the pooled test finds in 80 of 100 such studies at 5 %, where all spread alike.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import scipy

from engram_eval.analysis.contrasts import OUTSIDE, WIDER

Array = npt.NDArray[np.float64]
Rule = Callable[[Array], Array]
"""(studies, arms, seeds) of values -> (studies,) of p-values of "the first two do not differ"."""

SEEDS, ARMS, STUDIES = (3, 5), (5, 10, 15), 20_000
LEVELS = (0.05, 0.005)
CASES = {
    "alike": (0, 1.0),
    "one twice": (0, 2.0),
    "one thrice": (0, 3.0),
    "another thrice": (-1, 3.0),
}
"""Which arm spreads how many times as widely as the others."""
POWERS = {"power": "alike", "power beside another": "another thrice"}
POWER = 0.8
SHRUNK_TO = 1
"""Degrees of freedom that the pooled variance counts for beside an arm's own."""


def residuals(y: Array) -> Array:
    """Return what arms and seeds leave over."""
    return y - y.mean(2, keepdims=True) - y.mean(1, keepdims=True) + y.mean((1, 2), keepdims=True)


def squares(y: Array) -> tuple[Array, int]:
    """Return the residual sum of squares of each study, and its degrees of freedom."""
    return np.square(residuals(y)).sum((1, 2)), (y.shape[1] - 1) * (y.shape[2] - 1)


def two_sided(t: Array, dof: Array | int) -> Array:
    """Return Student's p-values."""
    return 2 * scipy.special.stdtr(dof, -np.abs(t))


def difference(y: Array) -> Array:
    """Return the first arm less the second, by seed."""
    return y[:, 0] - y[:, 1]


def pooled(y: Array) -> Array:
    """One variance for all arms."""
    left, dof = squares(y)
    return two_sided(difference(y).mean(1) / np.sqrt(2 * left / dof / y.shape[2]), dof)


def own(y: Array) -> Array:
    """The paired t-test, whatever the other arms do."""
    each = difference(y)
    stderr = each.std(1, ddof=1) / np.sqrt(y.shape[2])
    return two_sided(each.mean(1) / stderr, y.shape[2] - 1)


def p_wider(y: Array, arms: list[int]) -> Array:
    """Return the p-value of "these arms together spread no more widely than the rest"."""
    (left, dof), (rest, dof_rest) = squares(y), squares(np.delete(y, arms, 1))
    ratio = (left - rest) / (dof - dof_rest) / (rest / dof_rest)
    return scipy.special.fdtrc(dof - dof_rest, dof_rest, ratio)


def own_if_both_wider(y: Array) -> Array:
    """Own spread where both arms together spread more widely than the rest, else pooled."""
    return np.where(p_wider(y, [0, 1]) < WIDER, own(y), pooled(y))


def own_if_any_wider(y: Array) -> Array:
    """Own spread where one arm spreads more widely than all others, else pooled."""
    wide = np.minimum(p_wider(y, [0]), p_wider(y, [1])) < WIDER
    return np.where(wide, own(y), pooled(y))


def others_left_out(y: Array) -> Array:
    """The same, without other arms that spread more widely than all others."""
    arms = y.shape[1]
    outside = np.stack([p_wider(y, [arm]) < OUTSIDE for arm in range(2, arms)], 1)
    found = np.empty(len(y))
    # Studies that lose the same arms are computed together.
    for lost in np.unique(outside, axis=0):
        here = (outside == lost).all(1)
        left = y[here][:, [True, True, *~lost]]
        found[here] = own_if_any_wider(left) if left.shape[1] > 2 else own(left)
    return found


def shrunk(y: Array) -> Array:
    """Each arm's own variance (Grubbs 1948) drawn towards the pooled one; Satterthwaite's freedom.

    An arm's mean square is (1 - 2/A) of its variance and 1/A^2 of the sum of all.
    """
    count, seeds = y.shape[1:]
    left, dof = squares(y)
    mean = np.square(residuals(y)).sum(2) / (seeds - 1)
    each = count / (count - 2) * (mean - mean.sum(1, keepdims=True) / (count * (count - 1)))
    known = seeds - 1 + SHRUNK_TO
    each = ((seeds - 1) * np.maximum(each, 0) + SHRUNK_TO * (left / dof)[:, None]) / known
    parts = each[:, :2] / seeds
    freedom = np.square(parts.sum(1)) / (np.square(parts) / known).sum(1)
    return two_sided(difference(y).mean(1) / np.sqrt(parts.sum(1)), np.minimum(freedom, dof))


RULES: Mapping[str, Rule] = {
    "pooled": pooled,
    "own where both arms spread more widely": own_if_both_wider,
    "own where either arm does": own_if_any_wider,
    "**the same, without others that do**": others_left_out,
    "arms' variances shrunk, Satterthwaite": shrunk,
    "own always": own,
}


def draw(rng: np.random.Generator, arms: int, seeds: int, spread: float, which: int = 0) -> Array:
    """Draw studies whose arms do not differ; seeds share an effect."""
    errors = rng.normal(size=(STUDIES, arms, seeds))
    errors[:, which] *= spread
    return errors + rng.normal(size=(STUDIES, 1, seeds))


def effect_to_find(arms: int, seeds: int) -> float:
    """Return the difference that the pooled test finds with ``POWER``, in standard deviations."""
    dof = (arms - 1) * (seeds - 1)
    critical = scipy.special.stdtrit(dof, 1 - LEVELS[0] / 2)
    sizes = np.linspace(0.1, 10, 10_000)
    found = 1 - scipy.special.nctdtr(dof, sizes / np.sqrt(2 / seeds), critical)
    return float(sizes[np.searchsorted(found, POWER)])


def simulate(rng: np.random.Generator, arms: int, seeds: int) -> dict[str, list[list[float]]]:
    """Return of each rule how often it finds a difference: cases by levels, powers last."""
    cases = {name: draw(rng, arms, seeds, spread, which) for name, (which, spread) in CASES.items()}
    for name, of in POWERS.items():
        which, spread = CASES[of]
        cases[name] = draw(rng, arms, seeds, spread, which)
        cases[name][:, 0] += effect_to_find(arms, seeds)
    return {
        name: [[float((rule(y) < level).mean()) for level in LEVELS] for y in cases.values()]
        for name, rule in RULES.items()
    }


def table() -> str:
    """Return the sizes in per cent as Markdown, from the least to the most over numbers of arms."""
    rng = np.random.default_rng(0)
    kinds = (*CASES, *POWERS)
    heads = ["seeds", "spread", *(f"{kind}, {100 * p:g} %" for p in LEVELS for kind in kinds)]
    lines = [heads, ["---"] * len(heads)]
    for seeds in SEEDS:
        found = [simulate(rng, arms, seeds) for arms in ARMS]
        for name in RULES:
            shares = 100 * np.array([each[name] for each in found])
            low, high = shares.min(0), shares.max(0)
            cells = [_range(low[c, k], high[c, k]) for k in range(2) for c in range(len(kinds))]
            lines.append([str(seeds), name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _range(low: float, high: float) -> str:
    least, most = (f"{x:.0f}" if x >= 9.95 else f"{x:.1f}" for x in (low, high))
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
