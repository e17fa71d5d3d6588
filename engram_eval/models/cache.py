"""What a memory keeps between two decoding steps, as further layers of a transformers cache.

A cache applies beam reordering, batch selection, repetition, cropping and resetting to each of its
``layers``; histories that are layers therefore follow all of them without further code.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer


class HistoryLayer(DynamicLayer):
    """All values of one kind seen so far, kept as ``keys`` of shape (B, 1, S, C)."""

    # The cache counts the rows of its first layer; nothing here takes part in allocation.
    supports_early_init = False

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """Add ``new`` (B, T, C) at the end and return everything, (B, S, C)."""
        column = new.unsqueeze(1)
        everything, _ = self.update(column, column[..., :0])
        return everything.squeeze(1)


def history_layers(cache: Cache, depth: int, count: int) -> list[HistoryLayer]:
    """Return the ``count`` histories behind the ``depth`` attention layers of ``cache``.

    Raises:
        ValueError: the cache is not one of growing layers made for this model.
    """
    while len(cache.layers) < depth and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) == depth:
        cache.layers.extend(HistoryLayer() for _ in range(count))
    found = cache.layers[depth:]
    if len(found) != count or not all(isinstance(layer, HistoryLayer) for layer in found):
        raise ValueError(
            f"past_key_values has {len(cache.layers)} layers of another model: "
            f"must have {depth} attention layers and {count} memory histories"
        )
    return found
