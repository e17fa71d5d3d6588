"""How a GPU multiplies numbers in single precision, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROUNDED = "high"
"""What torch calls factors rounded to 10 bits of mantissa (TF32), with sums in single precision."""


@contextmanager
def tensor_cores(device: torch.device | str) -> Iterator[None]:
    """Let a GPU's matrix units multiply, and put the precision back; a CPU's stays as it is.

    By the data sheet of an H100 they are seven times as fast as the rest of it. bfloat16, in which
    models are trained, keeps 7 bits.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ROUNDED)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
