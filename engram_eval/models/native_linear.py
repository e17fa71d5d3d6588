"""Products of linear layers on a CPU's matrix unit, with weights in single precision: compiled."""

import ctypes
import functools

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, FLAG, SIZE, Functions, in_reach, library
from .native_experts import has_matrix_unit

ARGUMENTS = {
    **{
        f"multiply_rows_{kind}": (*[ADDRESS] * 2, FLAG, ADDRESS, *[SIZE] * 3)
        for kind in ("bf16", "f32")
    },
    "add_rows_times": (*[ADDRESS] * 2, FLAG, *[ADDRESS] * 2, *[SIZE] * 3),
    **{f"outer_product_{kind}": (*[ADDRESS] * 3, *[SIZE] * 3) for kind in ("bf16", "f32")},
}
"""Of the functions of ``linear_kernels.cpp``."""
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class NativeLinear:
    """The functions of ``linear_kernels.cpp``, on tensors of a CPU."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self._call = Functions(found, ARGUMENTS)

    def multiply(
        self, x: Tensor, weight: Tensor, turned: bool = True, added: Tensor | None = None
    ) -> Tensor:
        """Return ``x @ weight.T``, or ``x @ weight`` if not turned: (..., B).

        Args:
            x: (..., A); single precision is rounded.
            weight: (B, A) float32, or (A, B) if not turned.
            turned: see above.
            added: (..., B) float32; the result is bfloat16 without it, float32 with it.
        """
        x, weight = x.contiguous(), weight.contiguous()
        depth = x.shape[-1]
        width = weight.shape[0 if turned else 1]
        sizes = x.numel() // depth, depth, width
        shape = *x.shape[:-1], width
        if added is None:
            output = x.new_empty(shape, dtype=torch.bfloat16)
            self._call(f"multiply_rows_{SUFFIXES[x.dtype]}", x, weight, turned, output, *sizes)
        else:
            output = x.new_empty(shape, dtype=torch.float32)
            self._call("add_rows_times", x, weight, turned, added.contiguous(), output, *sizes)
        return output

    def outer_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left.T @ right``, (A, B) float32, of (..., A) and (..., B) bfloat16."""
        left, right = left.contiguous(), right.contiguous()
        widths = left.shape[-1], right.shape[-1]
        output = left.new_empty(widths, dtype=torch.float32)
        rows = left.numel() // widths[0]
        self._call(f"outer_product_{SUFFIXES[left.dtype]}", left, right, output, rows, *widths)
        return output


def linear_for(x: Tensor, *weights: Tensor) -> NativeLinear | None:
    """Return the functions if they exist, are fast here, and can work on these shapes and types."""
    if x.dtype != torch.bfloat16 or any(each.dtype != torch.float32 for each in weights):
        return None
    sides = [x.numel() // x.shape[-1], *(side for each in weights for side in each.shape)]
    if any(side % BLOCK for side in sides) or not sides[0] or not in_reach(x, *weights):
        return None
    return _linear()


@functools.cache
def _linear() -> NativeLinear | None:
    found = library()
    return NativeLinear(found) if found is not None and has_matrix_unit(found) else None
