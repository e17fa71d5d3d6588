"""Which experts tokens go to and where their rows lie, on a CPU: compiled."""

import ctypes
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, FLAG, FLOAT, SIZE, Functions, in_reach

FEW = 8
"""Passes over a row of scores that a GPU makes sooner than ``torch.topk`` sorts it."""


class Sizes(ctypes.Structure):
    """The fields of ``struct Router`` in ``routing_kernels.cpp``."""

    _fields_ = [
        *((name, SIZE) for name in ("tokens", "width", "experts", "chosen")),
        ("normalised", FLAG),
        ("scale", FLOAT),
    ]


class Routed(NamedTuple):
    """What a router says: logits (N, E), weights (N, K) and expert numbers (N, K)."""

    logits: Tensor
    weights: Tensor
    chosen: Tensor


class NativeRouting(Functions):
    """The functions of ``routing_kernels.cpp``, on tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "route": (*[ADDRESS] * 6, Sizes),
        "route_backward": (*[ADDRESS] * 8, Sizes),
        "top_k": (ADDRESS, *[SIZE] * 3, ADDRESS),
        "place_choices": (*[ADDRESS] * 2, *[SIZE] * 3, *[ADDRESS] * 2),
    }

    def top_k(self, scores: Tensor, k: int) -> Tensor:
        """Return the numbers of the ``k`` largest of each row of ``scores`` (N, E): (N, k)."""
        scores = scores.contiguous()
        chosen = scores.new_empty(len(scores), k, dtype=torch.int64)
        self._call("top_k", scores, *scores.shape, k, chosen)
        return chosen

    def route(
        self, x: Tensor, weight: Tensor, bias: Tensor, k: int, normalised: bool, scale: float
    ) -> Routed:
        """Route ``x`` (N, D) by sigmoids; see ``Router``.

        Args:
            x: float32.
            weight: (E, D) float32.
            bias: (E,) float32, added for the choice.
            k: experts of a token.
            normalised: whether a token's weights are divided by their sum.
            scale: multiplies the weights.
        """
        tokens, experts = len(x), len(weight)
        chosen = x.new_empty(tokens, k, dtype=torch.int64)
        made = Routed(x.new_empty(tokens, experts), x.new_empty(tokens, k), chosen)
        sizes = Sizes(*x.shape, experts, k, normalised, scale)
        self._call("route", x, weight, bias, *made, sizes)
        return made

    def route_backward(
        self,
        grad: Tensor,
        grad_logits: Tensor | None,
        x: Tensor,
        weight: Tensor,
        made: Routed,
        normalised: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``x`` and ``weight``, given those of weights and logits."""
        grads = torch.empty_like(x), torch.empty_like(weight)
        sizes = Sizes(*x.shape, len(weight), made.chosen.shape[1], normalised, scale)
        given = grad, grad_logits, x, weight, made.logits, made.chosen
        self._call("route_backward", *given, *grads, sizes)
        return grads

    def place(self, chosen: Tensor, sizes: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Sort choices by expert; see ``grouped_experts``.

        Args:
            chosen: (N, K) expert numbers.
            sizes: (E,) rows of each expert's slice.
            total: S, rows of all.

        Returns:
            (N, K) the row of each choice, and (S,) whose each row is, 0 where it is nobody's.
        """
        chosen = chosen.contiguous()
        sizes, place = sizes.contiguous(), torch.empty_like(chosen)
        owners = chosen.new_zeros(total)
        self._call("place_choices", chosen, sizes, len(sizes), *chosen.shape, place, owners)
        return place, owners


def routing_for(*tensors: Tensor) -> NativeRouting | None:
    """Return the functions if they exist and can work on all of ``tensors``."""
    return NativeRouting.load() if in_reach(*tensors) else None


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the numbers of the ``k`` largest of each row of ``scores`` (N, E): (N, k) int64."""
    routing = routing_for(scores) if scores.dtype == torch.float32 else None
    if routing is not None:
        return routing.top_k(scores, k)
    if scores.is_cuda and k <= FEW:
        return _one_after_the_other(scores, k)
    return scores.topk(k, dim=-1).indices


def _one_after_the_other(scores: Tensor, k: int) -> Tensor:
    numbers = torch.arange(scores.shape[-1], device=scores.device)
    # What may not be chosen is above what has been: no number is found twice.
    scores = scores.clamp_min(torch.finfo(scores.dtype).min)
    found = [scores.argmax(-1, keepdim=True)]
    for _ in range(k - 1):
        scores = scores.masked_fill(numbers == found[-1], float("-inf"))
        found.append(scores.argmax(-1, keepdim=True))
    return torch.cat(found, dim=-1)
