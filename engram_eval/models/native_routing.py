"""Which experts tokens go to and where their rows lie, on a CPU: compiled."""

import ctypes
import functools

import torch
from torch import Tensor

from .native import ADDRESS, SIZE, Functions, in_reach, library

ARGUMENTS = {
    "top_k": (ADDRESS, *[SIZE] * 3, ADDRESS),
    "place_choices": (*[ADDRESS] * 2, *[SIZE] * 3, *[ADDRESS] * 2),
}
"""Of the functions of ``routing_kernels.cpp``."""


class NativeRouting:
    """The functions of ``routing_kernels.cpp``, on tensors of a CPU."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self._call = Functions(found, ARGUMENTS)

    def top_k(self, scores: Tensor, k: int) -> Tensor:
        """Return the numbers of the ``k`` largest of each row of ``scores`` (N, E): (N, k)."""
        scores = scores.contiguous()
        chosen = scores.new_empty(len(scores), k, dtype=torch.int64)
        self._call("top_k", scores, *scores.shape, k, chosen)
        return chosen

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
    return _routing() if in_reach(*tensors) else None


@functools.cache
def _routing() -> NativeRouting | None:
    found = library()
    return None if found is None else NativeRouting(found)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the numbers of the ``k`` largest of each row of ``scores`` (N, E): (N, k) int64."""
    routing = routing_for(scores) if scores.dtype == torch.float32 else None
    return scores.topk(k, dim=-1).indices if routing is None else routing.top_k(scores, k)
