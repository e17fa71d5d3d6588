"""The residual stream of a training step on a CPU: additions and norms in one pass, compiled."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, FLOAT, SIZE, Functions, in_reach


class Normed(NamedTuple):
    """A stream after an addition.

    Attributes:
        joined: (..., D) float32, the stream.
        normed: (..., D) bfloat16, its norm times the gain.
        wide: the same in float32, if asked for.
        scales: one for each row, float32.
    """

    joined: Tensor
    normed: Tensor
    wide: Tensor | None
    scales: Tensor


class NativeStream(Functions):
    """The functions of ``stream_kernels.cpp``, on contiguous tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "join": (*[ADDRESS] * 3, SIZE),
        "join_and_norm": (*[ADDRESS] * 7, *[SIZE] * 2, FLOAT),
        "join_and_norm_backward": (*[ADDRESS] * 9, *[SIZE] * 2),
    }

    def join(self, stream: Tensor, added: Tensor) -> Tensor:
        """Return ``stream + added`` of (..., D) float32 and (..., D) bfloat16."""
        output = torch.empty_like(stream)
        self._call("join", stream, added, output, stream.numel())
        return output

    def join_and_norm(
        self, stream: Tensor, added: Tensor | None, gain: Tensor, eps: float, wide: bool
    ) -> Normed:
        """Add ``added`` (..., D) bfloat16, if given, to ``stream`` (..., D); normalise the sum.

        Args:
            stream: float32; is returned as it is where nothing is added.
            added: see above.
            gain: (D,) float32.
            eps: added to the mean square.
            wide: whether what is normed is wanted in float32, too.
        """
        width = stream.shape[-1]
        rows = stream.numel() // width
        joined = None if added is None else torch.empty_like(stream)
        normed = torch.empty_like(stream, dtype=torch.bfloat16)
        in_full = torch.empty_like(stream) if wide else None
        scales = stream.new_empty(rows)
        given = stream, added, gain, joined, normed, in_full, scales
        self._call("join_and_norm", *given, rows, width, eps)
        return Normed(stream if joined is None else joined, normed, in_full, scales)

    def join_and_norm_backward(
        self,
        grad_joined: Tensor | None,
        grad: Tensor,
        grad_wide: Tensor | None,
        joined: Tensor,
        scales: Tensor,
        gain: Tensor,
        with_added: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the gradients of stream, of what was added to it, and of the gain."""
        width = joined.shape[-1]
        out, grad_gain = torch.empty_like(joined), torch.empty_like(gain)
        added = torch.empty_like(out, dtype=torch.bfloat16) if with_added else None
        given = grad_joined, grad, grad_wide, joined, gain, scales, out, added, grad_gain
        self._call("join_and_norm_backward", *given, joined.numel() // width, width)
        return out, added, grad_gain


def stream_for(stream: Tensor, added: Tensor | None = None) -> NativeStream | None:
    """Return the functions if they exist and can work on these types and shapes."""
    given = (stream,) if added is None else (stream, added)
    types = [each.dtype for each in given]
    if types != [torch.float32, torch.bfloat16][: len(given)] or not in_reach(*given):
        return None
    return NativeStream.load() if given[-1].shape == stream.shape else None
