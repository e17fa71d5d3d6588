"""Operands of matrix products under autocast."""

import torch


def as_operand(x: torch.Tensor) -> torch.Tensor:
    """Cast ``x`` to autocast's dtype where autocast is on.

    Autocast itself casts once per product; an input that several products share is cast here once.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def rounds_weights(dtype: torch.dtype) -> bool:
    """Whether autocast on a CPU rounds weights for products to ``dtype``."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype
