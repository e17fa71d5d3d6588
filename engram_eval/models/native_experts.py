"""A layer of SwiGLU experts on a CPU, in bfloat16: compiled."""

import ctypes
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, ID, SIZE, Functions, in_reach
from .precision import has_instructions


class Sizes(ctypes.Structure):
    """The fields of ``struct Experts`` in ``expert_kernels.cpp``."""

    _fields_ = [(name, SIZE) for name in ("experts", "tokens", "chosen", "rows", "width", "inner")]
    rows: int
    inner: int


class Sorted(NamedTuple):
    """Rows sorted by expert.

    Attributes:
        weights: (N, K) float32, factors of the outputs.
        place: (N, K) int64, the row of each choice.
        owners: (S,) int64, whose each row is; 0 where it is nobody's.
        sizes: (E,) int64, rows of each expert's slice: multiples of ``BLOCK``, S together.
    """

    weights: Tensor
    place: Tensor
    owners: Tensor
    sizes: Tensor


class Products(Functions):
    """Functions that mainly multiply matrices."""

    @classmethod
    def pay(cls, library: ctypes.CDLL) -> bool:
        """Tell whether compiled products are faster than torch's on this machine.

        They are on a matrix unit, and where no instruction multiplies bfloat16: there torch has
        only loops, and these widen whole blocks for products in single precision.
        """
        return NativeExperts(library).has_matrix_unit() or not has_instructions()


class NativeExperts(Products):
    """The functions of ``expert_kernels.cpp``, on contiguous tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "matrix_unit": (),
        "experts_forward": (*[ADDRESS] * 10, Sizes),
        "experts_backward": (*[ADDRESS] * 14, Sizes),
    }
    RETURNS = ID

    def has_matrix_unit(self) -> bool:
        """Tell whether products of small blocks run on a matrix unit, and not by vectors."""
        return bool(self._call("matrix_unit"))

    def forward(
        self, x: Tensor, rows: Sorted, gate_up: Tensor, down: Tensor, beside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the experts' outputs, (N, D), and what ``backward`` takes.

        Args:
            x: (N, D) bfloat16; widths are multiples of ``BLOCK``.
            rows: of the tokens.
            gate_up: (E, D, 2F) float32.
            down: (E, F, D) float32.
            beside: (N, D) bfloat16, added to the outputs.
        """
        sizes = _sizes(x, rows, down)
        hidden, output = x.new_empty(sizes.rows, 2 * sizes.inner), torch.empty_like(x)
        self._call("experts_forward", x, *rows, gate_up, down, beside, hidden, output, sizes)
        return output, hidden

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        rows: Sorted,
        gate_up: Tensor,
        down: Tensor,
        hidden: Tensor,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of ``x``, of the factors, and of both weights.

        ``beside``, (N, D) bfloat16, is added to the first.
        """
        outputs = (
            *(torch.empty_like(x), torch.empty_like(rows.weights)),
            *(torch.empty_like(gate_up), torch.empty_like(down)),
        )
        given = grad, x, *rows, gate_up, down, hidden, beside
        self._call("experts_backward", *given, *outputs, _sizes(x, rows, down))
        return outputs


def _sizes(x: Tensor, rows: Sorted, down: Tensor) -> Sizes:
    experts, inner, width = down.shape
    return Sizes(experts, len(x), rows.place.shape[1], len(rows.owners), width, inner)


def experts_for(x: Tensor, *weights: Tensor) -> NativeExperts | None:
    """Return the functions if they exist, are fast here, and can work on these shapes and types."""
    if x.dtype != torch.bfloat16 or any(each.dtype != torch.float32 for each in weights):
        return None
    if any(side % BLOCK for each in weights for side in each.shape[1:]):
        return None
    return NativeExperts.load() if in_reach(x, *weights) else None
