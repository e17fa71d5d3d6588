"""Unbiased HSIC between the layers of two models on a minibatch (Song et al. 2012, eq. 5)."""

from typing import NamedTuple

import torch
from torch import Tensor


class Between(NamedTuple):
    """HSIC_1 of every layer with every layer: of two models, (La, Lb), and of each with itself."""

    cross: Tensor
    first: Tensor
    second: Tensor


def hsic_between(first: list[Tensor], second: list[Tensor]) -> Between:
    """Compare the layers of two models, each (n, width), by the cheaper of two equal ways."""
    if _prefers_features(first, second):
        a, b = _features(first), _features(second)
        return Between(_feature_hsic(a, b), _feature_hsic(a, a), _feature_hsic(b, b))
    one, other = (torch.stack([_centred_gram(x) for x in part]) for part in (first, second))
    pairs = (one, other), (one, one), (other, other)
    return Between(*(unbiased_hsic(*pair) for pair in pairs))


def _centred_gram(x: Tensor) -> Tensor:
    """Return ``X X'`` (n, n) with a zero diagonal; sums over it want float64.

    HSIC with linear kernels does not change under a shift of X; removing the mean keeps the
    sums small.
    """
    x = x - x.mean(dim=0)
    return (x @ x.T).double().fill_diagonal_(0.0)


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return HSIC_1 (Song et al. 2012, eq. 5) of stacked Gram matrices.

    Args:
        first: (La, n, n), zero diagonals.
        second: (Lb, n, n), zero diagonals.

    Returns:
        (La, Lb).
    """
    trace = first.flatten(1) @ second.flatten(1).T
    return _hsic(trace, first.sum(dim=-1), second.sum(dim=-1))


def _hsic(trace: Tensor, rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """Return HSIC_1 (La, Lb), given the traces of products (La, Lb) and sums of rows (La, n)."""
    n = rows_a.shape[-1]
    sums = rows_a.sum(dim=-1)[:, None] * rows_b.sum(dim=-1)[None, :]
    cross = rows_a @ rows_b.T
    total = trace + sums / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    return total / (n * (n - 3))


class _Features(NamedTuple):
    """Layers of equal width on a minibatch, without their Gram matrices.

    Attributes:
        x: centred, (L, n, D).
        diagonal: of each Gram matrix, (L, n) float64.
        rows: sums of its rows without the diagonal, (L, n) float64.
    """

    x: Tensor
    diagonal: Tensor
    rows: Tensor


def _features(layers: list[Tensor]) -> _Features:
    x = torch.stack(layers)
    x = x - x.mean(dim=1, keepdim=True)
    diagonal = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).square()
    return _Features(x, diagonal, (x @ x.sum(1)[..., None])[..., 0].double() - diagonal)


def _feature_hsic(first: _Features, second: _Features) -> Tensor:
    """Return what ``unbiased_hsic`` does: the trace of XX'YY' is the sum of squares of X'Y."""
    between = torch.zeros(len(first.x), len(second.x), dtype=torch.float64, device=first.x.device)
    width, itself = second.x.shape[-1], first is second
    beside = second.x.transpose(0, 1).flatten(1)
    for number, x in enumerate(first.x):
        start = number if itself else 0
        squares = (x.T @ beside[:, start * width :]).square_().sum(0)
        between[number, start:] = squares.view(-1, width).sum(1, dtype=torch.float64)
    if itself:
        between += between.triu(1).T
    return _hsic(between - first.diagonal @ second.diagonal.T, first.rows, second.rows)


def _prefers_features(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether products of features are cheaper than Gram matrices: many examples, narrow layers."""
    widths = {x.shape[1] for x in first}, {x.shape[1] for x in second}
    if max(map(len, widths)) > 1:
        return False
    a, b = (len(part) * part[0].shape[1] for part in (first, second))
    # Gram matrices take memory as well, which doubles their price.
    return a * b + (a * a + b * b) / 2 <= 2 * (a + b) * len(first[0])
