"""Two linear layers that read the same input: together they are one compiled pass each way."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .linear import is_plain, products_for
from .native_linear import NativeLinear


def linear_pair(x: Tensor, first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return ``first(x)`` and ``second(x)`` of ``x`` (..., A), an operand already."""
    if is_plain(first) and is_plain(second):
        weights = first.weight, second.weight
        kernels = products_for(x, *weights)
        if kernels is not None:
            outputs: tuple[Tensor, Tensor] = _ByKernel.apply(x, *weights, kernels)
            return outputs
    return first(x), second(x)


class _ByKernel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, kernels: NativeLinear
    ) -> tuple[Tensor, Tensor]:
        given = x.contiguous(), first.contiguous(), second.contiguous()
        ctx.save_for_backward(*given)
        ctx.kernels = kernels
        return kernels.multiply_pair(*given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[Tensor | None, ...]:
        grads = grad_first.contiguous(), grad_second.contiguous()
        return *ctx.kernels.multiply_pair_backward(*grads, *ctx.saved_tensors), None
