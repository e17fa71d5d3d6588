"""Multinomial logistic regression for many sets of features of the same examples at once.

Minimises the mean cross-entropy plus ``penalty / 2`` times the squared weights on standardised
features; the intercept is free. That is scikit-learn's ``LogisticRegression(C=1 / (n penalty))``
behind its ``StandardScaler``, to which the tests compare it (for two classes scikit-learn fits one
score instead of two, so that its C must be doubled). All layers and sites of a model are solved
together by L-BFGS (Nocedal & Wright 2006, algorithm 7.4) in batched products, each with its own
step lengths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PENALTY = 1e-2
STEPS = 50
TOLERANCE = 2e-3
HISTORY = 8
SHRINKS = 8


class LogisticProbe(NamedTuple):
    """Fitted probes of S sets of features.

    Attributes:
        centre, scale: of the features, (S, 1, D).
        weight: (S, D + 1, K); the last row is the intercept.
    """

    centre: Tensor
    scale: Tensor
    weight: Tensor

    def log_probs(self, features: Tensor) -> Tensor:
        """Return natural log probabilities of the classes, (S, n, K), for features (S, n, D)."""
        return _scores(_prepared(features, self.centre, self.scale), self.weight).log_softmax(-1)


def fit_logistic(
    features: Tensor,
    classes: Tensor,
    n_classes: int,
    penalty: float = PENALTY,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> LogisticProbe:
    """Fit S probes to the same classes.

    Args:
        features: (S, n, D).
        classes: (n,), from 0.
        n_classes: K.
        penalty: on half the squared weights, relative to the mean loss.
        steps: most steps of L-BFGS.
        tolerance: stop when no component of a gradient is larger.
    """
    centre = features.mean(1, keepdim=True)
    deviation = features.std(1, correction=0, keepdim=True)
    # What does not vary has nothing to tell and must not be blown up.
    scale = torch.where(
        deviation > 1e-6 * features.abs().amax(1, keepdim=True), deviation, torch.inf
    )
    x = _prepared(features, centre, scale)
    goal = torch.nn.functional.one_hot(classes, n_classes).to(x.dtype)
    problem = _Problem(x, goal, penalty)
    weight = x.new_zeros(len(x), x.shape[2], n_classes)
    return LogisticProbe(centre, scale, _minimise(problem, weight, steps, tolerance))


def _prepared(features: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Standardise and append the 1 of the intercept, (S, n, D + 1)."""
    return torch.nn.functional.pad((features - centre) / scale, (0, 1), value=1.0)


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x, weight)


class _Problem(NamedTuple):
    """Prepared features (S, n, D + 1), one-hot classes (n, K) and the penalty."""

    x: Tensor
    goal: Tensor
    penalty: float

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (S,) and gradients (S, D + 1, K)."""
        log_p = _scores(self.x, weight).log_softmax(-1)
        slopes = weight.clone()
        slopes[:, -1] = 0
        loss = -(log_p * self.goal).sum((1, 2)) / len(self.goal)
        loss = loss + self.penalty / 2 * slopes.square().sum((1, 2))
        miss = (log_p.exp_() - self.goal) / len(self.goal)
        return loss, torch.bmm(self.x.transpose(1, 2), miss) + self.penalty * slopes


def _minimise(problem: _Problem, weight: Tensor, steps: int, tolerance: float) -> Tensor:
    loss, gradient = problem.evaluate(weight)
    history: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        if float(gradient.abs().max()) <= tolerance:
            break
        step = _direction(gradient, history)
        weight, loss, new, moved = _search(problem, weight, loss, gradient, step)
        history = [*history[1 - HISTORY :], (moved, new - gradient)]
        gradient = new
    return weight


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each problem, (S, 1, 1)."""
    return (a * b).sum((1, 2), keepdim=True)


def _direction(gradient: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return minus the approximate inverse Hessian times the gradient (two-loop recursion)."""
    q, factors = gradient, []
    for s, y in reversed(history):
        # A problem that did not move has no curvature to tell of.
        rho = torch.where(_dot(s, y) > 1e-12, 1 / _dot(s, y).clamp_min(1e-12), 0.0)
        alpha = rho * _dot(s, q)
        q = q - alpha * y
        factors.append((rho, alpha))
    if history:
        s, y = history[-1]
        ratio = _dot(s, y) / _dot(y, y).clamp_min(1e-20)
        q = q * torch.where(ratio > 0, ratio, 1.0)
    for (s, y), (rho, alpha) in zip(history, reversed(factors), strict=True):
        q = q + s * (alpha - rho * _dot(y, q))
    return -q


def _search(
    problem: _Problem, weight: Tensor, loss: Tensor, gradient: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shorten each problem's step until its loss falls enough (Armijo); else it stays.

    Returns:
        weights, losses, gradients and what was moved.
    """
    slope = _dot(gradient, step)[:, 0, 0]
    length = torch.ones_like(loss)
    for _ in range(SHRINKS):
        moved = step * length[:, None, None]
        new_loss, new_gradient = problem.evaluate(weight + moved)
        fine = new_loss <= loss + 1e-4 * length * slope
        if bool(fine.all()):
            break
        length = torch.where(fine, length, length / 4)
    keep = fine[:, None, None]
    moved = torch.where(keep, moved, 0.0)
    return (
        weight + moved,
        torch.where(fine, new_loss, loss),
        torch.where(keep, new_gradient, gradient),
        moved,
    )
