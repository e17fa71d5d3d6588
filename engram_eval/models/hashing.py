"""The n-gram hash: multiplicative XOR of the last token ids, modulo one prime per head.

Source: arXiv:2601.07372 eq. 1 and DeepSeek's demonstration (``engram_demo_v1.py``): one mix per
order, whose heads differ by their prime moduli only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from . import native_lookup
from .native_lookup import lookup_for

INT64_MAX = 2**63 - 1
LAYER_SEED_STRIDE = 10007


def is_prime(number: int) -> bool:
    """Trial division; tables have far fewer than 10^12 rows, so this takes microseconds."""
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    return all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


def allot_primes(
    layers: Sequence[int], rows: Sequence[int], heads: int
) -> dict[int, tuple[int, ...]]:
    """Give every hash head the next prime >= its order's ``rows`` that no other head has.

    Primes are handed out layer by layer (in the given order), order by order, head by head.

    Returns:
        layer -> ``len(rows) * heads`` primes, orders outermost.
    """
    used: set[int] = set()
    primes = {}
    for layer in layers:
        mine: list[int] = []
        for least in rows:
            candidate = least
            for _ in range(heads):
                while candidate in used or not is_prime(candidate):
                    candidate += 1
                used.add(candidate)
                mine.append(candidate)
        primes[layer] = tuple(mine)
    return primes


def draw_multipliers(layer: int, seed: int, count: int, vocab_size: int) -> tuple[int, ...]:
    """Draw ``count`` odd multipliers so that id * multiplier never leaves int64.

    Args:
        layer: 0-based; each layer has multipliers of its own.
        seed: the model's ``engram_seed``.
        count: length of the longest n-gram.
        vocab_size: number of distinct ids after compression.
    """
    half = max(1, INT64_MAX // vocab_size // 2)
    generator = np.random.default_rng(seed + LAYER_SEED_STRIDE * layer)
    return tuple(int(draw) * 2 + 1 for draw in generator.integers(0, half, size=count))


class NgramHash(nn.Module):
    """Row numbers of a token's n-grams in the concatenated table.

    The constants are saved with the weights, so that a checkpoint does not depend on how they were
    drawn.

    Args:
        orders: n-gram lengths, ascending.
        primes: rows of each head, orders outermost: ``len(orders) * heads``.
        multipliers: one per look-back position, ``max(orders)`` of them.
    """

    primes: torch.Tensor
    multipliers: torch.Tensor

    def __init__(
        self, orders: Sequence[int], primes: Sequence[int], multipliers: Sequence[int]
    ) -> None:
        super().__init__()
        self.orders = tuple(orders)
        self.constants = {"primes": tuple(primes), "multipliers": tuple(multipliers)}
        for name, values in self.constants.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64))
        self._kept: dict[bool, _Kept] = {}

    def mixes(self, history: torch.Tensor) -> torch.Tensor:
        """Mix ``history`` (N, B, T), where [k] is the id k places back.

        Of each product the last 63 bits count. Multipliers are drawn so that there are no others,
        but a vocabulary may have grown since.

        Returns:
            (B, T, orders) numbers >= 0, one per n-gram; heads differ by what they divide them by.
        """
        terms = history * self.multipliers[:, None, None]
        found, mix = [], terms[0]
        for length in range(1, self.orders[-1] + 1):
            if length > 1:
                mix = mix ^ terms[length - 1]
            if length in self.orders:
                found.append(mix)
        return torch.stack(found, dim=-1).bitwise_and_(INT64_MAX)

    def hash_ids(self, history: torch.Tensor) -> torch.Tensor:
        """Hash ``history`` (N, B, T), where [k] is the id k places back.

        Returns:
            (B, T, heads over all orders) row numbers within each head's own table.
        """
        return self._remainders(history, offset=False)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Return (B, T, heads) rows of the concatenated table for ``history`` (N, B, T)."""
        return self._remainders(history, offset=True)

    def _remainders(self, history: torch.Tensor, offset: bool) -> torch.Tensor:
        primes, multipliers = self.primes, self.multipliers
        lookup = lookup_for(history, primes, multipliers)
        constants = None if lookup is None else self._prepared(primes, multipliers, offset)
        if lookup is not None and constants is not None:
            return lookup.hash_history(history, constants)
        heads = len(self.primes) // len(self.orders)
        found = self.mixes(history).repeat_interleave(heads, dim=-1) % self.primes
        return found + (self.primes.cumsum(0) - self.primes) if offset else found

    def _prepared(
        self, primes: torch.Tensor, multipliers: torch.Tensor, offset: bool
    ) -> native_lookup.Hashing | None:
        """Return the constants for compiled functions, made anew where a buffer has changed."""
        kept = self._kept.get(offset)
        same = kept is not None and kept.primes is primes and kept.multipliers is multipliers
        if kept is not None and same and kept.versions == (primes._version, multipliers._version):
            return kept.constants
        moduli, factors = tuple(primes.tolist()), tuple(multipliers.tolist())
        constants = None
        if max(moduli) <= native_lookup.LARGEST:
            constants = native_lookup.hashing(self.orders, moduli, factors, offset)
        # Tensors made for inference do not count their changes.
        if not (primes.is_inference() or multipliers.is_inference()):
            versions = primes._version, multipliers._version
            self._kept[offset] = _Kept(primes, multipliers, versions, constants)
        return constants


