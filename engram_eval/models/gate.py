"""How well a memory's keys match the residual streams (arXiv:2601.07372 eq. 4)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .hooks import is_unhooked
from .native_gate import Matched, NativeGate, gate_for
from .norm import RMSNorm


def match(streams: Tensor, keys: Tensor, query_norm: RMSNorm, key_norm: RMSNorm) -> Tensor:
    """Return ``(query_norm(streams) * key_norm(keys)).sum(-1) / sqrt(D)``, (..., M).

    Args:
        streams: (..., M, D).
        keys: (..., M, D).
        query_norm: of the streams.
        key_norm: of the keys.
    """
    gains = query_norm.weight, key_norm.weight
    unhooked = is_unhooked(query_norm) and is_unhooked(key_norm)
    plain = unhooked and query_norm.eps == key_norm.eps
    kernels = gate_for(streams, keys, *gains) if plain else None
    if kernels is None:
        both = query_norm(streams) * key_norm(keys)
        return both.sum(-1) / math.sqrt(streams.shape[-1])
    score: Tensor = _Match.apply(streams, keys, *gains, query_norm.eps, kernels)
    return score


class _Match(torch.autograd.Function):
    """In one pass each way."""

    @staticmethod
    def forward(
        ctx: Any,
        streams: Tensor,
        keys: Tensor,
        query_gain: Tensor,
        key_gain: Tensor,
        eps: float,
        kernels: NativeGate,
    ) -> Tensor:
        streams, keys = streams.contiguous(), keys.contiguous()
        gains = query_gain.contiguous(), key_gain.contiguous()
        made = kernels.match(streams, keys, *gains, eps)
        ctx.save_for_backward(streams, keys, *gains, *made)
        ctx.eps, ctx.kernels = eps, kernels
        return made.scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *given, scores, scales = ctx.saved_tensors
        made = Matched(scores, scales)
        grads = ctx.kernels.match_backward(grad.contiguous(), *given, made, ctx.eps)
        return *grads, None, None
