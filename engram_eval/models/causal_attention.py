"""Rotary causal attention for training on a CPU: several times as fast as torch's kernel there.

From the projected heads to their outputs it is one differentiable step. Query heads that share a
key head are stacked to one tall matrix, and the queries are cut into blocks, so that most of the
upper half of the scores is never computed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64


def rotary_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, scaling: float
) -> Tensor:
    """Rotate queries and keys, then return ``softmax(scaling * query @ key.T) @ value``.

    Each position sees itself and those before.

    Args:
        query: (B, T, heads * d).
        key: (B, T, kv_heads * d); kv_heads divides heads.
        value: (B, T, kv_heads * d).
        cos: (B or 1, T, d), as ``RotaryEmbedding`` returns them.
        sin: (B or 1, T, d); the first half is negative.
        scaling: multiplies the scores.

    Returns:
        (B, T, heads * d).
    """
    with torch.autocast(query.device.type, enabled=False):
        output: Tensor = _RotaryCausalAttention.apply(query, key, value, cos, sin, scaling)
    return output


class _RotaryCausalAttention(torch.autograd.Function):
    """Inside, heads are (N, G, T, d): N = B * kv_heads, and G query heads share a key head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        scaling: float,
    ) -> Tensor:
        groups, width = query.shape[2] // key.shape[2], cos.shape[2]
        ctx.scaling, ctx.groups = scaling, groups
        rotated = _stack(rotate(_heads(query, width), cos * scaling, sin * scaling), groups)
        keys = _stack(rotate(_heads(key, width), cos, sin), 1).squeeze(1)
        values = _stack(_heads(value, width), 1).squeeze(1)
        output = torch.empty_like(rotated)
        future = rotated.new_full((BLOCK, BLOCK), float("-inf")).triu(1)
        kept = []
        for start in range(0, rotated.shape[2], BLOCK):
            rows = rotated[:, :, start : start + BLOCK]
            end = start + rows.shape[2]
            tall = rows.flatten(1, 2)
            scores = torch.bmm(tall, keys[:, :end].mT).view(*rows.shape[:3], end)
            scores[..., start:] += future[: end - start, : end - start]
            weights = scores.softmax(-1).flatten(1, 2)
            output[:, :, start:end] = torch.bmm(weights, values[:, :end]).view_as(rows)
            kept += [tall, weights]
        ctx.save_for_backward(cos, sin, keys, values, *kept)
        return _unstack(output, len(query))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, keys, values, *kept = ctx.saved_tensors
        batch, width = len(grad), cos.shape[2]
        grads = _stack(_heads(grad, width), ctx.groups)
        wide = torch.promote_types(keys.dtype, torch.float32)
        grad_query = torch.empty_like(grads)
        grad_key = torch.zeros_like(keys, dtype=wide)
        grad_value = torch.zeros_like(keys, dtype=wide)
        for number, start in enumerate(range(0, grad.shape[1], BLOCK)):
            rows, weights = kept[2 * number : 2 * number + 2]
            end = weights.shape[-1]
            block = grads[:, :, start:end]
            tall = block.flatten(1, 2)
            grad_value[:, :end] += torch.bmm(weights.mT, tall)
            inner = torch.bmm(tall, values[:, :end].mT)
            scores = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            grad_query[:, :, start:end] = torch.bmm(scores, keys[:, :end]).view_as(block)
            grad_key[:, :end] += torch.bmm(scores.mT, rows)
        # A rotation's gradient is the rotation back.
        query = rotate(_split(grad_query, batch), cos * ctx.scaling, -sin * ctx.scaling)
        key = rotate(_split(grad_key.unsqueeze(1), batch), cos, -sin).to(grad.dtype)
        value = _split(grad_value.unsqueeze(1), batch).to(grad.dtype)
        return _merge(query), _merge(key), _merge(value), None, None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` (B, heads, T, d) in at least single precision; the result is contiguous."""
    wide = torch.promote_types(x.dtype, torch.float32)
    turned = torch.empty(x.shape, dtype=wide, device=x.device).copy_(x)
    cos, sin = cos.unsqueeze(1).to(wide), sin.unsqueeze(1).to(wide)
    return torch.addcmul(turned * cos, turned.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def _heads(x: Tensor, width: int) -> Tensor:
    """(B, T, heads * d) -> (B, heads, T, d), a view."""
    return x.unflatten(2, (-1, width)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def _stack(x: Tensor, groups: int) -> Tensor:
    """(B, kv_heads * G, T, d) -> (B * kv_heads, G, T, d)."""
    return x.reshape(-1, groups, *x.shape[2:])


def _split(x: Tensor, batch: int) -> Tensor:
    """(B * kv_heads, G, T, d) -> (B, kv_heads * G, T, d)."""
    return x.view(batch, -1, *x.shape[2:])


def _unstack(x: Tensor, batch: int) -> Tensor:
    """(B * kv_heads, G, T, d) -> (B, T, heads * d)."""
    return _merge(_split(x, batch))
