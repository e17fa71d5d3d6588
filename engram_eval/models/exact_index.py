"""The collision-free control: a row of its own for each n-gram on a list, one for all others."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .hashing import INT64_MAX, TokenHistory

# Tokens whose n-grams are collected at once.
PIECE = 2**20


def ngram_keys(history: torch.Tensor, order: int, base: int) -> torch.Tensor:
    """Return the n-grams of ``history`` (N, B, T) as numbers to base ``base``, (B, T)."""
    keys = torch.zeros_like(history[0])
    for back in range(order):
        keys = keys * base + history[back]
    return keys


def most_frequent(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` most frequent of ``keys`` (any shape), sorted; ties: the smaller.

    Where there are fewer, the rest is the largest integer, which is no n-gram.
    """
    distinct, times = keys.unique(return_counts=True)
    kept = distinct[times.argsort(descending=True, stable=True)[:count]]
    rest = kept.new_full((count - len(kept),), INT64_MAX)
    return torch.cat([kept.sort().values, rest])


def in_pieces(reader: TokenHistory, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield what the positions of a long text (T,) see, each (N, 1, up to PIECE)."""
    for start in range(0, len(ids), PIECE):
        piece = ids[max(0, start - reader.length) : start + PIECE]
        yield reader(piece[None], min(PIECE, len(ids) - start))


class ExactIndex(nn.Module):
    """Row numbers by look-up in sorted lists of n-grams, which are saved with the weights.

    Args:
        orders: n-gram lengths, ascending.
        rows: rows of each order, the first of which all n-grams that are not listed share.
        base: number of distinct token ids.
    """

    keys: torch.Tensor

    def __init__(self, orders: Sequence[int], rows: Sequence[int], base: int) -> None:
        super().__init__()
        self.orders, self.rows, self.base = tuple(orders), tuple(rows), base
        self.listed = False
        self.register_buffer("keys", self.no_keys())

    def no_keys(self) -> torch.Tensor:
        """Return the keys of an index that has no list yet, all -1: (R,)."""
        return torch.full((sum(self.rows) - len(self.rows),), -1, dtype=torch.int64)

    @torch.no_grad()
    def list_ngrams(self, reader: TokenHistory, ids: torch.Tensor) -> None:
        """Give the most frequent n-grams of a text ``ids`` (T,) rows of their own.

        Args:
            reader: says what each position sees.
            ids: token ids; what it has fewer of than there are rows leaves rows unused.
        """
        for order, own in zip(self.orders, self._own_keys(), strict=True):
            seen = [ngram_keys(part, order, self.base) for part in in_pieces(reader, ids)]
            own.copy_(most_frequent(torch.cat(seen, dim=1), len(own)))

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Return (B, T, orders) rows of the table for ``history`` (N, B, T)."""
        self.check()
        found, offset = [], 0
        for order, rows, own in zip(self.orders, self.rows, self._own_keys(), strict=True):
            found.append(offset + _place(own, ngram_keys(history, order, self.base)))
            offset += rows
        return torch.stack(found, dim=-1)

    def check(self) -> None:
        """Raise ``ValueError`` while the list is missing."""
        if not self.listed and bool((self.keys < 0).any()):
            raise ValueError(
                "engram_index='exact', but the model has no list of n-grams yet: "
                "call model.set_ngrams(token_ids) first"
            )
        self.listed = True

    def _own_keys(self) -> tuple[torch.Tensor, ...]:
        return self.keys.split([count - 1 for count in self.rows])


def _place(sorted_keys: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return 1 + the place of each of ``keys`` in ``sorted_keys``, 0 where it is missing."""
    if len(sorted_keys) == 0:
        return torch.zeros_like(keys)
    place = torch.searchsorted(sorted_keys, keys).clamp_max(len(sorted_keys) - 1)
    return torch.where(sorted_keys[place] == keys, place + 1, 0)
