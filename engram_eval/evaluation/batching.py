"""How many sequences go through a model at once, and how they are padded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

Item = TypeVar("Item")

# What a forward pass costs beside its tokens, in tokens of a small model.
PASS_COST = 384


class Size(NamedTuple):
    """What one sequence needs; a batch needs the largest of each, times its rows.

    Attributes:
        new: tokens to compute.
        columns: tokens in the cache afterwards.
        logits: positions whose logits are made.
    """

    new: int
    columns: int
    logits: int

    def widest(self, other: "Size") -> "Size":
        """Return the larger of each."""
        return Size(*map(max, self, other))


@dataclass(frozen=True)
class Budget:
    """Most that a batch may need; a single sequence may always go.

    Attributes:
        tokens: computed, padding included.
        columns: held in caches.
        logits: positions whose logits are made.
        pass_cost: tokens that may be padded to save a batch.
    """

    tokens: float = math.inf
    columns: float = math.inf
    logits: float = math.inf
    pass_cost: int = PASS_COST

    def allows(self, rows: int, size: Size) -> bool:
        """Tell whether ``rows`` sequences of a size fit."""
        needed = (rows * size.new, rows * size.columns, rows * size.logits)
        allowed = (self.tokens, self.columns, self.logits)
        return all(a <= b for a, b in zip(needed, allowed, strict=True))


def cut_batches(
    items: Sequence[Item], sizes: Sequence[Size], budget: Budget
) -> Iterator[list[Item]]:
    """Cut a list into batches of neighbours within the budget, at the least cost.

    A batch costs its tokens with their padding, and the budget's ``pass_cost``.

    Args:
        items: longest first, so that little is padded.
        sizes: of each item.
        budget: of each batch.
    """
    changes = [i for i in range(1, len(sizes)) if sizes[i].new != sizes[i - 1].new]
    borders = [0, *changes, len(sizes)] if sizes else [0]
    for first, last in _cheapest_parts(sizes, borders, budget):
        yield from _fill(items[first:last], sizes[first:last], budget)


def _cheapest_parts(
    sizes: Sequence[Size], borders: Sequence[int], budget: Budget
) -> list[tuple[int, int]]:
    """Choose among ``borders`` those whose parts cost least; each is about a batch, or longer."""
    best: list[tuple[float, int]] = [(0.0, 0)] * len(borders)
    for first in reversed(range(len(borders) - 1)):
        width = sizes[borders[first]].new
        options = []
        for last in range(first + 1, len(borders)):
            tokens = (borders[last] - borders[first]) * width
            passes = max(1, math.ceil(tokens / budget.tokens))
            options.append((tokens + passes * budget.pass_cost + best[last][0], last))
            if tokens > budget.tokens:
                break
        best[first] = min(options)
    parts, at = [], 0
    while at < len(borders) - 1:
        after = best[at][1]
        parts.append((borders[at], borders[after]))
        at = after
    return parts


def _fill(items: Sequence[Item], sizes: Sequence[Size], budget: Budget) -> Iterator[list[Item]]:
    """Cut a list into batches that are as full as the budget allows."""
    batch: list[Item] = []
    widest = Size(0, 0, 0)
    for item, size in zip(items, sizes, strict=True):
        wider = widest.widest(size)
        if batch and not budget.allows(len(batch) + 1, wider):
            yield batch
            batch, wider = [], size
        batch.append(item)
        widest = wider
    if batch:
        yield batch


def pad_left(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> torch.Tensor:
    """Stack token rows, (B, width), zeros before the shorter ones."""
    return torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)


def pad_right(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> torch.Tensor:
    """Stack token rows, (B, width), zeros behind the shorter ones."""
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)
