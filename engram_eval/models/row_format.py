"""Quantised rows: a byte for each number, and a scale for each row.

A row lies in one piece, its codes and then the four bytes of its float32 scale, so that reading it
touches one place in memory or on disk.
"""

from typing import NamedTuple

import torch

SCALE_BYTES = 4
CHUNK = 2**16
"""Rows that are quantised at once."""
SMALLEST_SCALE, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
EPSILON = torch.finfo(torch.float32).eps


class RowFormat(NamedTuple):
    """How rows are quantised.

    Attributes:
        dtype: of a code; it also tells a saved table's format.
        largest: code of the largest number in a row.
    """

    dtype: torch.dtype
    largest: float

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """Quantise ``rows`` (N, row_dim).

        A number differs from what ``unpack`` makes of it by at most half a scale for int8. For fp8
        (e4m3: three bits of mantissa) it is at most a sixteenth of the number, or a scale / 1024
        where that is more.

        Returns:
            (N, row_dim + 4) uint8.

        Raises:
            ValueError: a number that is not finite.
        """
        rows = rows.float()
        peaks = rows.abs().amax(dim=-1, keepdim=True)
        if not bool(peaks.isfinite().all()):
            raise ValueError("rows with numbers that are not finite cannot be quantised")
        # The largest code of a scale that is rounded up may be more than a float can be.
        largest_scale = LARGEST / (self.largest * (1 + EPSILON))
        scales = (peaks / self.largest).clamp(SMALLEST_SCALE, largest_scale)
        codes = (rows / scales).clamp(-self.largest, self.largest)
        if not self.dtype.is_floating_point:
            codes = codes.round()
        return torch.cat([codes.to(self.dtype).view(torch.uint8), scales.view(torch.uint8)], -1)

    def saved(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` (N, row_dim) as a file holds them, (N, row_dim + 4) of ``dtype``."""
        parts = [self.pack(some) for some in rows.split(CHUNK)]
        return torch.cat(parts).view(self.dtype)

    def unpack(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the rows of ``packed`` (..., row_dim + 4), (..., row_dim) in ``dtype``."""
        # A copy, which begins where a float may.
        scales = packed[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
        scales = scales.view(torch.float32)
        if self.dtype == torch.float8_e4m3fn and packed.device.type == "cpu":
            return (_halves(packed).float()[..., :-SCALE_BYTES] * (256 * scales)).to(dtype)
        return (packed[..., :-SCALE_BYTES].view(self.dtype).float() * scales).to(dtype)


def _halves(codes: torch.Tensor) -> torch.Tensor:
    """Return 1/256 of the e4m3 numbers that bytes stand for, in float16, exactly.

    Sign, exponent and mantissa move to their places there, whose exponent is less by 8. A CPU
    converts float8 number by number, four times as slowly.
    """
    wide = codes.view(torch.int8).to(torch.int16)
    return wide.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)


ROW_FORMATS = {"int8": RowFormat(torch.int8, 127.0), "fp8": RowFormat(torch.float8_e4m3fn, 448.0)}