class _Kept(NamedTuple):
    """Constants for compiled functions, and the buffers in the state that they were made from."""

    primes: torch.Tensor
    multipliers: torch.Tensor
    versions: tuple[int, int]
    constants: native_lookup.Hashing | None


class TokenHistory(nn.Module):
    """The compressed ids that each position's n-grams see.

    What lies before the start of the text, is masked, or lies beyond a document end counts as the
    pad id. The document end itself is not seen either, so that a document after another one reads
    the same rows as alone.

    Args:
        vocab_size: V, size of the compression map.
        length: N, how many ids (the present one included) the longest n-gram has.
        pad_id: before compression.
        boundary_id: token that ends a document; None to look across documents.
        compressed: whether a map must be set; otherwise each id stands for itself.
    """

    compressed_ids: torch.Tensor

    def __init__(
        self, vocab_size: int, length: int, pad_id: int, boundary_id: int | None, compressed: bool
    ) -> None:
        super().__init__()
        self.length, self.pad_id, self.boundary_id = length, pad_id, boundary_id
        self.compressed = compressed
        self.checked = False
        self.register_buffer("compressed_ids", self.initial_map(vocab_size))

    def initial_map(self, vocab_size: int) -> torch.Tensor:
        """Return the identity, or -1 everywhere where a map must be set first: (V,)."""
        if self.compressed:
            return torch.full((vocab_size,), -1, dtype=torch.int64)
        return torch.arange(vocab_size)

    def resized(self, vocab_size: int) -> torch.Tensor:
        """Return the map (V,) for a vocabulary that was cut, or has grown at its end.

        Each new token is a class of its own, behind all others, whatever its text; a missing map
        stays missing.
        """
        kept = self.compressed_ids[:vocab_size]
        first, more = int(kept.max()) + 1, vocab_size - len(kept)
        new = torch.arange(first, first + more, device=kept.device)
        return torch.cat((kept, new if first else torch.full_like(new, -1)))

    def check(self) -> None:
        """Raise ``ValueError`` while the compression map is missing."""
        if self.checked:
            return
        if int(self.compressed_ids[0]) < 0:
            raise ValueError(
                "engram_compression=True, but the model has no compression map yet: "
                "call model.set_tokenizer(tokenizer) first, or set engram_compression=False"
            )
        self.checked = True

    def forward(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        """Collect what the last ``new`` positions of ``ids`` (B, S; -1 = absent) look back on.

        Returns:
            (N, B, new) compressed ids; [k] is the id k places back.
        """
        self.check()
        compressed = self.compressed_ids
        lookup = lookup_for(ids, compressed)
        if lookup is not None:
            special = self.pad_id, -1 if self.boundary_id is None else self.boundary_id
            return lookup.look_back(ids, compressed, *special, new, self.length)
        reach = self.length - 1
        ids = ids[:, -(new + reach) :]
        ids = nn.functional.pad(ids, (new + reach - ids.shape[1], 0), value=-1)
        pad, absent = self.compressed_ids[self.pad_id], ids < 0
        known = ids.masked_fill(absent, self.pad_id).flatten()
        seen = self.compressed_ids.index_select(0, known).view_as(ids)
        stop = absent if self.boundary_id is None else absent | (ids == self.boundary_id)
        # What later positions see of each one; nothing is seen beyond a stop.
        left = torch.where(stop, pad, seen)
        history = [seen[:, reach:]]
        blocked: torch.Tensor | None = None
        for back in range(1, self.length):
            window = slice(reach - back, reach - back + new)
            past = left[:, window]
            history.append(past if blocked is None else torch.where(blocked, pad, past))
            blocked = stop[:, window] if blocked is None else blocked | stop[:, window]
        return torch.stack(history)
