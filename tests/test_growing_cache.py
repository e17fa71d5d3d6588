"""Caches that are joined and grow in place hold what plain copies would."""

import torch
from transformers.cache_utils import DynamicCache

from engram_eval.evaluation.growing_cache import gather_rows, new_cache
from engram_eval.models.cache import HistoryLayer, history_layers


def filled(rows: int, columns: int, seed: int) -> DynamicCache:
    """A cache of one attention layer and one history."""
    cache, draw = new_cache(), torch.Generator().manual_seed(seed)
    for _ in range(2):
        cache.update(*(torch.randn(rows, 2, columns, 4, generator=draw) for _ in range(2)), 0)
    (history,) = history_layers(cache, 1, 1)
    history.append(torch.arange(rows * columns * 2).view(rows, 2 * columns, 1))
    return cache


def test_rows_of_several_caches_end_in_one_column_and_grow_in_place() -> None:
    long, short = filled(2, 3, 0), filled(3, 2, 1)
    joined = gather_rows([long, short], [torch.tensor([1, 1, 0]), torch.tensor([2])], room=2)
    layer, history = joined.layers
    assert layer.keys.shape == (4, 2, 6, 4) and joined.get_seq_length() == 6
    assert torch.equal(layer.keys[:3], long.layers[0].keys[[1, 1, 0]])
    assert torch.equal(layer.values[3, :, 2:], short.layers[0].values[2])
    assert not layer.values[3, :, :2].any()
    assert isinstance(history, HistoryLayer)
    assert history.keys[3].flatten().tolist() == [0, 0, 8, 9, 10, 11]
    before, place = layer.keys.clone(), layer.keys.data_ptr()
    new = torch.randn(4, 2, 2, 4)
    keys, values = joined.update(new, 2 * new, 0)
    assert torch.equal(keys, torch.cat([before, new], dim=-2)) and keys.data_ptr() == place
    assert torch.equal(values[:, :, 6:], 2 * new)
    # Without room left it is copied, and is right all the same.
    more, _ = joined.update(new, new, 0)
    assert torch.equal(more, torch.cat([before, new, new], dim=-2))
    # The caches that it was made from are as they were.
    assert torch.equal(long.layers[0].keys, filled(2, 3, 0).layers[0].keys)
