"""Cross-entropy over a vocabulary without keeping the logits.

The float logits of a batch, (N, V), are the largest tensor of a small language model's step. Here
they exist for one chunk of tokens at a time: loss and both gradients are computed in the forward
pass, and the backward pass only scales them.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native import BLOCK
from .native_kernels import kernels_for
from .native_loss import loss_for
from .precision import widened

IGNORE_INDEX = -100
LEAST_PROBABILITY = 1e-30
"""Well above the smallest normal float32."""
CPU_CHUNK = 512
"""512 x 4096 floats stay in the cache."""
GPU_CHUNK = 8192
"""Large enough that products run at full rate; 8192 x 16384 floats are half a gigabyte."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    chunk_tokens: int | None = None,
    items: Tensor | int | None = None,
) -> Tensor:
    """Return the mean cross-entropy of ``hidden @ weight.T`` against the labels.

    Equals ``F.cross_entropy(F.linear(hidden, weight).float(), labels)``. Under autocast the three
    products run in the autocast dtype; softmax, loss and the weight's gradient accumulate in
    float32 (float64 where the inputs are).

    Args:
        hidden: (N, D) final hidden states.
        weight: (V, D) output embedding.
        labels: (N,) int64 targets; -100 is left out of the mean.
        chunk_tokens: tokens whose logits exist at once; None for what suits the device.
        items: what the sum is divided by instead of the number of labels that are not -100.

    Returns:
        Scalar; NaN where every label is -100, as in ``F.cross_entropy``; 0 beside ``items``.
    """
    return losses_by_token(hidden, weight, labels, chunk_tokens, items=items).mean


class Losses(NamedTuple):
    """Cross-entropy in nats.

    Attributes:
        mean: scalar, over the labels that are not -100; differentiable.
        each: (N,) of every token, 0 where the label is -100; no gradient flows through it.
    """

    mean: Tensor
    each: Tensor


def losses_by_token(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    chunk_tokens: int | None = None,
    fused: bool = False,
    masked: bool | None = None,
    items: Tensor | int | None = None,
) -> Losses:
    """Return what ``linear_cross_entropy`` returns, and what it is the mean of.

    Args:
        hidden: see ``linear_cross_entropy``, also for the next three.
        weight: (V, D).
        labels: (N,).
        chunk_tokens: tokens whose logits exist at once.
        fused: let ``torch.compile`` make one kernel of what happens between two products.
        masked: mask what labels of -100 contribute, and look at no value, for which a CPU would
            wait for a GPU, instead of leaving their tokens out; by default there and where fused.
        items: see ``linear_cross_entropy``.
    """
    device = hidden.device.type
    on_cpu = device == "cpu"
    if chunk_tokens is None:
        chunk_tokens = CPU_CHUNK if on_cpu else GPU_CHUNK
    masked = fused or not on_cpu if masked is None else masked
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return Losses(
            *_LinearCrossEntropy.apply(
                hidden,
                weight,
                labels,
                chunk_tokens,
                dtype,
                torch.is_grad_enabled(),
                masked,
                fused,
                items,
            )
        )


