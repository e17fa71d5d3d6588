"""Multinomial logistic regression for many sets of features of the same examples at once.

Minimises the mean cross-entropy plus ``penalty / 2`` times the squared weights on standardised
features; the intercept is free. That is scikit-learn's ``LogisticRegression(C=1 / (n penalty))``
behind its ``StandardScaler``, to which the tests compare it (for two classes scikit-learn fits one
score instead of two, so that its C must be doubled). All layers and sites of a model are solved
together by L-BFGS (Nocedal & Wright 2006, algorithm 7.4) in batched products, each with its own
step lengths; sets that have arrived leave the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTY = 1e-2
STEPS = 50
TOLERANCE = 2e-3
HISTORY = 8
SHRINKS = 8
# The batch is made smaller when this share of it has arrived.
LEAVE = 0.2


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
        return log_probs([self], features)[0]


def log_probs(probes: Sequence[LogisticProbe], features: Tensor) -> list[Tensor]:
    """Return ``LogisticProbe.log_probs`` of probes that were fitted to the same features."""
    x = _prepared(features - probes[0].centre, probes[0].scale)
    return [torch.bmm(x, probe.weight).log_softmax(-1) for probe in probes]


def fit_logistic(
    features: Tensor,
    classes: Tensor,
    n_classes: int,
    penalty: float = PENALTY,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> LogisticProbe:
    """Fit S probes to the same classes, (n,); the rest as in ``fit_each``."""
    return fit_each(features, classes[None], n_classes, penalty, steps, tolerance)[0]


def fit_each(
    features: Tensor,
    classes: Tensor,
    n_classes: int,
    penalty: float = PENALTY,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> list[LogisticProbe]:
    """Fit S probes to each of G classifications of the same examples.

    Args:
        features: (S, n, D).
        classes: (G, n), from 0.
        n_classes: K.
        penalty: on half the squared weights, relative to the mean loss.
        steps: most steps of L-BFGS.
        tolerance: stop when no component of a gradient is larger.
    """
    many, (sets, _, width) = len(classes), features.shape
    centre = features.mean(1, keepdim=True)
    deviation = features.std(1, correction=0, keepdim=True)
    highest = torch.linalg.vector_norm(features, ord=torch.inf, dim=1, keepdim=True)
    # What does not vary has nothing to tell and must not be blown up.
    scale = torch.where(deviation > 1e-6 * highest, deviation, torch.inf)
    x = _prepared(features - centre, scale)
    number = torch.arange(many).repeat_interleave(sets)
    problem = _Problem(x.repeat(many, 1, 1), classes[number], number, penalty)
    weight = features.new_zeros(many * sets, n_classes, width + 1)
    found = _minimise(problem, weight, steps, tolerance).transpose(1, 2)
    return [LogisticProbe(centre, scale, part) for part in found.split(sets)]


def _prepared(centred: Tensor, scale: Tensor) -> Tensor:
    """Divide by the scale and append the 1 of the intercept, (S, n, D + 1)."""
    return torch.nn.functional.pad(centred.div_(scale), (0, 1), value=1.0)


class _Problem(NamedTuple):
    """Many problems: prepared features (S, n, D + 1), classes (S, n), and the penalty.

    ``number`` (S,) says which classification each is about.
    """

    x: Tensor
    classes: Tensor
    number: Tensor
    penalty: float

    def at(self, sets: Tensor) -> "_Problem":
        """Return some of the problems."""
        return _Problem(self.x[sets], self.classes[sets], self.number[sets], self.penalty)

    def evaluate(self, weight: Tensor) -> "_Point":
        """Return losses and gradients at weights (S, K, D + 1).

        Examples come last: torch takes the softmax over few classes much faster that way.
        """
        n = self.classes.shape[1]
        chosen = self.classes[:, None]
        log_p = torch.bmm(weight, self.x.transpose(1, 2)).log_softmax(1)
        slopes = weight.clone()
        slopes[:, :, -1] = 0
        loss = -log_p.gather(1, chosen).sum((1, 2)) / n
        loss = loss + self.penalty / 2 * slopes.square().sum((1, 2))
        miss = log_p.exp_()
        miss.scatter_add_(1, chosen, miss.new_full((1, 1, 1), -1.0).expand_as(chosen))
        return _Point(weight, loss, (torch.bmm(miss, self.x) / n).add_(slopes, alpha=self.penalty))


class _Point(NamedTuple):
    """Where each of S problems is: weights (S, K, D + 1), losses (S,), gradients as the weights."""

    weight: Tensor
    loss: Tensor
    gradient: Tensor

    def at(self, sets: Tensor) -> "_Point":
        """Return some of the problems."""
        return _Point(*(part[sets] for part in self))

    def put(self, sets: Tensor, other: "_Point") -> None:
        """Replace some of the problems."""
        for part, new in zip(self, other, strict=True):
            part[sets] = new


class _Move(NamedTuple):
    """A step, the change of the gradient along it, (S, P), one over their product (or 0), (S, 1).

    P is K (D + 1).
    """

    step: Tensor
    change: Tensor
    rho: Tensor

    def at(self, sets: Tensor) -> "_Move":
        """Return some of the problems."""
        return _Move(*(part[sets] for part in self))


def _minimise(problem: _Problem, weight: Tensor, steps: int, tolerance: float) -> Tensor:
    """Return the weights (S, K, D + 1) where each problem's steps end."""
    here = problem.evaluate(weight)
    sets, result, history = torch.arange(len(weight)), weight.clone(), list[_Move]()
    for _ in range(steps):
        going = here.gradient.abs().amax((1, 2)) > tolerance
        stay = going if going.all() else _stay(going, problem.number)
        if not stay.all():
            result[sets] = here.weight
            sets, here, problem = sets[stay], here.at(stay), problem.at(stay)
            history = [move.at(stay) for move in history]
        if not len(sets):
            return result
        there = _search(problem, here, _direction(here.gradient, history))
        history = [*history[1 - HISTORY :], _move(here, there)]
        here = there
    result[sets] = here.weight
    return result


