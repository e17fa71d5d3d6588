"""Caches that grow in place while a text is written, and copies of chosen rows and columns."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# Columns that are added at a time, so that one step in so many copies the cache.
ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keeps all keys and values, like its parent, which copies them for every new token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.buffers: tuple[torch.Tensor, ...] = ()
        self.views: tuple[torch.Tensor | None, ...] = (None, None)

    def hold(self, buffers: Sequence[torch.Tensor], columns: int) -> None:
        """Take buffers (B, heads, S + room, d) whose first S ``columns`` are filled."""
        self.buffers = tuple(buffers)
        self.keys, self.values = (buffer[..., :columns, :] for buffer in self.buffers)
        self.views = (self.keys, self.values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, T, d) and return everything, (B, heads, S + T, d)."""
        new = key_states.shape[-2]
        # Whoever selects rows puts other tensors in the place of those that lie in the buffers.
        ours = self.keys is self.views[0] and self.values is self.views[1]
        roomy = self.is_initialized and ours and bool(self.buffers)
        end = self.get_seq_length() + new
        if not roomy or end > self.buffers[0].shape[-2]:
            if new > 1 or not self.is_initialized:
                return super().update(key_states, value_states, *args, **kwargs)
            self.buffers = tuple(_widened(part, end + ROOM) for part in (self.keys, self.values))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., end - new : end, :] = states
        self.hold(self.buffers, end)
        return self.keys, self.values


def _widened(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Copy (B, heads, S, d) to the beginning of (B, heads, columns, d)."""
    wide = part.new_empty((*part.shape[:-2], columns, part.shape[-1]))
    wide[..., : part.shape[-2], :] = part
    return wide


def new_cache() -> Cache:
    """Return an empty cache whose layers keep everything."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def gather_rows(caches: Sequence[Cache], rows: Sequence[torch.Tensor], room: int) -> Cache:
    """Return a cache with copies of chosen rows of several caches, all ending in one column.

    Rows of a shorter cache get zeros before them.

    Args:
        caches: of one model.
        rows: (B',) for each of them; a row may occur several times.
        room: columns that will be appended, for which no further copy is made.
    """
    other = _shallow(caches[0])
    columns = max(cache.get_seq_length() for cache in caches)
    for index, layer in enumerate(other.layers):
        if layer.get_seq_length() == 0:
            continue
        grows = isinstance(layer, GrowingLayer)
        width = columns + room if grows else columns
        keys, values = (
            _gathered([getattr(c.layers[index], kind) for c in caches], rows, columns, width)
            for kind in ("keys", "values")
        )
        if grows:
            layer.hold((keys, values), columns)
        else:
            layer.keys, layer.values = keys, values
    return other


def _gathered(
    parts: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], columns: int, width: int
) -> torch.Tensor:
    """Copy rows of (B, heads, S, d) into one (B', heads, width, d), ending in ``columns``."""
    count = sum(map(len, rows))
    _, heads, _, size = parts[0].shape
    found = parts[0].new_empty(count, heads, width, size)
    last = 0
    for part, chosen in zip(parts, rows, strict=True):
        first, last = last, last + len(chosen)
        start = columns - part.shape[-2]
        found[first:last, :, :start] = 0
        # Straight into its place: a copy less than by indexing.
        torch.index_select(part, 0, chosen, out=found[first:last, :, start:columns])
    return found


def cut_windows(cache: Cache, starts: Sequence[int], width: int) -> Cache:
    """Cut ``width`` columns out of a cache of one row, from each of ``starts`` (B) on."""

    def cut(part: torch.Tensor) -> torch.Tensor:
        return torch.stack([part[0, :, start : start + width] for start in starts])

    other = _shallow(cache)
    for layer in other.layers:
        if layer.get_seq_length() > 0:
            layer.keys, layer.values = cut(layer.keys), cut(layer.values)
    return other


def _shallow(cache: Cache) -> Cache:
    """Return a cache whose layers may be replaced without changing ``cache``."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
