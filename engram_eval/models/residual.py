"""The residual stream between two layers: what is added to it, and its norm, which is read."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .hooks import is_unhooked
from .native_stream import NativeStream, stream_for
from .norm import RMSNorm
from .precision import rounds_weights


class Read(NamedTuple):
    """A residual stream and what a layer reads of it, all (..., D).

    Attributes:
        stream: after the addition.
        normed: its norm; in autocast's type where compiled functions make it.
        wide: its norm, as precise as the stream, if asked for and not what ``normed`` is.
    """

    stream: Tensor
    normed: Tensor
    wide: Tensor | None


def add_and_norm(stream: Tensor, added: Tensor | None, norm: nn.Module, wide: bool = False) -> Read:
    """Add ``added`` to ``stream`` and normalise the sum.

    On a CPU both are one compiled pass each way where products are in bfloat16.

    Args:
        stream: (..., D).
        added: (..., D); None for nothing.
        norm: an ``RMSNorm``; if it is hooked or replaced it is called.
        wide: see ``Read``.
    """
    kernels = _kernels(stream, added, norm)
    if kernels is None:
        joined = stream if added is None else stream + added
        return Read(joined, norm(joined), None)
    return Read(*_AddAndNorm.apply(stream, added, norm.weight, norm.eps, wide, kernels))


def add(stream: Tensor, added: Tensor) -> Tensor:
    """Return ``stream + added``, (..., D)."""
    kernels = stream_for(stream, added)
    if kernels is None:
        return stream + added
    output: Tensor = _Add.apply(stream, added, kernels)
    return output


def _kernels(stream: Tensor, added: Tensor | None, norm: nn.Module) -> NativeStream | None:
    if type(norm) is not RMSNorm or not is_unhooked(norm) or not rounds_weights(torch.bfloat16):
        return None
    one_gain = norm.weight.dtype == torch.float32 and norm.weight.dim() == 1
    return stream_for(stream, added) if one_gain else None


class _AddAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        added: Tensor | None,
        gain: Tensor,
        eps: float,
        wide: bool,
        kernels: NativeStream,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        stream = stream.contiguous()
        added = None if added is None else added.contiguous()
        made = kernels.join_and_norm(stream, added, gain, eps, wide)
        ctx.save_for_backward(made.joined, made.scales, gain)
        ctx.kernels, ctx.with_added = kernels, added is not None
        ctx.set_materialize_grads(False)
        return made.joined, made.normed, made.wide

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_joined: Tensor | None, grad: Tensor | None, grad_wide: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        joined, scales, gain = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(joined, dtype=torch.bfloat16)
        more = (None if each is None else each.contiguous() for each in (grad_joined, grad_wide))
        went_on, in_full = more
        given = went_on, grad.contiguous(), in_full, joined, scales, gain, ctx.with_added
        return *ctx.kernels.join_and_norm_backward(*given), None, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, added: Tensor, kernels: NativeStream) -> Tensor:
        return kernels.join(stream.contiguous(), added.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, grad.bfloat16(), None
