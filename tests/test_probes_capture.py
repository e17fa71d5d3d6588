"""What is stored is what one pass over everything would give, and costs little more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from probes_fixture import engram, llama, noise_sample

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError
from probes.capture_store import capture, load_capture

SITES = (
    *("resid_pre", "memory_index", "memory_rows", "memory_gate", "memory_out", "attn_out"),
    *("router_logits", "router_weights", "router_index", "mlp_out", "resid_post"),
)
TAPS = [Tap(site, 1) for site in SITES]


@pytest.mark.parametrize("tokens_per_shard", [64, 192, 100_000])
def test_streaming_equals_batch(tokens_per_shard: int, tmp_path: Path) -> None:
    adapter, found = open_model(engram()), noise_sample()
    stored = capture(adapter, found, TAPS, tmp_path, tokens_per_shard)
    with torch.no_grad(), adapter.record(TAPS) as whole:
        adapter.run(torch.from_numpy(found.token[:, :-1]))
    n = found.inputs.token.size
    for tap in TAPS:
        rows = stored.rows(tap)
        assert len(rows) == n
        torch.testing.assert_close(rows, whole[tap].reshape(n, -1), rtol=1e-4, atol=1e-4)
    assert max(len(part) for part in stored.stream(TAPS[0])) <= max(64, tokens_per_shard)
    assert stored.rows(Tap("memory_index", 1)).dtype == torch.int64
    assert stored.rows(Tap("memory_index", 1)).shape == (n, 4)
    assert stored.rows(Tap("router_index", 1)).shape == (n, 2)


def test_the_index_says_what_each_row_is(tmp_path: Path) -> None:
    found = noise_sample()
    stored = capture(open_model(llama()), found, [Tap("resid_pre", 0)], tmp_path)
    assert stored.labels.keys() == {*found.inputs._fields, "target"}
    for name, values in found.inputs._asdict().items():
        np.testing.assert_array_equal(stored.labels[name], values)
    np.testing.assert_array_equal(stored.labels["target"], found.targets.token)
    # The embedding of the token that the index names.
    weight = open_model(llama()).embedding.weight
    torch.testing.assert_close(stored.rows(Tap("resid_pre", 0)), weight[stored.labels["token"]])


def test_half_precision_leaves_numbers_of_rows_whole(tmp_path: Path) -> None:
    adapter, found = open_model(engram()), noise_sample()
    taps = [Tap("memory_index", 1), Tap("memory_out", 1)]
    stored = capture(adapter, found, taps, tmp_path, dtype=torch.float16)
    assert stored.rows(taps[0]).dtype == torch.int64
    assert stored.rows(taps[1]).dtype == torch.float16


def test_a_second_capture_replaces_the_first(tmp_path: Path) -> None:
    adapter, found = open_model(llama()), noise_sample()
    capture(adapter, found, [Tap("resid_pre", 0)], tmp_path, tokens_per_shard=64)
    again = capture(adapter, found, [Tap("resid_post", 1)], tmp_path)
    assert load_capture(tmp_path).taps == again.taps == (Tap("resid_post", 1),)
    assert len(list(tmp_path.glob("shard-*"))) == len(again.shards) == 1


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished capture"):
        load_capture(tmp_path)
    adapter, found = open_model(llama()), noise_sample()
    with pytest.raises(UserError, match="no memory_out at layer 1"):
        capture(adapter, found, [Tap("memory_out", 1)], tmp_path)
    with pytest.raises(UserError, match="no finished capture"):
        load_capture(tmp_path)
    stored = capture(adapter, found, [Tap("resid_pre", 0)], tmp_path)
    with pytest.raises(UserError, match=r"mlp_out\.2 was not captured; there are: resid_pre\.0"):
        stored.rows(Tap("mlp_out", 2))
