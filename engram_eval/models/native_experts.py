"""Products of all experts with their slices on a CPU's matrix unit, in bfloat16: compiled."""

import ctypes
import functools

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, FLAG, ID, SIZE, Functions, in_reach, library

ARGUMENTS = {
    "matrix_unit": (),
    "multiply_slices": (*[ADDRESS] * 2, *[SIZE] * 3, ADDRESS, FLAG, ADDRESS),
    "outer_products": (*[ADDRESS] * 3, *[SIZE] * 3, ADDRESS),
}
"""Of the functions of ``expert_kernels.cpp``."""


class NativeExperts:
    """The functions of ``expert_kernels.cpp``, on tensors of a CPU."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self._call = Functions(found, ARGUMENTS, returns=ID)

    def has_matrix_unit(self) -> bool:
        """Tell whether products of small blocks run on a matrix unit; by vectors they are slow."""
        return bool(self._call("matrix_unit"))

    def multiply(self, rows: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
        """Multiply each slice of ``rows`` (S, A) by its matrix of ``weights`` (E, A, B): (S, B).

        Args:
            rows: (S, A) bfloat16; A and B are multiples of ``BLOCK``.
            sizes: (E,) int64, rows of each slice: multiples of ``BLOCK``, S together.
            weights: (E, A, B), row by row or turned over.
        """
        experts, depth, width = weights.shape
        turned = not weights.is_contiguous()
        rows, weights = rows.contiguous(), (weights.mT if turned else weights).contiguous()
        output = rows.new_empty(len(rows), width)
        given = rows, sizes, experts, depth, width
        self._call("multiply_slices", *given, weights, turned, output)
        return output

    def outer_products(self, left: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
        """Return ``left.T @ right`` of each slice: (S, A), (S, B) -> (E, A, B)."""
        left, right = left.contiguous(), right.contiguous()
        widths = left.shape[1], right.shape[1]
        output = left.new_empty(len(sizes), *widths)
        self._call("outer_products", left, right, sizes, len(sizes), *widths, output)
        return output


def experts_for(rows: Tensor, *weights: Tensor) -> NativeExperts | None:
    """Return the functions if they exist, are fast here, and can work on these shapes and types."""
    tensors = rows, *weights
    if any(each.dtype != torch.bfloat16 for each in tensors) or not in_reach(*tensors):
        return None
    if any(side % BLOCK for each in weights for side in each.shape[1:]):
        return None
    return _experts()


@functools.cache
def _experts() -> NativeExperts | None:
    found = library()
    experts = None if found is None else NativeExperts(found)
    return experts if experts is not None and experts.has_matrix_unit() else None
