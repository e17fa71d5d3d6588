"""What needs every token of the vocabulary, for a few places of the text at a time.

A matrix (n, V) of a whole batch is larger than a core's cache; each further pass over it then costs
as much as the product that made it.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_eval.adapters.base import Adapter, widened
from engram_eval.arrays import Floats

CELLS = 262_144
"""Of one temporary matrix (places, V): a few of them fit into a core's cache."""
PASSED_ONCE = 1_048_576
"""Of one that is passed over but once or twice: larger products are faster."""
GPU_CELLS = 67_108_864
"""Of one on a GPU, where it is the number of calls that costs."""


def pieces(places: int, vocabulary: int, cells: int, device: torch.device) -> Iterator[slice]:
    """Cut places into pieces whose matrix over the vocabulary has about so many cells.

    Args:
        places: how many there are.
        vocabulary: its size.
        cells: on a CPU; elsewhere ``GPU_CELLS``.
        device: where the matrix is made.
    """
    step = max(1, (cells if device.type == "cpu" else GPU_CELLS) // vocabulary)
    return (slice(start, start + step) for start in range(0, places, step))


def unembedder(adapter: Adapter) -> Callable[[Tensor], Tensor]:
    """Return what gives a few normed vectors (n, D) their logits (n, V), without a gradient.

    A product with few rows is a fifth faster if the weights need not be turned first each time.
    """
    head = adapter.unembedding
    watched = bool(head._forward_hooks or head._forward_pre_hooks)
    if type(head) is not nn.Linear or head.bias is not None or watched or not _on_cpu(head.weight):
        return head
    weight = head.weight.detach().T.contiguous()
    return lambda hidden: torch.mm(hidden, weight)


@torch.no_grad()
def token_losses(adapter: Adapter, stream: Tensor, targets: Tensor) -> Floats:
    """Return the cross-entropy of each target in nats, (n,).

    Args:
        adapter: the model.
        stream: the last residual stream, (n, D).
        targets: the tokens that came, (n,).
    """
    hidden = adapter.normed(stream)
    losses = [
        F.cross_entropy(widened(adapter.unembedding(hidden[part])), targets[part], reduction="none")
        for part in pieces(len(targets), adapter.vocab_size, PASSED_ONCE, adapter.device)
    ]
    return torch.cat(losses).cpu().double().numpy()


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, (n,): on a CPU in one pass, where torch takes two."""
    if not _on_cpu(a):
        return torch.linalg.vecdot(a, b)
    return torch.from_numpy(np.vecdot(a.numpy(), b.numpy()))


def kl_bits(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) of what logits (n, V) predict, in bits, (n,)."""
    old, new = (widened(logits).log_softmax(-1) for logits in (before, after))
    return row_dots(old.exp(), old - new) / math.log(2)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
