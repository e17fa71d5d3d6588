"""A SwiGLU layer on a CPU, with weights in single precision: compiled."""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from .native import ADDRESS, SIZE, Functions
from .native_linear import linear_for


class Sizes(ctypes.Structure):
    """The fields of ``struct Layer`` in ``swiglu_kernels.cpp``."""

    _fields_ = [(name, SIZE) for name in ("rows", "width", "inner")]


class NativeSwiGLU(Functions):
    """The functions of ``swiglu_kernels.cpp``, on contiguous tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "swiglu_layer": (*[ADDRESS] * 6, Sizes),
        "swiglu_layer_backward": (*[ADDRESS] * 9, Sizes),
    }

    def forward(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(silu(x @ gate.T) * (x @ up.T)) @ down.T``, and what ``backward`` takes.

        Args:
            x: (N, D) bfloat16; N, D and F are multiples of ``BLOCK``.
            gate: (F, D) float32.
            up: (F, D) float32.
            down: (D, F) float32.
        """
        output, hidden = torch.empty_like(x), x.new_empty(len(x), 2 * len(gate))
        sizes = Sizes(*x.shape, len(gate))
        self._call("swiglu_layer", x, gate, up, down, hidden, output, sizes)
        return output, hidden

    def backward(
        self, grad: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of ``x`` and of the three weights."""
        grad_x, grad_down = torch.empty_like(x), torch.empty_like(down)
        first = gate.new_empty(2, *gate.shape)
        given = grad, x, gate, up, down, hidden, grad_x, first, grad_down
        self._call("swiglu_layer_backward", *given, Sizes(*x.shape, len(gate)))
        return grad_x, first[0], first[1], grad_down


def swiglu_for(x: Tensor, *weights: Tensor) -> NativeSwiGLU | None:
    """Return the functions if they exist, are fast here, and can work on these shapes and types."""
    if weights[0].shape[-1] != x.shape[-1]:
        return None
    return NativeSwiGLU.load() if linear_for(x, *weights) is not None else None
