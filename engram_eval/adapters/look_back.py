"""What n-grams are made of, where a memory reads the ids themselves or classes of them."""

from collections.abc import Callable

import torch
from torch import Tensor

ABSENT = -1
"""Stands for what lies before a text, or beyond a boundary."""


def look_back(
    ids: Tensor,
    length: int,
    boundary_id: int | None = None,
    sees: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return what each place's n-grams see, (N, B, T), where [k] is what stands k places back.

    Args:
        ids: token ids, (B, T).
        length: N, of the longest n-gram.
        boundary_id: token that no n-gram reaches over; behind it, it is not seen either.
        sees: ids to numbers >= 0 of the same shape, alike for tokens that the memory takes for one.
    """
    numbers = ids if sees is None else sees(ids)
    seen, blocked = [numbers], torch.zeros_like(ids, dtype=torch.bool)
    for back in range(1, length):
        before = torch.nn.functional.pad(ids, (back, 0), value=ABSENT)[:, : ids.shape[1]]
        moved = torch.nn.functional.pad(numbers, (back, 0), value=ABSENT)[:, : ids.shape[1]]
        blocked = blocked | (before == boundary_id)
        seen.append(moved.masked_fill(blocked, ABSENT))
    return torch.stack(seen)
