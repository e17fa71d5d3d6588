"""Operands of matrix products under autocast.

A processor without instructions for bfloat16 multiplies it in torch at a tenth of its rate in
single precision, or less. There rounded operands are widened again: products of two such numbers
are exact in single precision, and sums are kept in it anyway.
"""

import functools
import platform

import torch


def as_operand(x: torch.Tensor) -> torch.Tensor:
    """Cast ``x``, of any shape, to autocast's dtype where autocast is on.

    Autocast itself casts once per product; an input that several products share is cast here once.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def rounds_weights(dtype: torch.dtype) -> bool:
    """Whether autocast on a CPU rounds weights for products to ``dtype``."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype


def multiplies_slowly(x: torch.Tensor) -> bool:
    """Whether torch has no instructions here for products of ``x``, which is in bfloat16."""
    return x.dtype == torch.bfloat16 and x.is_cpu and not has_instructions()


def widened(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in single precision if torch would multiply it slowly, else as it is."""
    return x.float() if multiplies_slowly(x) else x


@functools.cache
def has_instructions() -> bool:
    """Whether torch multiplies bfloat16 by instructions for it on this CPU."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
