"""Remainders of large integers by a few constants, without a division: for processors.

A 64-bit division takes some ten cycles and no vector unit does it. Four digits of 16 bits times
``2^(16 i) mod p`` add up to a number that leaves the same remainder and is below ``2^18 p``: one
small product of matrices in double precision, where all of it is exact. What is left is divided by
a multiplication.
"""

import functools
import sys
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

DIGITS, BITS = 4, 16
LARGEST = 2**29
"""Of a modulus: ``floor(s / p)`` of ``s < 2^18 p`` is then certain.

Inverses are made larger by 2^-48, and seven roundings change a quotient by less than 2^-50 of
itself: never below a whole number that it has reached, nor up to one that it has not, because it
stays 1/p below that and ``2^18 (2^-48 + 2^-50) < 2^-29``.
"""
FEWEST = 256
"""Numbers from which on this is faster than dividing."""
MAGIC = 2.0**52
"""A whole number below this, added to it, stands in the last bits of the sum."""
MAGIC_BITS = 0x4330000000000000


class Constants(NamedTuple):
    """What remainders by certain moduli take.

    Attributes:
        weights: (orders * DIGITS, heads) ``2^(16 i) mod p`` for the digits of a head's number.
        inverses, moduli: (heads,).
        shifts: (heads,) what is added to a remainder, and ``MAGIC``.
    """

    weights: torch.Tensor
    inverses: torch.Tensor
    moduli: torch.Tensor
    shifts: torch.Tensor


def worthwhile(numbers: torch.Tensor) -> bool:
    """Tell whether ``remainders`` of ``numbers`` are faster than a division, and known here.

    Not on a GPU; not where a graph is traced, which may be run elsewhere; and not where operations
    are counted: a hash has no floating-point operations, and its product would pass for some.
    """
    watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    here = numbers.device.type == "cpu" and sys.byteorder == "little"
    return here and not watched and numbers.numel() >= FEWEST


def remainders(
    numbers: torch.Tensor, moduli: tuple[int, ...], offsets: tuple[int, ...]
) -> torch.Tensor:
    """Return ``numbers[..., h // (heads / orders)] % moduli[h] + offsets[h]``, (..., heads).

    Args:
        numbers: (..., orders) int64, 0 or more.
        moduli: one for each head, orders outermost; at most ``LARGEST``.
        offsets: what is added, 0 or more; sums stay below 2^52.
    """
    orders = numbers.shape[-1]
    known = _constants(moduli, offsets, orders)
    digits = numbers.reshape(-1, orders).view(torch.uint16).double()
    sums = digits @ known.weights
    quotients = torch.mul(sums, known.inverses).floor_()
    sums.addcmul_(quotients, known.moduli, value=-1).add_(known.shifts)
    return sums.view(torch.int64).bitwise_xor_(MAGIC_BITS).view(*numbers.shape[:-1], len(moduli))


@functools.lru_cache(maxsize=64)
def _constants(moduli: tuple[int, ...], offsets: tuple[int, ...], orders: int) -> Constants:
    weights = torch.zeros(orders * DIGITS, len(moduli), dtype=torch.float64, device="cpu")
    heads = len(moduli) // orders
    for head, modulus in enumerate(moduli):
        for digit in range(DIGITS):
            weights[head // heads * DIGITS + digit, head] = pow(2, BITS * digit, modulus)
    made = functools.partial(torch.tensor, dtype=torch.float64, device="cpu")
    return Constants(
        weights,
        made([(1 + 2.0**-48) / modulus for modulus in moduli]),
        made(moduli),
        made([each + MAGIC for each in offsets]),
    )
