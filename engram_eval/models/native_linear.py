"""Products of linear layers on a CPU, with weights in single precision: compiled."""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, FLAG, SIZE, in_reach
from .native_experts import Products


class Pair(ctypes.Structure):
    """The fields of ``struct Pair`` in ``linear_kernels.cpp``."""

    _fields_ = [(name, SIZE) for name in ("rows", "depth", "first", "second")]


class NativeLinear(Products):
    """The functions of ``linear_kernels.cpp``, on tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "multiply_pair": (*[ADDRESS] * 5, Pair),
        "multiply_pair_backward": (*[ADDRESS] * 8, Pair),
        "multiply_rows": (*[ADDRESS] * 2, FLAG, ADDRESS, *[SIZE] * 3),
        "outer_product": (*[ADDRESS] * 3, *[SIZE] * 3),
    }

    def multiply(self, x: Tensor, weight: Tensor, turned: bool = True) -> Tensor:
        """Return ``x @ weight.T``, or ``x @ weight`` if not turned: (..., B).

        Args:
            x: (..., A) bfloat16.
            weight: (B, A) float32, or (A, B) if not turned.
            turned: see above.
        """
        x, weight = x.contiguous(), weight.contiguous()
        depth, width = x.shape[-1], weight.shape[0 if turned else 1]
        output = x.new_empty(*x.shape[:-1], width)
        sizes = x.numel() // depth, depth, width
        self._call("multiply_rows", x, weight, turned, output, *sizes)
        return output

    def outer_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left.T @ right``, (A, B) float32, of (..., A) and (..., B) bfloat16."""
        left, right = left.contiguous(), right.contiguous()
        widths = left.shape[-1], right.shape[-1]
        output = left.new_empty(widths, dtype=torch.float32)
        self._call("outer_product", left, right, output, left.numel() // widths[0], *widths)
        return output

    def multiply_pair(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x @ first.T`` and ``x @ second.T``, (..., B) and (..., C).

        Args:
            x: (..., A) bfloat16, contiguous as all of them.
            first: (B, A) float32.
            second: (C, A) float32.
        """
        widths = len(first), len(second)
        outputs = x.new_empty(*x.shape[:-1], widths[0]), x.new_empty(*x.shape[:-1], widths[1])
        sizes = Pair(x.numel() // x.shape[-1], x.shape[-1], *widths)
        self._call("multiply_pair", x, first, second, *outputs, sizes)
        return outputs

    def multiply_pair_backward(
        self, grad_first: Tensor, grad_second: Tensor, x: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of ``x`` and of both weights, given those of both outputs."""
        given = x, first, second
        grads = torch.empty_like(x), torch.empty_like(first), torch.empty_like(second)
        sizes = Pair(x.numel() // x.shape[-1], x.shape[-1], len(first), len(second))
        self._call("multiply_pair_backward", grad_first, grad_second, *given, *grads, sizes)
        return grads


def linear_for(x: Tensor, *weights: Tensor) -> NativeLinear | None:
    """Return the functions if they exist, are fast here, and can work on these shapes and types."""
    if x.dtype != torch.bfloat16 or any(each.dtype != torch.float32 for each in weights):
        return None
    sides = [x.numel() // x.shape[-1], *(side for each in weights for side in each.shape)]
    if any(side % BLOCK for side in sides) or not sides[0] or not in_reach(x, *weights):
        return None
    return NativeLinear.load()


def multiplies_here() -> bool:
    """Tell whether this machine has the functions, and whether they are fast here."""
    return NativeLinear.load() is not None
