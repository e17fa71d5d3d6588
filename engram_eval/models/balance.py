"""Keeps experts evenly loaded: a loss on the routers, and a bias that chooses without a loss.

As long as all tokens look alike to the routers one expert gets every token; in a short training a
bias that moves by the customary thousandth a step ends this late (LOG.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .moe import MoE, Router, expert_counts


class Routing(NamedTuple):
    """What one router did in one forward pass.

    Attributes:
        probabilities: (N, E) scores of every token, scaled to sum to one.
        chosen: (N, K) expert numbers.
    """

    probabilities: Tensor
    chosen: Tensor


@contextmanager
def watch_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect what every router of ``model`` does while the block runs, layer by layer."""
    found: list[Routing] = []

    def keep(router: Router, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _, chosen = output
        found.append(Routing(router.probabilities(logits), chosen))

    routers = [module for module in model.modules() if isinstance(module, Router)]
    handles = [router.register_forward_hook(keep) for router in routers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(routing: Sequence[Routing]) -> Tensor | float:
    """Return ``sum over layers of E * sum_i f_i P_i``, 0.0 without layers.

    ``f_i`` is the share of choices that fell on expert i, ``P_i`` its mean probability: a layer
    whose experts are evenly loaded and evenly liked has 1, the least that it can have when both
    agree (arXiv:2101.03961 eq. 4; over a batch what arXiv:2412.19437 eq. 17-20 takes over each
    sequence).
    """
    return sum((_one(layer) for layer in routing), 0.0)


def _one(layer: Routing) -> Tensor:
    experts = layer.probabilities.shape[1]
    share = expert_counts(layer.chosen, experts) / layer.chosen.numel()
    return experts * (share * layer.probabilities.mean(dim=0)).sum()


@torch.no_grad()
def update_router_bias(modules: Iterable[nn.Module], rate: float | Tensor) -> None:
    """Raise the bias of experts below the mean load by ``rate``, lower the others'.

    Uses the last forward pass; call it after each optimiser step (arXiv:2408.15664 algorithm 1).

    Args:
        modules: those that are MoE layers are looked at.
        rate: see above.

    Raises:
        ValueError: a MoE layer has not run yet.
    """
    for module in modules:
        if isinstance(module, MoE):
            if module.last_expert_counts is None:
                raise ValueError("update_router_bias needs a forward pass first")
            load = module.last_expert_counts.float()
            module.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
