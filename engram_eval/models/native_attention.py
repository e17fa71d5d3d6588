"""Causal attention for training on a CPU in bfloat16, compiled: scores are never written out."""

import ctypes
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, BLOCK, FLOAT, SIZE, Functions, in_reach


class Sizes(ctypes.Structure):
    """The fields of ``struct Sizes`` in ``attention_kernels.cpp``; ``width`` is that of a head."""

    _fields_ = [(name, SIZE) for name in ("batch", "length", "kv_heads", "groups", "width")]
    batch: int
    length: int
    kv_heads: int
    groups: int
    width: int


class Attended(NamedTuple):
    """What heads return.

    Attributes:
        output: (B, T, heads * d).
        log_sums: (B, heads, T filled up), of each query's ``exp(scores)``; float32.
    """

    output: Tensor
    log_sums: Tensor


class NativeAttention(Functions):
    """The functions of ``attention_kernels.cpp``, on tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "attention": (*[ADDRESS] * 2, SIZE, *[ADDRESS] * 2, Sizes),
        "attention_backward": (*[ADDRESS] * 3, SIZE, *[ADDRESS] * 3, Sizes),
        "join_projections": (*[ADDRESS] * 4, Sizes, SIZE, FLOAT),
        "separate_projections": (*[ADDRESS] * 4, Sizes, SIZE, FLOAT),
    }

    def forward(self, projected: Tensor, turns: Tensor, sizes: Sizes) -> Attended:
        """Rotate queries and keys, then attend.

        Args:
            projected: (B, T, (heads + 2 kv_heads) * d) bfloat16: queries, keys, values.
            turns: (B or 1, T, d / 2) complex64.
            sizes: B, T, kv_heads, heads / kv_heads and d.
        """
        heads = sizes.kv_heads * sizes.groups
        rows = (sizes.length + BLOCK - 1) // BLOCK * BLOCK
        output = projected.new_empty(sizes.batch, sizes.length, heads * sizes.width)
        log_sums = projected.new_empty(sizes.batch, heads, rows, dtype=torch.float32)
        self._call("attention", projected, turns, _step(turns), output, log_sums, sizes)
        return Attended(output, log_sums)

    def backward(
        self, grad: Tensor, projected: Tensor, turns: Tensor, made: Attended, sizes: Sizes
    ) -> Tensor:
        """Return the gradient of ``projected``, given that of the output."""
        grad_projected = torch.empty_like(projected)
        given = grad, projected, turns, _step(turns), *made
        self._call("attention_backward", *given, grad_projected, sizes)
        return grad_projected

    def join(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sizes: Sizes
    ) -> Tensor:
        """Return ``causal_attention.joined_projections`` of three float32 weights (rows, D)."""
        depth = query.shape[1]
        rows = (sizes.groups + 2) * sizes.kv_heads * sizes.width
        joined = query.new_empty(rows, depth)
        given = query.contiguous(), key.contiguous(), value.contiguous(), joined
        self._call("join_projections", *given, sizes, depth, scaling)
        return joined

    def separate(self, joined: Tensor, scaling: float, sizes: Sizes) -> tuple[Tensor, ...]:
        """Return the gradients of the three weights, given that of what ``join`` returns."""
        depth, rows = joined.shape[1], sizes.kv_heads * sizes.width
        heights = sizes.groups * rows, rows, rows
        grads = tuple(joined.new_empty(height, depth) for height in heights)
        self._call("separate_projections", joined, *grads, sizes, depth, scaling)
        return grads


def _step(turns: Tensor) -> int:
    """Return how many numbers lie between the turns of two sequences: none where they share."""
    return 0 if len(turns) == 1 else 2 * turns[0].numel()


def attention_for(projected: Tensor) -> NativeAttention | None:
    """Return the functions if they exist and can work on ``projected``."""
    return (
        NativeAttention.load()
        if projected.dtype == torch.bfloat16 and in_reach(projected)
        else None
    )