def _stay(going: Tensor, number: Tensor) -> Tensor:
    """Return which problems stay in the batch, (S,).

    Those of one classification leave together: what has arrived of them when it is many, or all.
    """
    arrived, left = torch.bincount(number, ~going), torch.bincount(number)
    return going | ~((arrived > LEAVE * left) | (arrived == left))[number]


def _move(here: _Point, there: _Point) -> _Move:
    step = (there.weight - here.weight).flatten(1)
    change = (there.gradient - here.gradient).flatten(1)
    curvature = _dot(step, change)
    # A problem that did not move has no curvature to tell of.
    rho = torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0.0)
    return _Move(step, change, rho)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each problem's (S, P), (S, 1)."""
    return torch.linalg.vecdot(a, b)[:, None]


def _direction(gradient: Tensor, history: Sequence[_Move]) -> Tensor:
    """Return minus the approximate inverse Hessian times the gradient (two-loop recursion)."""
    q, factors = gradient.flatten(1).clone(), []
    for step, change, rho in reversed(history):
        alpha = rho * _dot(step, q)
        q.addcmul_(alpha, change, value=-1)
        factors.append(alpha)
    if history:
        _, change, rho = history[-1]
        ratio = 1 / (rho * _dot(change, change)).clamp_min(1e-20)
        q.mul_(torch.where(rho > 0, ratio, 1.0))
    for (step, change, rho), alpha in zip(history, reversed(factors), strict=True):
        q.addcmul_(alpha - rho * _dot(change, q), step)
    return q.neg_().view_as(gradient)


def _search(problem: _Problem, here: _Point, step: Tensor) -> _Point:
    """Go along each problem's step, shortened until its loss falls enough (Armijo); else stay."""
    slope = _dot(here.gradient.flatten(1), step.flatten(1))[:, 0]
    there = problem.evaluate(here.weight + step)
    failed = _failed(here, there, slope)
    length = 1.0
    for _ in range(SHRINKS):
        if not failed.any():
            return there
        length, tried = length / 4, failed.nonzero()[:, 0]
        nearer = problem.at(tried).evaluate(here.weight[tried] + length * step[tried])
        there.put(tried, nearer)
        failed[tried] = _failed(here.at(tried), nearer, length * slope[tried])
    there.put(failed, here.at(failed))
    return there


def _failed(here: _Point, there: _Point, fall: Tensor) -> Tensor:
    """Tell which losses have not fallen by a little of what the slope promised, (S,)."""
    return ~(there.loss <= here.loss + 1e-4 * fall)
