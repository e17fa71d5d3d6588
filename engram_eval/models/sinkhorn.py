"""Projection onto doubly stochastic matrices (Sinkhorn-Knopp), many small ones at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, COLUMNS = 1, 0


def doubly_stochastic(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """Make (..., M, M) ``logits`` matrices whose rows and columns sum to one.

    A softmax over each row, to which ``eps`` is added, begins; columns are normalised, then rows
    and columns in turn, ``eps`` being added to every sum.
    """
    size = logits.shape[-1]
    # The matrices lie along the last axis, so that sums over four numbers are sums of long vectors.
    start = (logits.softmax(-1) + eps).reshape(-1, size, size).permute(1, 2, 0).contiguous()
    ended: Tensor = _Normalisations.apply(start, iterations, eps)
    return ended.permute(2, 0, 1).reshape(logits.shape)


class _Normalisations(torch.autograd.Function):
    """Columns, then rows and columns in turn, of matrices (M, M, N), with gradients in closed form.

    ``y = x / (sum(x) + eps)`` has the gradient ``(g - sum(g y)) / (sum(x) + eps)``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, iterations: int, eps: float) -> Tensor:
        kept = []
        for axis in _axes(iterations):
            total = x.sum(axis, keepdim=True) + eps
            x = x / total
            kept += [x, total]
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept = ctx.saved_tensors
        axes = _axes(len(kept) // 4 + 1)
        for axis, x, total in zip(reversed(axes), kept[-2::-2], kept[::-2], strict=True):
            grad = (grad - (grad * x).sum(axis, keepdim=True)) / total
        return grad, None, None


def _axes(iterations: int) -> list[int]:
    return [COLUMNS] + [ROWS, COLUMNS] * (iterations - 1)
