"""Linear layers for training on a CPU: weights are rounded where they are multiplied.

Under autocast torch rounds each weight to a copy, multiplies, and widens the gradient from another
copy. Compiled products read weights in single precision and leave their gradients so.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .hooks import is_unhooked
from .native_linear import NativeLinear, linear_for
from .precision import as_operand, multiplies_slowly, rounds_weights, widened


class Linear(nn.Linear):
    """``nn.Linear``, faster under autocast on a CPU; without a bias by default."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``input`` (..., in_features) by the weight; add the bias where there is one."""
        return super().forward(input) if self.bias is not None else linear(input, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T``, (..., B), of ``x`` (..., A) and ``weight`` (B, A)."""
    x = as_operand(x)
    kernels = products_for(x, weight)
    if kernels is None:
        return _by_torch(x, weight)
    output: Tensor = _ByKernel.apply(x, weight, kernels)
    return output


def _by_torch(x: Tensor, weight: Tensor) -> Tensor:
    cast = rounds_weights(x.dtype) or weight.dtype == x.dtype
    if not cast or not multiplies_slowly(x):
        # Torch says what is wrong with types that differ.
        return nn.functional.linear(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        return nn.functional.linear(widened(x), widened(weight.to(x.dtype))).to(x.dtype)


def products_for(x: Tensor, *weights: Tensor) -> NativeLinear | None:
    """Return compiled products where autocast would round ``weights`` for products with ``x``."""
    if any(weight.shape[-1] != x.shape[-1] for weight in weights):
        # Torch says what is wrong.
        return None
    return linear_for(x, *weights) if rounds_weights(x.dtype) else None


def is_plain(part: nn.Module) -> bool:
    """Whether nothing but the weight of ``part`` decides what it does."""
    return type(part) in (Linear, nn.Linear) and part.bias is None and is_unhooked(part)


class _ByKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernels: NativeLinear) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        return kernels.multiply(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = ctx.kernels.multiply(grad, weight, turned=False) if need_x else None
        grad_weight = ctx.kernels.outer_product(grad, x) if need_weight else None
        return grad_x, grad_weight, None
