"""Rotary causal attention for training on a CPU: several times as fast as torch's kernel there.

One product makes queries, keys and values; from there to the heads' outputs it is one
differentiable step. Rotated pairs lie side by side, so that a rotation is one complex product.
Query heads that share a key head are stacked to one tall matrix, and the queries are cut into
blocks, so that much of the upper half of the scores is never computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear import products_for
from .native_attention import Attended, NativeAttention, Sizes, attention_for
from .native_linear import NativeLinear
from .precision import widened

BLOCK = 128


def joined_projections(
    query: Tensor, key: Tensor, value: Tensor, head_dim: int, scaling: float
) -> Tensor:
    """Return one weight, (R, D), whose product ``rotary_causal_attention`` takes.

    Scores do not change when the numbers of a head change places in queries and keys alike.

    Args:
        query: (heads * head_dim, D), of a model that rotates pairs (i, i + head_dim / 2).
        key: (kv_heads * head_dim, D).
        value: (kv_heads * head_dim, D).
        head_dim: numbers of a head.
        scaling: multiplies the scores.
    """
    rotated = torch.cat((query * scaling, key)).unflatten(0, (-1, 2, head_dim // 2))
    return torch.cat((rotated.transpose(1, 2).flatten(0, 2), value))


def rotary_causal_attention(
    projected: Tensor, heads: int, kv_heads: int, cos: Tensor, sin: Tensor
) -> Tensor:
    """Rotate queries and keys, then return ``softmax(query @ key.T) @ value``.

    Each position sees itself and those before.

    Args:
        projected: (B, T, (heads + 2 kv_heads) * d), by a weight of ``joined_projections``.
        heads: of queries; a multiple of ``kv_heads``.
        kv_heads: of keys and values.
        cos: (B or 1, T, d), as ``RotaryEmbedding`` returns them.
        sin: (B or 1, T, d); the second half is positive.

    Returns:
        (B, T, heads * d).
    """
    turns = _turns(projected, cos, sin)
    with torch.autocast(projected.device.type, enabled=False):
        attention = attention_for(projected)
        if attention is not None:
            output: Tensor = _ByKernel.apply(projected, heads, kv_heads, turns, attention)
        else:
            given = widened(projected), heads, kv_heads, turns
            output = _RotaryCausalAttention.apply(*given).to(projected.dtype)
    return output


class Manner(NamedTuple):
    """What an attention layer is beside its weights; see ``joined_projections``."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float


def attention_layer(
    x: Tensor, weights: Sequence[Tensor], manner: Manner, cos: Tensor, sin: Tensor
) -> Tensor | None:
    """Return the projected output of a whole layer, if compiled functions can make all of it.

    Args:
        x: (B, T, D).
        weights: of queries, keys, values and outputs.
        manner: see there.
        cos: see ``rotary_causal_attention``, also for ``sin``.
        sin: (B or 1, T, d).
    """
    products, attention = products_for(x, *weights), attention_for(x)
    if products is None or attention is None:
        return None
    turns = _turns(x, cos, sin)
    output: Tensor = _LayerByKernel.apply(x, *weights, manner, turns, products, attention)
    return output


