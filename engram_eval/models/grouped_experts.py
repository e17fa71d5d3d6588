"""All experts of a layer in one differentiable step, for CPUs: little padding, few passes.

Tokens are sorted by expert once; each expert multiplies its own slice straight into the result.
Slices are padded to a multiple of ``BLOCK`` rows: oneDNN compiles a kernel for every new shape,
which takes ten times as long as the product itself, and loads differ from step to step. The
routing weights scale the inner activations, which are narrower than the outputs, and a token's
outputs are gathered and added in one pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 32
EVEN = 1.5
"""Padding to the fullest expert's load pays up to this factor: one batched product for all."""


def grouped_experts(
    x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, loads: Tensor
) -> Tensor:
    """Return ``sum_k weights[:, k] * expert[chosen[:, k]](x)``, (N, D), in the dtype of ``x``.

    Args:
        x: (N, D).
        weights: (N, K) factors of the outputs.
        chosen: (N, K) expert numbers.
        gate_up: (E, D, 2F) first weights, in the dtype of ``x``.
        down: (E, F, D) second weights, in the dtype of ``x``.
        loads: (E,) tokens of each expert.
    """
    sizes = _slice_sizes(loads)
    place = _places(chosen, loads, sizes)
    slots = torch.arange(chosen.numel(), device=x.device)
    tokens = slots.new_zeros(int(sizes.sum())).index_copy_(0, place, slots // chosen.shape[1])
    # Padding holds some token's row; its factor is 0, and so is all that it contributes.
    factors = x.new_zeros(len(tokens)).index_copy(0, place, weights.flatten().to(x.dtype))
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = _GroupedExperts.apply(
            x, factors.unsqueeze(1), gate_up, down, tokens, place.view_as(chosen), sizes.tolist()
        )
    return output


def _slice_sizes(loads: Tensor) -> Tensor:
    """Return the rows of each expert's slice; all equal where the loads are even enough."""
    sizes = (loads + BLOCK - 1) // BLOCK * BLOCK
    fullest = sizes.max()
    even = int(fullest) * len(sizes) <= EVEN * int(loads.sum())
    return fullest.expand_as(sizes) if even else sizes


def _places(chosen: Tensor, loads: Tensor, sizes: Tensor) -> Tensor:
    """Return the row of each (token, choice) pair, (N * K,), in slices of ``sizes`` rows."""
    experts, order = chosen.flatten().sort(stable=True)
    shift = (sizes.cumsum(0) - sizes) - (loads.cumsum(0) - loads)
    rows = torch.arange(len(order), device=order.device) + shift[experts]
    return torch.empty_like(order).index_copy_(0, order, rows)


class _GroupedExperts(torch.autograd.Function):
    """Rows are sorted by expert: ``tokens`` (S,) says whose they are, ``place`` (N, K) where."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factors: Tensor,
        gate_up: Tensor,
        down: Tensor,
        tokens: Tensor,
        place: Tensor,
        loads: Sequence[int],
    ) -> Tensor:
        rows = x.index_select(0, tokens)
        hidden = _per_expert(rows, gate_up, loads)
        gate, up = hidden.chunk(2, dim=-1)
        active = F.silu(gate)
        inner = active * up
        outer = _per_expert(inner * factors, down, loads)
        ctx.save_for_backward(rows, factors, hidden, active, inner, gate_up, down, tokens, place)
        ctx.loads = loads
        return F.embedding_bag(place, outer, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, factors, hidden, active, inner, gate_up, down, tokens, place = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=-1)
        grad_outer = grad.index_select(0, tokens)
        grad_down = _outer_products(inner * factors, grad_outer, ctx.loads)
        grad_scaled = _per_expert(grad_outer, down.mT, ctx.loads)
        grad_factors = (grad_scaled * inner).sum(-1, keepdim=True)
        grad_inner = grad_scaled * factors
        grad_hidden = torch.empty_like(hidden)
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        torch.mul(grad_inner, active, out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad_inner * up, gate))
        grad_gate_up = _outer_products(rows, grad_hidden, ctx.loads)
        grad_rows = _per_expert(grad_hidden, gate_up.mT, ctx.loads)
        grad_x = F.embedding_bag(place, grad_rows, mode="sum")
        return grad_x, grad_factors, grad_gate_up, grad_down, None, None, None


def _per_expert(rows: Tensor, weights: Tensor, loads: Sequence[int]) -> Tensor:
    """Multiply each expert's slice of ``rows`` (S, A) by its matrix of ``weights`` (E, A, B)."""
    if _equal(loads):
        return torch.bmm(rows.view(len(loads), -1, rows.shape[1]), weights).flatten(0, 1)
    output = rows.new_empty(len(rows), weights.shape[2])
    parts = zip(rows.split(loads), weights.unbind(0), output.split(loads), strict=True)
    for part, weight, result in parts:
        torch.mm(part, weight, out=result)
    return output


def _outer_products(left: Tensor, right: Tensor, loads: Sequence[int]) -> Tensor:
    """Return ``left.T @ right`` of each expert's slices: (S, A), (S, B) -> (E, A, B)."""
    if _equal(loads):
        left, right = (part.view(len(loads), -1, part.shape[1]) for part in (left, right))
        return torch.bmm(left.mT, right)
    output = left.new_empty(len(loads), left.shape[1], right.shape[1])
    parts = zip(left.split(loads), right.split(loads), output.unbind(0), strict=True)
    for part, other, result in parts:
        torch.mm(part.T, other, out=result)
    return output


def _equal(loads: Sequence[int]) -> bool:
    return min(loads) == max(loads)
