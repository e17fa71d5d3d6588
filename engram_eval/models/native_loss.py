"""Cross-entropy over a vocabulary on a CPU, with both gradients: compiled."""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, SIZE, in_reach
from .native_experts import Products


class Sizes(ctypes.Structure):
    """The fields of ``struct Loss`` in ``loss_kernels.cpp``."""

    _fields_ = [(name, SIZE) for name in ("rows", "width", "words")]


class NativeLoss(Products):
    """The function of ``loss_kernels.cpp``, on tensors of a CPU."""

    ARGUMENTS: ClassVar = {"linear_cross_entropy": (*[ADDRESS] * 6, Sizes, SIZE)}

    def __call__(
        self,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        grad_rows: Tensor | None,
        grad_weight: Tensor | None,
    ) -> Tensor:
        """Return the losses (N,) in nats, and fill the gradients of their sum.

        Args:
            rows: (N, D) bfloat16.
            weight: (V, D) float32.
            targets: (N,) int64.
            chunk: rows whose logits exist at once, a multiple of ``BLOCK``.
            grad_rows: (N, D) bfloat16, if wanted.
            grad_weight: (V, D) float32, if wanted.

        Raises:
            IndexError: there is no such target.
        """
        if int(targets.max()) >= len(weight):
            raise IndexError(f"target {int(targets.max())} of {len(weight)} logits")
        rows, weight, targets = rows.contiguous(), weight.contiguous(), targets.contiguous()
        losses = rows.new_empty(len(rows), dtype=torch.float32)
        sizes = Sizes(*rows.shape, len(weight))
        given = rows, weight, targets, losses, grad_rows, grad_weight
        self._call("linear_cross_entropy", *given, sizes, chunk)
        return losses


def loss_for(rows: Tensor, weight: Tensor, targets: Tensor) -> NativeLoss | None:
    """Return the function if it exists, is fast here, and can work on these shapes and types."""
    types = rows.dtype, weight.dtype, targets.dtype
    if types != (torch.bfloat16, torch.float32, torch.int64):
        return None
    sides = *rows.shape, *weight.shape
    if any(side % BLOCK for side in sides) or not len(rows) or not in_reach(rows, weight, targets):
        return None
    return NativeLoss.load()
