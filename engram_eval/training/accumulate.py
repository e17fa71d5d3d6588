"""A batch in pieces, whose gradients add up to the whole batch's."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engram_eval.models.balance import balance_loss, watch_routing
from engram_eval.models.loss import Losses
from engram_eval.models.moe import MoE
from engram_eval.training.data import Batch
from engram_eval.training.lookup import Lookup


class Objective(NamedTuple):
    """What is made small (a scalar with its graph), and the losses that are reported."""

    value: Tensor
    losses: Losses


def objective(loss: Callable[[], Losses], model: nn.Module, router_coef: float) -> Objective:
    """Run a forward pass; add ``router_coef`` times the loss on the routers that it used."""
    if not router_coef:
        losses = loss()
        return Objective(losses.mean, losses)
    with watch_routing(model) as routing:
        losses = loss()
    return Objective(losses.mean + router_coef * balance_loss(routing), losses)


def accumulate(
    run: Callable[[Batch], Objective],
    model: nn.Module,
    batch: Batch,
    pieces: int,
    before: Callable[[bool], None] | None = None,
) -> Losses:
    """Run forward and backward piece by piece, so that activations of one piece exist at a time.

    Experts' loads are summed over the pieces, for the router's bias. The loss on the routers is
    each piece's own: it is no mean over tokens.

    Args:
        run: the forward pass of a piece.
        model: whose experts are counted.
        batch: of a size that ``pieces`` divides.
        pieces: how many.
        before: called before each piece, with whether it is the last.

    Returns:
        The losses of the whole batch, without a graph.
    """
    means, each, loads = [], [], dict[MoE, Tensor]()
    for number, piece in enumerate(cut(batch, pieces)):
        if before is not None:
            before(number == pieces - 1)
        value, losses = run(piece)
        (value / pieces).backward()
        means.append(losses.mean.detach() / pieces)
        each.append(losses.each.detach())
        if pieces > 1:
            _count(model, loads)
    for module, total in loads.items():
        module.last_expert_counts = total
    return Losses(torch.stack(means).sum(), torch.cat(each))


def _count(model: nn.Module, loads: dict[MoE, Tensor]) -> None:
    for module in model.modules():
        if isinstance(module, MoE) and module.last_expert_counts is not None:
            counts = module.last_expert_counts
            loads[module] = loads[module] + counts if module in loads else counts


def cut(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Cut a batch into pieces of consecutive sequences."""
    size = len(batch.inputs) // pieces
    for start in range(0, size * pieces, size):
        some = slice(start, start + size)
        lookup = batch.lookup
        if lookup is not None:
            rows = {layer: each[some] for layer, each in lookup.rows.items()}
            mixes = {layer: each[some] for layer, each in lookup.mixes.items()}
            lookup = Lookup(rows, mixes)
        domains = None if batch.domains is None else batch.domains[some]
        inputs, labels = batch.inputs[some], batch.labels[some]
        yield Batch(inputs, labels, batch.sequences[some], batch.epoch, domains, lookup)
