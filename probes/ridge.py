"""Ridge classifiers from streaming sums: the fit of a linear probe without keeping activations."""

from typing import NamedTuple

import torch
from torch import Tensor


class RidgeProbe(NamedTuple):
    """A fitted linear map from features (n, D) to scores (n, K).

    Attributes:
        weight: (D, K).
        bias: (K,).
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return one score per output, (n, K)."""
        return features.double() @ self.weight + self.bias


class RidgeFitter:
    """Sums of features and targets; ``fit`` solves once for all outputs.

    The result equals scikit-learn's ``StandardScaler`` followed by ``Ridge(alpha)``; with targets
    of 1 for the class and -1 for the rest, the largest score is ``RidgeClassifier``'s choice.

    Args:
        width: features, D.
        outputs: targets, K.
    """

    def __init__(self, width: int, outputs: int) -> None:
        self.n = 0
        self._gram = torch.zeros(width, width, dtype=torch.float64)
        self._cross = torch.zeros(width, outputs, dtype=torch.float64)
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._target_sum = torch.zeros(outputs, dtype=torch.float64)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add features (n, D) with their targets (n, K)."""
        x, y = features.double(), targets.double()
        self.n += len(x)
        self._gram += x.T @ x
        self._cross += x.T @ y
        self._sum += x.sum(0)
        self._target_sum += y.sum(0)

    def fit(self, alpha: float = 1.0) -> RidgeProbe:
        """Solve with penalty ``alpha`` on standardised features; constant ones get no weight."""
        mean, target_mean = self._sum / self.n, self._target_sum / self.n
        covariance = self._gram - self.n * torch.outer(mean, mean)
        variance = covariance.diagonal() / self.n
        varies = variance > 1e-12 * (self._gram.diagonal() / self.n).clamp(min=1e-30)
        scale = torch.where(varies, variance.clamp(min=0).sqrt(), torch.inf)
        left = covariance / torch.outer(scale, scale)
        left.diagonal().add_(alpha)
        right = (self._cross - self.n * torch.outer(mean, target_mean)) / scale[:, None]
        weight = torch.linalg.solve(left, right) / scale[:, None]
        return RidgeProbe(weight, target_mean - mean @ weight)


def one_hot_targets(classes: Tensor, count: int) -> Tensor:
    """Return 1 for the class and -1 for the rest, (n, count)."""
    return torch.nn.functional.one_hot(classes, count).double() * 2 - 1
