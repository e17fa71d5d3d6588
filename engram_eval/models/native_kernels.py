"""Kernels for training on a CPU: in one pass what torch does in several between two products."""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from .native import ADDRESS, FLAG, FLOAT, SIZE, Functions, in_reach

SUFFIXES = {torch.bfloat16: "_bf16", torch.float32: "_f32"}


class Write(ctypes.Structure):
    """The fields of ``struct Write`` in ``step_kernels.cpp``."""

    _fields_ = [
        *((name, SIZE) for name in ("batch", "length", "streams", "width", "taps", "apart")),
        ("eps", FLOAT),
    ]


def kernels_for(*tensors: Tensor) -> "NativeKernels | None":
    """Return the kernels if they can work on all of ``tensors``, of one type, and exist."""
    suffix = SUFFIXES.get(tensors[0].dtype)
    if suffix is None or not in_reach(*tensors):
        return None
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return None
    return NativeKernels.load(suffix)


class NativeKernels(Functions):
    """The functions of ``step_kernels.cpp`` for one type, on contiguous tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "cross_entropy": (*[ADDRESS] * 3, *[SIZE] * 2, FLAG),
        "rms_norm": (*[ADDRESS] * 4, *[SIZE] * 3, FLOAT),
        "rms_norm_backward": (*[ADDRESS] * 6, *[SIZE] * 3),
        "swiglu": (*[ADDRESS] * 2, SIZE, *[ADDRESS] * 2, *[SIZE] * 2),
        "swiglu_backward": (
            *(*[ADDRESS] * 3, SIZE, *[ADDRESS] * 3, SIZE, ADDRESS),
            *[SIZE] * 2,
        ),
        "add_rows": (*[ADDRESS] * 3, *[SIZE] * 3),
        "memory_write": (*[ADDRESS] * 6, Write),
        "memory_write_backward": (*[ADDRESS] * 10, Write),
    }

    def cross_entropy_(self, logits: Tensor, targets: Tensor, with_error: bool = True) -> Tensor:
        """Return the losses (C,) in nats of ``logits`` (C, V), which become their gradient.

        Args:
            logits: replaced by what to add to them to make the losses larger, if ``with_error``.
            targets: (C,) int64; where one is negative loss and gradient are 0.
            with_error: whether the gradient is wanted.

        Raises:
            IndexError: there is no such target.
        """
        if len(targets) and int(targets.max()) >= logits.shape[1]:
            raise IndexError(f"target {int(targets.max())} of {logits.shape[1]} logits")
        targets = targets.to(torch.int64).contiguous()
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        self._call("cross_entropy", logits, targets, losses, *logits.shape, with_error)
        return losses

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return ``x * scale * gain``, and the scales: one for each row of ``x`` (..., D).

        Args:
            x: (..., D), or (..., M, D) with a gain for each of M.
            gain: (D,) or (M, D), float32.
            eps: added to the mean square.
        """
        width = x.shape[-1]
        rows = x.numel() // width
        output, scales = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        sizes = rows, width, gain.numel() // width
        self._call("rms_norm", x, gain, output, scales, *sizes, eps)
        return output, scales

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, gain: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``x`` and ``gain``."""
        width = x.shape[-1]
        grad_x, grad_gain = torch.empty_like(x), torch.empty_like(gain)
        sizes = x.numel() // width, width, gain.numel() // width
        self._call("rms_norm_backward", grad, x, gain, scales, grad_x, grad_gain, *sizes)
        return grad_x, grad_gain

    def swiglu(self, gate: Tensor, up: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return ``silu(gate) * up * factors``, (N, F).

        Args:
            gate: (N, F), rows as far apart as those of ``up``.
            up: (N, F).
            factors: (N,) of the rows.
        """
        rows, width = gate.shape
        output = gate.new_empty(rows, width)
        self._call("swiglu", gate, up, gate.stride(0), factors, output, rows, width)
        return output

    def swiglu_backward(
        self,
        grad: Tensor,
        gate: Tensor,
        up: Tensor,
        grad_gate: Tensor,
        grad_up: Tensor,
        factors: Tensor | None = None,
        grad_factors: Tensor | None = None,
    ) -> None:
        """Fill the gradients of gate and up, (N, F), and of the factors, (N,).

        The rows of ``grad_gate`` lie as far apart as those of ``grad_up``.
        """
        inputs = grad, gate, up, gate.stride(0), factors
        outputs = grad_gate, grad_up, grad_gate.stride(0), grad_factors
        self._call("swiglu_backward", *inputs, *outputs, *gate.shape)

    def add_rows(self, rows: Tensor, place: Tensor) -> Tensor:
        """Add each token's rows of (S, D), which lie at ``place`` (N, K): (N, D)."""
        output = rows.new_empty(len(place), rows.shape[1])
        self._call("add_rows", rows, place, output, *place.shape, rows.shape[1])
        return output

    def memory_write(
        self, gates: Tensor, values: Tensor, gain: Tensor, weights: Tensor, apart: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``written.write``'s output (B, T, M, D), and what ``backward`` takes of the norm.

        Args:
            gates: (B, T, M) float32.
            values: (B, T, D).
            gain: (M, D) or, for one stream, (D,), float32; of the norm.
            weights: (K, M D) float32; of the convolution.
            apart: its dilation.
            eps: of the norm.
        """
        output, scales = values.new_empty(*gates.shape, values.shape[-1]), torch.empty_like(gates)
        sizes = Write(*gates.shape, values.shape[-1], len(weights), apart, eps)
        self._call("memory_write", gates, values, gain, weights, output, scales, sizes)
        return output, scales

    def memory_write_backward(
        self,
        grad: Tensor,
        gates: Tensor,
        values: Tensor,
        gain: Tensor,
        weights: Tensor,
        scales: Tensor,
        apart: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of gates, values, gain and weights."""
        inputs = gates, values, gain, weights
        grads = (
            *(torch.empty_like(gates), torch.empty_like(values)),
            *(torch.empty_like(gain), torch.empty_like(weights)),
        )
        sizes = Write(*gates.shape, values.shape[-1], len(weights), apart, eps)
        self._call("memory_write_backward", grad, *inputs, scales, *grads, sizes)
        return grads
