"""The gated activation of SwiGLU (arXiv:2002.05202)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .native_kernels import NativeKernels, kernels_for


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, (..., F)."""
    kernels = kernels_for(gate, up)
    if kernels is None:
        return F.silu(gate) * up
    output: Tensor = _ByKernel.apply(gate, up, kernels)
    return output


class _ByKernel(torch.autograd.Function):
    """One pass each way, in which nothing is rounded."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: NativeKernels) -> Tensor:
        rows = [part.reshape(-1, part.shape[-1]) for part in (gate, up)]
        if rows[0].stride() != rows[1].stride() or rows[0].stride(1) != 1:
            rows = [part.contiguous() for part in rows]
        ctx.save_for_backward(*rows)
        ctx.kernels = kernels
        return kernels.swiglu(*rows).view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        flat = grad.contiguous().view(gate.shape)
        grads = flat.new_empty(2, *flat.shape)
        ctx.kernels.swiglu_backward(flat, gate, up, *grads)
        return *(part.view(grad.shape) for part in grads), None
