"""The memory's gate on a CPU: how well keys match the streams, compiled."""

import ctypes
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .native import ADDRESS, FLOAT, SIZE, Functions, in_reach


class Sizes(ctypes.Structure):
    """The fields of ``struct Match`` in ``gate_kernels.cpp``."""

    _fields_ = [*((name, SIZE) for name in ("rows", "width", "gains")), ("eps", FLOAT)]


class Matched(NamedTuple):
    """Scores (...), and the scales of both norms, (..., 2)."""

    scores: Tensor
    scales: Tensor


class NativeGate(Functions):
    """The functions of ``gate_kernels.cpp``, on contiguous tensors of a CPU."""

    ARGUMENTS: ClassVar = {
        "match": (*[ADDRESS] * 6, Sizes),
        "match_backward": (*[ADDRESS] * 11, Sizes),
    }

    def match(
        self, streams: Tensor, keys: Tensor, query_gain: Tensor, key_gain: Tensor, eps: float
    ) -> Matched:
        """Return ``(norm(streams) * norm(keys)).sum(-1) / sqrt(D)``.

        Args:
            streams: (..., M, D) float32.
            keys: (..., M, D) bfloat16.
            query_gain: (M, D) or, for one stream, (D,), float32; of the streams' norm.
            key_gain: the same of the keys'.
            eps: added to the mean squares.
        """
        scores = streams.new_empty(streams.shape[:-1])
        made = Matched(scores, scores.new_empty(*scores.shape, 2))
        sizes = _sizes(streams, query_gain, eps)
        self._call("match", streams, keys, query_gain, key_gain, *made, sizes)
        return made

    def match_backward(
        self,
        grad: Tensor,
        streams: Tensor,
        keys: Tensor,
        query_gain: Tensor,
        key_gain: Tensor,
        made: Matched,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of streams, keys and both gains, given that of the scores."""
        inputs = streams, keys, query_gain, key_gain
        grads = (
            *(torch.empty_like(streams), torch.empty_like(keys)),
            *(torch.empty_like(query_gain), torch.empty_like(key_gain)),
        )
        sizes = _sizes(streams, query_gain, eps)
        self._call("match_backward", grad, *inputs, *made, *grads, sizes)
        return grads


def _sizes(streams: Tensor, gain: Tensor, eps: float) -> Sizes:
    width = streams.shape[-1]
    return Sizes(streams.numel() // width, width, gain.numel() // width, eps)


def gate_for(streams: Tensor, keys: Tensor, *gains: Tensor) -> NativeGate | None:
    """Return the functions if they exist and can work on these types."""
    wide = all(each.dtype == torch.float32 for each in (streams, *gains))
    if not wide or keys.dtype != torch.bfloat16 or not in_reach(streams, keys, *gains):
        return None
    return NativeGate.load()
