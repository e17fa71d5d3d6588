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

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, T, d) and return everything, (B, heads, S + T, d)."""
        if key_states.shape[-2] > 1 or not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        end = self.get_seq_length() + 1
        # Whoever selects rows puts other tensors in the place of those that lie in the buffers.
        ours = self.keys is self.views[0] and self.values is self.views[1]
        if not ours or end > self.buffers[0].shape[-2]:
            self.buffers = tuple(_widened(part, end + ROOM) for part in (self.keys, self.values))
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., end - 1 : end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        self.views = (self.keys, self.values)
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


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """Return a copy with the given rows, (B',), in which a row may occur several times."""
    other = _shallow(cache)
    for layer in other.layers:
        if layer.get_seq_length() > 0:
            # Twice as fast as the indexing of ``batch_select_indices``.
            layer.keys = layer.keys.index_select(0, rows)
            layer.values = layer.values.index_select(0, rows)
    return other


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
