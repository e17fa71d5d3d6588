"""From token ids to rows of a table on a CPU: three passes, compiled."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, ID, SIZE, Functions, in_reach

LARGEST = 2**33
"""Of a prime: every step of a remainder is then exact in double precision."""


class Hashing(NamedTuple):
    """The constants of a memory's hash, as ``hash_history`` takes them.

    Attributes:
        multipliers: (longest,) int64.
        lengths: (orders,) int64, ascending.
        heads: (orders * heads, 3) float64: a head's prime, its inverse, what is added.
    """

    multipliers: Tensor
    lengths: Tensor
    heads: Tensor


def hashing(
    lengths: tuple[int, ...], primes: tuple[int, ...], multipliers: tuple[int, ...], offset: bool
) -> Hashing:
    """Prepare the constants; with ``offset`` a head's rows lie behind those of the heads before."""
    modulus = torch.tensor(primes, dtype=torch.float64, device="cpu")
    before = modulus.cumsum(0) - modulus if offset else torch.zeros_like(modulus)
    heads = torch.stack((modulus, modulus.reciprocal(), before), dim=1)
    multiplied, taken = (torch.tensor(each, device="cpu") for each in (multipliers, lengths))
    return Hashing(multiplied, taken, heads)


class NativeLookup(Functions):
    """The functions of ``lookup_kernels.cpp``, on tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "look_back": (*[ADDRESS] * 2, SIZE, ID, ID, ADDRESS, *[SIZE] * 4),
        "hash_history": (*[ADDRESS] * 3, SIZE, *[ADDRESS] * 2, *[SIZE] * 2),
        **dict.fromkeys(("add_at", "add_rounded_at"), (*[ADDRESS] * 2, *[SIZE] * 2, ADDRESS, SIZE)),
        **dict.fromkeys(("gather", "gather_rounded"), (ADDRESS, *[SIZE] * 2, *[ADDRESS] * 2, SIZE)),
    }
    RETURNS = ID

    def look_back(
        self, ids: Tensor, compressed: Tensor, pad: int, boundary: int, new: int, longest: int
    ) -> Tensor:
        """Return what the last ``new`` positions look back on, (longest, B, new).

        Args:
            ids: (B, S) int64; below 0 where there is none.
            compressed: (V,) int64, what each id counts as.
            pad: id that counts where nothing is seen.
            boundary: id that nothing is seen from on; -1 for none.
            new: positions.
            longest: ids of the longest n-gram.

        Raises:
            IndexError: an id is not below V.
        """
        ids = ids.contiguous()
        history = ids.new_empty(longest, ids.shape[0], new)
        given = ids, compressed, compressed.shape[0], pad, boundary
        wrong = self._call("look_back", *given, history, *ids.shape, new, longest)
        if wrong >= 0:
            raise IndexError(f"token id {wrong} of a vocabulary of {len(compressed)}")
        return history

    def hash_history(self, history: Tensor, hashing: Hashing) -> Tensor:
        """Return the rows (B, T, orders * heads) of ``history`` (longest, B, T)."""
        history, heads = history.contiguous(), hashing.heads.shape[0]
        _, batch, length = history.shape
        rows, orders = history.new_empty(batch, length, heads), hashing.lengths.shape[0]
        given = history, hashing.multipliers, hashing.lengths, orders, hashing.heads
        self._call("hash_history", *given, rows, batch * length, heads // orders)
        return rows

    def gather(self, table: Tensor, rows: Tensor, rounded: bool = False) -> Tensor:
        """Return the rows of ``table`` (R, D) that are named: (..., D).

        Args:
            table: see above; float32 if they are to be rounded.
            rows: (...) int64.
            rounded: to bfloat16.

        Raises:
            IndexError: there is no such row.
        """
        rows = rows.contiguous()
        height, width = table.shape
        name, dtype, step = "gather", table.dtype, width * table.element_size()
        if rounded:
            name, dtype, step = "gather_rounded", torch.bfloat16, width
        output = table.new_empty(*rows.shape, width, dtype=dtype)
        wrong = self._call(name, table, height, step, rows, output, rows.numel())
        if wrong >= 0:
            raise IndexError(f"row {int(rows.flatten()[wrong])} of a table of {len(table)}")
        return output

    def gathered_gradient(self, grad: Tensor, rows: Tensor, table_rows: int) -> Tensor:
        """Return the gradient (R, D) of a table of which ``rows`` were gathered.

        Args:
            grad: (..., D) float32 or bfloat16, of what was gathered.
            rows: (...) int64.
            table_rows: R.
        """
        grad, rows = grad.contiguous(), rows.contiguous()
        width = grad.shape[-1]
        output = grad.new_empty(table_rows, width, dtype=torch.float32)
        name = "add_rounded_at" if grad.dtype == torch.bfloat16 else "add_at"
        self._call(name, grad, rows, rows.numel(), width, output, table_rows)
        return output


def lookup_for(numbers: Tensor, *others: Tensor) -> NativeLookup | None:
    """Return the functions if they exist and can work on ``numbers``, int64, and the others."""
    wide = numbers.dtype == torch.int64
    return NativeLookup.load() if wide and in_reach(numbers, *others) else None