class _LinearCrossEntropy(torch.autograd.Function):
    """Chunked loss; the gradients wait in ``ctx`` for the scale of the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_tokens: int,
        dtype: torch.dtype,
        grad: bool,
        masked: bool,
        fused: bool,
        items: Tensor | int | None,
    ) -> tuple[Tensor, Tensor]:
        counted = labels != IGNORE_INDEX
        kept = None if masked else counted.nonzero().squeeze(1)
        if kept is not None and len(kept) == len(labels):
            # Most batches ignore nothing: they need no copy.
            kept = None
        rows, targets = (hidden, labels) if kept is None else (hidden[kept], labels[kept])
        want_hidden, want_weight = (grad and need for need in ctx.needs_input_grad[:2])
        chunks = _Chunks(chunk_tokens, masked, fused)
        rows = rows.to(dtype)
        native = None if fused else loss_for(rows, weight, targets)
        if native is not None:
            grad_rows = torch.empty_like(rows) if want_hidden else None
            grad_weight = torch.empty_like(weight) if want_weight else None
            tokens = -(-chunk_tokens // BLOCK) * BLOCK
            each = native(rows, weight, targets, tokens, grad_rows, grad_weight)
        else:
            grad_rows = torch.empty_like(rows) if want_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=_wide(dtype)) if want_weight else None
            given = widened(rows), widened(weight.to(dtype)), targets
            each = _accumulate(*given, chunks, grad_rows, grad_weight)
        if items is None:
            items = counted.sum() if masked else len(targets)
        none = isinstance(items, int) and items == 0
        mean = each.new_full((), float("nan")) if none else each.sum() / items
        if kept is not None:
            each = each.new_zeros(len(labels)).index_copy_(0, kept, each)
        if kept is not None and grad_rows is not None:
            grad_rows = torch.zeros_like(hidden).index_copy_(0, kept, grad_rows.to(hidden.dtype))
        ctx.save_for_backward(grad_rows, grad_weight)
        ctx.items, ctx.dtypes = items, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(each)
        return mean, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        scale = grad_loss / ctx.items
        scaled = (
            None if grad is None else (grad * scale.to(grad.dtype)).to(dtype)
            for grad, dtype in zip((grad_rows, grad_weight), ctx.dtypes, strict=True)
        )
        return *scaled, *[None] * 7


class _Chunks(NamedTuple):
    """How many tokens are worked on at once, and how; see ``losses_by_token``."""

    tokens: int
    masked: bool
    fused: bool


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are kept: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _accumulate(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunks: _Chunks,
    grad_rows: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """Return the loss of every row, (N,), and fill the gradients of their sum in place."""
    losses = torch.empty(len(rows), dtype=_wide(rows.dtype), device=rows.device)
    wanted = grad_rows is not None or grad_weight is not None
    loss_alone = _masked_loss if chunks.masked else _loss
    loss_and_error = _masked_loss_and_error if chunks.masked else _loss_and_error
    if chunks.fused:
        loss_and_error = _compiled_chunk()
    kernels = kernels_for(rows, weight)
    for start in range(0, len(rows), chunks.tokens):
        part = slice(start, start + chunks.tokens)
        logits = rows[part] @ weight.T
        if kernels is not None:
            losses[part] = kernels.cross_entropy_(logits, targets[part], with_error=wanted)
            error = logits
        elif not wanted:
            losses[part] = loss_alone(logits, targets[part])
        else:
            losses[part], error = loss_and_error(logits, targets[part])
        if grad_rows is not None:
            grad_rows[part] = error @ weight
        if grad_weight is not None:
            grad_weight += error.T @ rows[part]
    return losses


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the losses (C,) of a chunk."""
    return _chunk(logits, targets)[0]


def _chunk(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (C,) and the probabilities (C, V) of one chunk.

    A loss is the target's -log p, which spares two passes for log Z; where p is too small to be
    exact, log Z is taken at the most probable token: log Z = max logit - log max p.
    """
    logits = logits.to(_wide(logits.dtype))
    probs = torch.softmax(logits, dim=-1)
    chosen = probs.gather(1, targets[:, None]).squeeze(1)
    losses = -chosen.log()
    rare = (chosen < LEAST_PROBABILITY).nonzero().squeeze(1)
    if len(rare):
        few = logits[rare]
        log_z = few.amax(-1) - probs[rare].amax(-1).log()
        losses[rare] = log_z - few.gather(1, targets[rare, None]).squeeze(1)
    return losses, probs


def _loss_and_error(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (C,) of a chunk, and their gradient with respect to its logits (C, V)."""
    losses, probs = _chunk(logits, targets)
    probs[torch.arange(len(probs), device=logits.device), targets] -= 1
    return losses, probs.to(logits.dtype)


def _masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return what ``_loss`` does, 0 where the target is -100, without looking at any value."""
    wide = logits.to(_wide(logits.dtype))
    given = wide.gather(1, targets.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(targets == IGNORE_INDEX, 0.0, wide.logsumexp(-1) - given)


def _masked_loss_and_error(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``_loss_and_error`` does, and zeros where the target is -100.

    Compiled, this is two kernels.
    """
    wide = logits.to(_wide(logits.dtype))
    log_z = wide.logsumexp(-1, keepdim=True)
    ignored = (targets == IGNORE_INDEX)[:, None]
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    given = wide.gather(1, targets.clamp_min(0)[:, None])
    error = torch.where(ignored, 0.0, (wide - log_z).exp() - hit.to(wide.dtype))
    losses = torch.where(ignored, 0.0, log_z - given)
    return losses.squeeze(1), error.to(logits.dtype)


@functools.cache
def _compiled_chunk() -> Any:
    return torch.compile(_masked_loss_and_error)
