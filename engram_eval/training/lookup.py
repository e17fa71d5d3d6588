"""What the memories of a model read for a batch: it hangs on the tokens alone."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.models.hashing import NgramHash


class Lookup(NamedTuple):
    """What each memory layer reads.

    Attributes:
        rows: layer -> (B, T, heads) table rows.
        mixes: layer -> (B, T, orders) numbers that tell n-grams apart; hashed memories only.
    """

    rows: dict[int, Tensor]
    mixes: dict[int, Tensor]


@torch.no_grad()
def look_up(model: PreTrainedModel, inputs: Tensor) -> Lookup:
    """Hash ``inputs`` (B, T) once for all layers; empty for a model without n-gram memory."""
    decoder = model.model
    if decoder.token_history is None:
        return Lookup({}, {})
    history = decoder.token_history(inputs, inputs.shape[1])
    indexes = {layer: decoder.memory(layer).hash for layer in decoder.config.engram_layers}
    return Lookup(
        {layer: index(history) for layer, index in indexes.items()},
        {
            layer: index.mixes(history)
            for layer, index in indexes.items()
            if isinstance(index, NgramHash)
        },
    )
