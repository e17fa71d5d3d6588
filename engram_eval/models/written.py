"""What a memory writes of its gated values (arXiv:2601.07372 eq. 5), in one pass each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .convolution import DepthwiseCausalConv
from .hooks import is_unhooked
from .native import in_reach
from .native_kernels import NativeKernels, kernels_for
from .norm import RMSNorm


def write(gates: Tensor, values: Tensor, norm: RMSNorm, conv: DepthwiseCausalConv) -> Tensor | None:
    """Return ``gated + silu(conv(norm(gated)))`` if a compiled function can make it: (B, T, M, D).

    ``gated`` is ``gates[..., None] * values[..., None, :]``.

    Args:
        gates: (B, T, M).
        values: (B, T, D).
        norm: with a gain for each stream.
        conv: over all streams' channels side by side.
    """
    plain = type(norm) is RMSNorm and type(conv) is DepthwiseCausalConv
    if not plain or not is_unhooked(norm) or not is_unhooked(conv):
        return None
    streams = norm.weight.numel() // norm.weight.shape[-1]
    if gates.shape != (*values.shape[:-1], streams) or values.shape[-1] != norm.weight.shape[-1]:
        # Whoever replaces gates may give one for all tokens.
        return None
    wide = gates, norm.weight, conv.weight
    kernels = kernels_for(values) if in_reach(*wide) else None
    if kernels is None or any(each.dtype != torch.float32 for each in wide):
        return None
    given = gates, values, norm.weight, conv.weight.squeeze(1).T
    output: Tensor = _Write.apply(*given, conv.dilation, norm.eps, kernels)
    return output


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        values: Tensor,
        gain: Tensor,
        weights: Tensor,
        apart: int,
        eps: float,
        kernels: NativeKernels,
    ) -> Tensor:
        given = gates.contiguous(), values.contiguous(), gain.contiguous(), weights.contiguous()
        output, scales = kernels.memory_write(*given, apart, eps)
        ctx.save_for_backward(*given, scales)
        ctx.manner, ctx.kernels = (apart, eps), kernels
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.kernels.memory_write_backward(
            grad.contiguous(), *ctx.saved_tensors, *ctx.manner
        )
        return *grads, None, None, None
