"""What needs every token of the vocabulary, for a few places of the text at a time.

A matrix (n, V) of a whole batch is larger than a core's cache; each further pass over it then costs
as much as the product that made it.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_eval.adapters.base import Adapter
from probes.sample import Floats

CELLS = 262_144
"""Of one temporary matrix (places, V): a few of them fit into a core's cache."""
PASSED_ONCE = 1_048_576
"""Of one that is passed over but once or twice: larger products are faster."""


def pieces(places: int, vocabulary: int, cells: int) -> Iterator[slice]:
    """Cut places into pieces whose matrix over the vocabulary has about so many cells."""
    step = max(1, cells // vocabulary)
    return (slice(start, start + step) for start in range(0, places, step))


@torch.no_grad()
def token_losses(adapter: Adapter, stream: Tensor, targets: Tensor) -> Floats:
    """Return the cross-entropy of each target in nats, (n,).

    Args:
        adapter: the model.
        stream: the last residual stream, (n, D).
        targets: the tokens that came, (n,).
    """
    hidden = adapter.final_norm(stream)
    losses = [
        F.cross_entropy(adapter.unembedding(hidden[part]), targets[part], reduction="none")
        for part in pieces(len(targets), adapter.vocab_size, PASSED_ONCE)
    ]
    return torch.cat(losses).cpu().double().numpy()


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, (n,): on a CPU in one pass, where torch takes two."""
    if a.device.type != "cpu":
        return torch.linalg.vecdot(a, b)
    return torch.from_numpy(np.vecdot(a.numpy(), b.numpy()))
