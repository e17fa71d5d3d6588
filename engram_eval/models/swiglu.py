"""The gated activation of SwiGLU (arXiv:2002.05202)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .native_kernels import NativeKernels, kernels_for
from .native_swiglu import NativeSwiGLU, swiglu_for
from .precision import rounds_weights


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


def swiglu_layer(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor | None:
    """Return ``(silu(x @ gate.T) * (x @ up.T)) @ down.T`` if compiled functions can make it.

    Args:
        x: (..., D) bfloat16.
        gate: (F, D).
        up: (F, D).
        down: (D, F).
    """
    kernels = swiglu_for(x, gate, up, down) if rounds_weights(x.dtype) else None
    if kernels is None:
        return None
    output: Tensor = _Layer.apply(x, gate, up, down, kernels)
    return output


class _Layer(torch.autograd.Function):
    """All three products in one compiled pass each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, kernels: NativeSwiGLU
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        weights = gate.contiguous(), up.contiguous(), down.contiguous()
        output, hidden = kernels.forward(rows, *weights)
        ctx.save_for_backward(rows, *weights, hidden)
        ctx.kernels = kernels
        return output.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        flat = grad.reshape(rows.shape).contiguous()
        grad_x, *grads = ctx.kernels.backward(flat, rows, *saved)
        return grad_x.view(grad.shape), *grads, None