def _turns(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.complex(cos[..., :half].to(wide), sin[..., half:].to(wide))


class _RotaryCausalAttention(torch.autograd.Function):
    """Inside, heads come first: (N, d) matrices for each of kv_heads * B, groups of G queries."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, heads: int, kv_heads: int, turns: Tensor) -> Tensor:
        batch, length, _ = projected.shape
        groups, width = heads // kv_heads, 2 * turns.shape[-1]
        by_head = projected.view(batch, length, -1, width).permute(2, 0, 1, 3)
        rotated = _rotate(by_head[: heads + kv_heads], turns).to(projected.dtype)
        queries = rotated[:heads].unflatten(0, (kv_heads, groups)).transpose(1, 2)
        keys = rotated[heads:].flatten(0, 1)
        values = by_head[heads + kv_heads :].reshape_as(keys)
        output = projected.new_empty(batch, length, kv_heads, groups, width)
        to_fill = output.permute(2, 0, 3, 1, 4)
        future = projected.new_full((BLOCK, BLOCK), float("-inf")).triu(1)
        kept = []
        for start in range(0, length, BLOCK):
            rows = queries[..., start : start + BLOCK, :]
            end = start + rows.shape[3]
            tall = rows.reshape(len(keys), -1, width)
            scores = torch.bmm(tall, keys[:, :end].mT)
            scores.unflatten(1, (groups, -1))[..., start:] += future[: end - start, : end - start]
            weights = scores.softmax(-1)
            to_fill[..., start:end, :] = torch.bmm(weights, values[:, :end]).view_as(rows)
            kept += [tall, weights]
        ctx.save_for_backward(turns, keys, values, *kept)
        ctx.sizes = heads, kv_heads
        return output.view(batch, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        turns, keys, values, *kept = ctx.saved_tensors
        heads, kv_heads = ctx.sizes
        batch, length, width = len(grad), grad.shape[1], keys.shape[2]
        grads = grad.view(batch, length, kv_heads, -1, width).permute(2, 0, 3, 1, 4)
        wide = torch.promote_types(keys.dtype, torch.float32)
        rotated = grad.new_zeros(heads + kv_heads, batch, length, width, dtype=wide)
        to_fill = rotated[:heads].unflatten(0, (kv_heads, -1)).transpose(1, 2)
        grad_key, grad_value = rotated[heads:].flatten(0, 1), torch.zeros_like(values, dtype=wide)
        for number, start in enumerate(range(0, length, BLOCK)):
            tall, weights = kept[2 * number : 2 * number + 2]
            end = weights.shape[-1]
            block = grads[..., start:end, :]
            tall_grad = block.reshape_as(tall)
            grad_value[:, :end] += torch.bmm(weights.mT, tall_grad)
            inner = torch.bmm(tall_grad, values[:, :end].mT)
            scores = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            to_fill[..., start:end, :] = torch.bmm(scores, keys[:, :end]).view_as(block)
            grad_key[:, :end] += torch.bmm(scores.mT, tall)
        # A rotation's gradient is the rotation back.
        projected = grad.new_empty(batch, length, heads + 2 * kv_heads, width)
        by_head = projected.permute(2, 0, 1, 3)
        by_head[: heads + kv_heads] = _rotate(rotated, turns.conj().resolve_conj())
        by_head[heads + kv_heads :] = grad_value.view(kv_heads, batch, length, width)
        return projected.view(batch, length, -1), None, None, None


class _ByKernel(torch.autograd.Function):
    """The same in one compiled pass each way; weights are computed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        heads: int,
        kv_heads: int,
        turns: Tensor,
        attention: NativeAttention,
    ) -> Tensor:
        batch, length, _ = projected.shape
        sizes = Sizes(batch, length, kv_heads, heads // kv_heads, 2 * turns.shape[-1])
        projected, turns = projected.contiguous(), turns.contiguous()
        made = attention.forward(projected, turns, sizes)
        ctx.save_for_backward(projected, turns, *made)
        ctx.attention, ctx.sizes = attention, sizes
        return made.output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projected, turns, *made = ctx.saved_tensors
        given = grad.contiguous(), projected, turns, Attended(*made), ctx.sizes
        return ctx.attention.backward(*given), None, None, None, None


class _LayerByKernel(torch.autograd.Function):
    """A whole layer: one node of the graph, and weights are joined without one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        manner: Manner,
        turns: Tensor,
        products: NativeLinear,
        attention: NativeAttention,
    ) -> Tensor:
        heads, kv_heads, head_dim, scaling = manner
        sizes = Sizes(len(x), x.shape[1], kv_heads, heads // kv_heads, head_dim)
        joined = attention.join(query, key, value, scaling, sizes)
        turns, projected = turns.contiguous(), products.multiply(x, joined)
        made = attention.forward(projected, turns, sizes)
        ctx.save_for_backward(x, joined, output, projected, turns, *made)
        ctx.kernels, ctx.sizes, ctx.scaling = (products, attention), sizes, scaling
        return products.multiply(made.output, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, joined, output, projected, turns, *saved = ctx.saved_tensors
        products, attention = ctx.kernels
        made, grad = Attended(*saved), grad.contiguous()
        grad_heads = products.multiply(grad, output, turned=False)
        grad_projected = attention.backward(grad_heads, projected, turns, made, ctx.sizes)
        grad_joined = products.outer_product(grad_projected, x)
        grads = attention.separate(grad_joined, ctx.scaling, ctx.sizes)
        grad_x = products.multiply(grad_projected, joined, turned=False)
        grad_output = products.outer_product(grad, made.output)
        return grad_x, *grads, grad_output, None, None, None, None


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs of ``x`` (heads, B, T, d), side by side; the result is wide and contiguous."""
    wide = torch.empty(x.shape, dtype=turns.real.dtype, device=x.device).copy_(x)
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    pairs *= turns
    return wide
