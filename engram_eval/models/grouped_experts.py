"""All experts of a layer in one differentiable step: little padding, few passes.

Tokens are sorted by expert once; each expert multiplies its own slice straight into the result. The
routing weights scale the inner activations, which are narrower than the outputs, and a token's
outputs are gathered and added in one pass.

On a CPU slices are padded to a multiple of ``BLOCK`` rows. Where compiled products are fast one
function does it all; else oneDNN multiplies, which compiles a kernel for every new shape: ten times
as long as the product itself, and loads differ from step to step. On a GPU one kernel multiplies
all slices, and nothing waits to learn how long they are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .native import BLOCK, in_reach
from .native_experts import NativeExperts, Sorted, experts_for
from .native_kernels import kernels_for
from .native_lookup import lookup_for
from .native_routing import routing_for
from .native_swiglu import NativeSwiGLU, swiglu_for
from .precision import rounds_weights

EVEN = 2.5
"""Padding to the fullest expert's load pays up to this factor: one batched product for all."""
ALIGNED = 16
"""Rows to which the grouped kernel's slices are padded."""


class Slices(Protocol):
    """Consecutive rows, a slice for each expert."""

    def per_expert(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Multiply each slice of ``rows`` (S, A) by its matrix of ``weights`` (E, A, B)."""

    def outer_products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left.T @ right`` of each slice: (S, A), (S, B) -> (E, A, B)."""


def fits_grouped_kernel(x: Tensor) -> bool:
    """Return whether one kernel can multiply slices of ``x`` (N, D) of unknown lengths."""
    return x.is_cuda and x.dtype == torch.bfloat16


def grouped_experts(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Tensor,
    down: Tensor,
    loads: Tensor,
    one_kernel: bool | None = None,
) -> Tensor:
    """Return ``sum_k weights[:, k] * expert[chosen[:, k]](x)``, (N, D), in the dtype of ``x``.

    Args:
        x: (N, D).
        weights: (N, K) factors of the outputs.
        chosen: (N, K) expert numbers.
        gate_up: (E, D, 2F) first weights, in the dtype of ``x``.
        down: (E, F, D) second weights, in the dtype of ``x``.
        loads: (E,) tokens of each expert.
        one_kernel: multiply all slices by one grouped kernel; by default where it is fast.
    """
    one_kernel = fits_grouped_kernel(x) if one_kernel is None else one_kernel
    if one_kernel:
        # One block more than is needed, so that none is empty: of an empty slice the kernel's
        # gradient is undefined. The rows that are left over at the end belong to nobody.
        sizes = (loads // ALIGNED + 1) * ALIGNED
        total = chosen.numel() + len(loads) * ALIGNED
        slices: Slices = KernelSlices(sizes.cumsum(0).int())
    else:
        sizes, listed = _slice_sizes(loads, chosen.numel())
        total, slices = sum(listed), ListedSlices(listed)
    place, tokens = _sorted(chosen, loads, sizes, total)
    # Padding holds some token's row; its factor is 0, and so is all that it contributes.
    factors = x.new_zeros(total).index_copy(0, place.flatten(), weights.flatten().to(x.dtype))
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = _GroupedExperts.apply(
            x, factors.unsqueeze(1), gate_up, down, tokens, place, slices
        )
    return output


def experts_by_kernel(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Tensor,
    down: Tensor,
    loads: Tensor,
    shared: Sequence[Tensor] = (),
) -> Tensor | None:
    """Return what ``grouped_experts`` does under autocast, if compiled functions can make it.

    Shapes are those of ``grouped_experts``. The weights are taken in single precision, and rounded
    where they are multiplied. ``shared`` are gate, up and down of a SwiGLU layer whose output for
    ``x`` is added. None where they cannot.
    """
    experts = experts_for(x, gate_up, down) if rounds_weights(x.dtype) else None
    if experts is None or weights.dtype != torch.float32 or not in_reach(weights, chosen, loads):
        return None
    beside = swiglu_for(x, *shared) if shared else None
    if shared and beside is None:
        return None
    sizes = _whole_blocks(loads)
    place, tokens = _sorted(chosen, loads, sizes, int(sizes.sum()))
    functions = Compiled(experts, beside)
    output: Tensor = _ByKernel.apply(
        functions, place, tokens, sizes, x, weights, gate_up, down, *shared
    )
    return output


class Compiled(NamedTuple):
    """Functions of a mixture: of its routed experts, and of what is added to them, if anything."""

    experts: NativeExperts
    beside: NativeSwiGLU | None


def _slice_sizes(loads: Tensor, taken: int) -> tuple[Tensor, list[int]]:
    """Return the rows of each expert's slice, and read back; all equal if loads are even enough.

    ``taken`` is the sum of ``loads``: a GPU is waited for once.
    """
    sizes = _whole_blocks(loads)
    listed: list[int] = sizes.tolist()
    fullest = max(listed)
    if fullest * len(listed) <= EVEN * taken:
        return torch.full_like(sizes, fullest), [fullest] * len(listed)
    return sizes, listed


def _whole_blocks(loads: Tensor) -> Tensor:
    return (loads + BLOCK - 1) // BLOCK * BLOCK


def _sorted(chosen: Tensor, loads: Tensor, sizes: Tensor, total: int) -> tuple[Tensor, Tensor]:
    routing = routing_for(chosen, sizes)
    if routing is not None:
        return routing.place(chosen, sizes, total)
    return _sorted_by_expert(chosen, loads, sizes, total)


def _sorted_by_expert(
    chosen: Tensor, loads: Tensor, sizes: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Return what ``NativeRouting.place`` does."""
    # A GPU passes once over keys for each of their bytes.
    narrow = torch.uint8 if len(loads) <= 2**8 else chosen.dtype
    experts, order = chosen.flatten().to(narrow).sort(stable=True)
    shift = (sizes.cumsum(0) - sizes) - (loads.cumsum(0) - loads)
    rows = torch.arange(len(order), device=order.device) + shift[experts.long()]
    place = torch.empty_like(order).index_copy_(0, order, rows)
    slots = torch.arange(len(order), device=order.device)
    owners = slots.new_zeros(total).index_copy_(0, place, slots // chosen.shape[1])
    return place.view_as(chosen), owners


class KernelSlices(NamedTuple):
    """Slices for the grouped kernel; ``ends`` (E,) int32, each a multiple of ``ALIGNED``."""

    ends: Tensor

    def per_expert(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See ``Slices``; rows beyond the last slice are undefined."""
        return F.grouped_mm(rows, weights, offs=self.ends)

    def outer_products(self, left: Tensor, right: Tensor) -> Tensor:
        """See ``Slices``."""
        return F.grouped_mm(left.T, right, offs=self.ends)


class ListedSlices(NamedTuple):
    """Slices whose lengths are known; one batched product where all are equal."""

    loads: Sequence[int]

    def per_expert(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See ``Slices``."""
        if self._equal():
            return torch.bmm(rows.view(len(self.loads), -1, rows.shape[1]), weights).flatten(0, 1)
        output = rows.new_empty(len(rows), weights.shape[2])
        parts = zip(
            rows.split(self.loads), weights.unbind(0), output.split(self.loads), strict=True
        )
        for part, weight, result in parts:
            torch.mm(part, weight, out=result)
        return output

    def outer_products(self, left: Tensor, right: Tensor) -> Tensor:
        """See ``Slices``."""
        if self._equal():
            left, right = (p.view(len(self.loads), -1, p.shape[1]) for p in (left, right))
            return torch.bmm(left.mT, right)
        output = left.new_empty(len(self.loads), left.shape[1], right.shape[1])
        parts = zip(left.split(self.loads), right.split(self.loads), output.unbind(0), strict=True)
        for part, other, result in parts:
            torch.mm(part.T, other, out=result)
        return output

    def _equal(self) -> bool:
        return min(self.loads) == max(self.loads)


def _added(rows: Tensor, place: Tensor) -> Tensor:
    """Add each token's rows of (S, D), which lie at ``place`` (N, K): (N, D)."""
    kernels = kernels_for(rows)
    if kernels is not None:
        return kernels.add_rows(rows, place)
    if rows.is_cuda:
        # Compiled, nothing is written between reading and adding.
        return rows.index_select(0, place.flatten()).view(*place.shape, -1).sum(1)
    return F.embedding_bag(place, rows, mode="sum")


def _activated(hidden: Tensor, factors: Tensor) -> Tensor:
    """Return ``silu(gate) * up * factors``, (S, F), of ``hidden`` (S, 2F)."""
    gate, up = hidden.chunk(2, dim=-1)
    kernels = kernels_for(hidden, factors)
    if kernels is not None:
        return kernels.swiglu(gate, up, factors)
    return F.silu(gate) * up * factors


def _activated_backward(grad: Tensor, hidden: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``hidden`` (S, 2F) and ``factors`` (S, 1)."""
    gate, up = hidden.chunk(2, dim=-1)
    kernels = kernels_for(grad, hidden, factors)
    if kernels is not None:
        grad_hidden, grad_factors = torch.empty_like(hidden), torch.empty_like(factors)
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        kernels.swiglu_backward(grad, gate, up, grad_gate, grad_up, factors, grad_factors)
        return grad_hidden, grad_factors
    active = F.silu(gate)
    grad_factors = (grad * active * up).sum(-1, keepdim=True)
    grad_inner = grad * factors
    grad_gate = torch.ops.aten.silu_backward(grad_inner * up, gate)
    return torch.cat((grad_gate, grad_inner * active), dim=-1), grad_factors


def _gathered(x: Tensor, tokens: Tensor) -> Tensor:
    lookup = lookup_for(tokens, x)
    return x.index_select(0, tokens) if lookup is None else lookup.gather(x.contiguous(), tokens)


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
        slices: Slices,
    ) -> Tensor:
        rows = _gathered(x, tokens)
        hidden = slices.per_expert(rows, gate_up)
        inner = _activated(hidden, factors)
        outer = slices.per_expert(inner, down)
        ctx.save_for_backward(rows, factors, hidden, inner, gate_up, down, tokens, place)
        ctx.slices = slices
        return _added(outer, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, factors, hidden, inner, gate_up, down, tokens, place = ctx.saved_tensors
        slices: Slices = ctx.slices
        grad_outer = _gathered(grad, tokens)
        grad_down = slices.outer_products(inner, grad_outer)
        grad_inner = slices.per_expert(grad_outer, down.mT)
        grad_hidden, grad_factors = _activated_backward(grad_inner, hidden, factors)
        grad_gate_up = slices.outer_products(rows, grad_hidden)
        grad_rows = slices.per_expert(grad_hidden, gate_up.mT)
        grad_x = _added(grad_rows, place)
        return grad_x, grad_factors, grad_gate_up, grad_down, None, None, None


class _ByKernel(torch.autograd.Function):
    """The same in one compiled pass each way."""

    @staticmethod
    def forward(
        ctx: Any,
        functions: Compiled,
        place: Tensor,
        tokens: Tensor,
        sizes: Tensor,
        x: Tensor,
        weights: Tensor,
        *matrices: Tensor,
    ) -> Tensor:
        x, weights, gate_up, down, *shared = (t.contiguous() for t in (x, weights, *matrices))
        beside, kept = None, None
        if functions.beside is not None:
            beside, kept = functions.beside.forward(x, *shared)
        rows = Sorted(weights, place, tokens, sizes)
        output, hidden = functions.experts.forward(x, rows, gate_up, down, beside)
        ctx.save_for_backward(*rows, x, hidden, kept, gate_up, down, *shared)
        ctx.functions = functions
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        rows, (x, hidden, kept, gate_up, down, *shared) = Sorted(*saved[:4]), saved[4:]
        grad, beside = grad.contiguous(), None
        of_shared: Sequence[Tensor] = ()
        if ctx.functions.beside is not None:
            beside, *of_shared = ctx.functions.beside.backward(grad, x, *shared, kept)
        given = grad, x, rows, gate_up, down, hidden, beside
        return None, None, None, None, *ctx.functions.experts.backward(*given), *of_shared
