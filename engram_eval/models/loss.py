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

IGNORE_INDEX = -100
LEAST_PROBABILITY = 1e-30
"""Well above the smallest normal float32."""
CPU_CHUNK = 512
"""512 x 4096 floats stay in the cache."""
GPU_CHUNK = 8192
"""Large enough that products run at full rate; 8192 x 16384 floats are half a gigabyte."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int | None = None
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

    Returns:
        Scalar; NaN where every label is -100, as in ``F.cross_entropy``.
    """
    return losses_by_token(hidden, weight, labels, chunk_tokens).mean


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
) -> Losses:
    """Return what ``linear_cross_entropy`` returns, and what it is the mean of.

    Args:
        hidden: see ``linear_cross_entropy``, also for the next three.
        weight: (V, D).
        labels: (N,).
        chunk_tokens: tokens whose logits exist at once.
        fused: let ``torch.compile`` make one kernel of what happens between two products.
    """
    device = hidden.device.type
    if chunk_tokens is None:
        chunk_tokens = CPU_CHUNK if device == "cpu" else GPU_CHUNK
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return Losses(
            *_LinearCrossEntropy.apply(
                hidden, weight, labels, chunk_tokens, dtype, torch.is_grad_enabled(), fused
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
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        kept = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        # Most batches ignore nothing: they need no copy.
        dense = len(kept) == len(labels)
        rows, targets = (hidden, labels) if dense else (hidden[kept], labels[kept])
        want_hidden, want_weight = (grad and need for need in ctx.needs_input_grad[:2])
        grad_rows = torch.empty_like(rows) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(dtype)) if want_weight else None
        each = _accumulate(
            rows.to(dtype), weight.to(dtype), targets, chunk_tokens, grad_rows, grad_weight, fused
        )
        mean = each.mean() if len(kept) else each.new_full((), float("nan"))
        if not dense:
            each = each.new_zeros(len(labels)).index_copy_(0, kept, each)
        if grad_rows is not None and not dense:
            grad_rows = torch.zeros_like(hidden).index_copy_(0, kept, grad_rows)
        ctx.save_for_backward(grad_rows, grad_weight)
        ctx.count, ctx.weight_dtype = len(kept), weight.dtype
        ctx.mark_non_differentiable(each)
        return mean, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        scale = grad_loss / ctx.count
        hidden = None if grad_rows is None else grad_rows * scale.to(grad_rows.dtype)
        weight = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are kept: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _accumulate(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_tokens: int,
    grad_rows: Tensor | None,
    grad_weight: Tensor | None,
    fused: bool,
) -> Tensor:
    """Return the loss of every row, (N,), and fill the gradients of their sum in place."""
    losses = torch.empty(len(rows), dtype=_wide(rows.dtype), device=rows.device)
    wanted = grad_rows is not None or grad_weight is not None
    one_chunk = _compiled_chunk() if fused and wanted else _loss_and_error
    for start in range(0, len(rows), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        logits = rows[part] @ weight.T
        if not wanted:
            losses[part], _ = _chunk(logits, targets[part])
            continue
        losses[part], error = one_chunk(logits, targets[part])
        if grad_rows is not None:
            grad_rows[part] = error @ weight
        if grad_weight is not None:
            grad_weight += error.T @ rows[part]
    return losses


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


def _to_be_fused(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same without looking at any value, so that two kernels are enough."""
    wide = logits.to(_wide(logits.dtype))
    log_z = wide.logsumexp(-1, keepdim=True)
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    error = (wide - log_z).exp() - hit.to(wide.dtype)
    return log_z.squeeze(1) - wide.gather(1, targets[:, None]).squeeze(1), error.to(logits.dtype)


@functools.cache
def _compiled_chunk() -> Any:
    return torch.compile(_to_be_fused)
