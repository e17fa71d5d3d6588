"""One training step: forward, backward, clipping, the optimiser, the routers' bias."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.config import TrainConfig
from engram_eval.models.balance import update_router_bias
from engram_eval.models.loss import Losses, losses_by_token
from engram_eval.models.moe import MoE
from engram_eval.training.accumulate import accumulate, objective
from engram_eval.training.data import Batch
from engram_eval.training.optim import Norms, Trained, clip_gradients, step_where, trained
from engram_eval.training.recorded import Recorded, can_be_recorded

Show = Callable[[Batch], Mapping[str, Tensor]]
"""Returns scalars about what a model has just done with a batch."""


class Outcome(NamedTuple):
    """What a training step showed, on the device.

    Attributes:
        loss: scalar, nats per token, before the step.
        each: (B * T,) nats of every token.
        norms: of the gradients before clipping.
        finite: scalar, whether loss and gradients are; else parameters are left as they are.
        shown: scalars by name.
    """

    loss: Tensor
    each: Tensor
    norms: Norms
    finite: Tensor
    shown: Mapping[str, Tensor]


def loss_of(model: PreTrainedModel, batch: Batch, bf16: bool, fused: bool = False) -> Losses:
    """Return the losses of a batch, in nats per token; ``fused``: see ``losses_by_token``."""
    rows = batch.lookup.rows if batch.lookup is not None and batch.lookup.rows else None
    with torch.autocast(batch.inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        decoder = model.model
        hidden = decoder(input_ids=batch.inputs, use_cache=False, engram_rows=rows)
        return losses_by_token(
            hidden.last_hidden_state.flatten(0, 1),
            model.lm_head.weight,
            batch.labels.flatten(),
            fused=fused,
        )


def nothing(batch: Batch) -> Mapping[str, Tensor]:
    """Show nothing of a batch."""
    return {}


def stepper(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    show: Show = nothing,
) -> Callable[[Batch], Outcome]:
    """Return what takes one optimiser step after the other; the caller sets the learning rate.

    Where the loss or a gradient is not finite parameters are left as they are, and the caller finds
    it in what is returned. A GPU is not waited for if the optimiser can do this by itself. With
    ``config.compile`` it replays what leads up to the optimiser (see ``Recorded``): outcomes are
    then overwritten by the next step.

    Args:
        model: trained in place.
        optimizer: of its parameters.
        config: of the run.
        show: called after each forward and backward pass.
    """
    parts = _Parts(trained(model), [m for m in model.modules() if isinstance(m, MoE)])
    work: Callable[[Batch], Outcome] = partial(_gradients, model, parts, optimizer, config, show)
    if config.compile and can_be_recorded(model, config.autocast_bf16):
        work = Recorded(work)

    def step(batch: Batch) -> Outcome:
        if not model.training:
            model.train()
        outcome = work(batch)
        step_where(optimizer, outcome.finite)
        return outcome

    return step


class _Parts(NamedTuple):
    """Parts of a model, found once."""

    trained: Trained
    mixtures: list[MoE]


def _gradients(
    model: PreTrainedModel,
    parts: _Parts,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    show: Show,
    batch: Batch,
) -> Outcome:
    """Leave clipped gradients in the parameters, and the routers' bias moved."""
    optimizer.zero_grad(set_to_none=True)
    losses = accumulate(
        lambda piece: objective(
            lambda: loss_of(model, piece, config.autocast_bf16, config.compile),
            model,
            config.router_aux_loss_coef,
        ),
        model,
        batch,
        config.accumulate,
    )
    norms = clip_gradients(parts.trained, config.clip_norm)
    finite = losses.mean.isfinite() & norms.total.isfinite()
    if config.router_bias_rate:
        update_router_bias(parts.mixtures, config.router_bias_rate * finite.float())
    return Outcome(losses.mean, losses.each, norms, finite, show(batch))
