"""Tables in host memory and on disk: the same bits as on the device, on every way in and out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_fixture import full, tokens
from safetensors.torch import load_file

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.offload import HostTable
from engram_eval.models.row_cache import RowCache

ELSEWHERE: dict[str, dict[str, Any]] = {
    "host": {"engram_storage": "host"},
    "host, no prefetch": {"engram_storage": "host", "engram_prefetch": False},
    "disk": {"engram_storage": "disk"},
    "disk, cached": {"engram_storage": "disk", "engram_cache_rows": 50},
}


def logits(model: EngramForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits.clone()


@pytest.mark.parametrize("kind", ["engram", "over_encoding"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_new_model_has_the_bits_of_one_on_the_device(name: str, kind: str) -> None:
    options = {"engram_memory": kind, "engram_layers": [0, 2] if kind == "engram" else [0]}
    device, elsewhere = full(**options), full(**options, **ELSEWHERE[name])
    for ids in (tokens(3, 40), tokens(3, 40, seed=1), tokens(3, 40)):
        assert torch.equal(logits(device, ids), logits(elsewhere, ids))
    parameters = {name for name, _ in elsewhere.named_parameters()}
    assert not any(name.endswith("table.weight") for name in parameters)
    mine, theirs = elsewhere.state_dict(), device.state_dict()
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("saved", ["device", "host", "disk"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_saved_and_opened_elsewhere(name: str, saved: str, tmp_path: Path) -> None:
    model, ids = full(engram_storage=saved), tokens(2, 30)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    opened, info = EngramForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, **ELSEWHERE[name]
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(opened.model.memory(0).table, HostTable)
    assert torch.equal(logits(model, ids), logits(opened.eval(), ids))
    again = EngramForCausalLM.from_pretrained(tmp_path, engram_storage="device")
    assert torch.equal(logits(model, ids), logits(again.eval(), ids))


def test_rows_on_disk_are_the_files_own_pages_and_stay_unwritten(tmp_path: Path) -> None:
    full().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    opened = EngramForCausalLM.from_pretrained(tmp_path, engram_storage="disk")
    table = opened.model.memory(0).table
    assert str(tmp_path / "model.safetensors") in Path("/proc/self/maps").read_text()
    table.write(torch.tensor([3, 5]), torch.ones(2, 8))
    assert table.weight[[3, 5]].eq(1).all()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    opened.save_pretrained(tmp_path / "changed")
    rows = load_file(tmp_path / "changed" / "model.safetensors")[
        "model.layers.0.engram.table.weight"
    ]
    assert torch.equal(rows, table.weight)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_cached_decoding_and_generation(name: str) -> None:
    device, elsewhere, ids = full(), full(**ELSEWHERE[name]), tokens(2, 12)
    whole = logits(device, ids)
    with torch.no_grad():
        cache, steps = None, []
        for position in range(12):
            step = elsewhere(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)
    one, two = (m.generate(ids, max_new_tokens=8, do_sample=False) for m in (device, elsewhere))
    assert torch.equal(one, two)


def test_rows_are_read_in_the_models_dtype() -> None:
    device, elsewhere = full().to(torch.bfloat16), full(engram_storage="host").to(torch.bfloat16)
    assert elsewhere.model.memory(0).table.weight.dtype == torch.float32
    assert torch.equal(logits(device, tokens(2, 20)), logits(elsewhere, tokens(2, 20)))


def test_state_dicts_go_in_and_out() -> None:
    one, two = full(0), full(1, engram_storage="disk", engram_cache_rows=20)
    logits(two, tokens(2, 20))
    two.load_state_dict(one.state_dict())
    assert torch.equal(logits(one, tokens(2, 20)), logits(two, tokens(2, 20)))
    assert torch.equal(logits(copy.deepcopy(two), tokens(2, 20)), logits(two, tokens(2, 20)))
    short = {k: v for k, v in one.state_dict().items() if not k.endswith("0.engram.table.weight")}
    with pytest.raises(RuntimeError, match=r"0\.engram\.table\.weight"):
        two.load_state_dict(short)


@settings(max_examples=30)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 30), min_size=1), max_size=8))
def test_a_cache_returns_what_its_source_holds(size: int, batches: list[list[int]]) -> None:
    source = torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
    cache, fetched = RowCache(size, 4, torch.float32, "cpu"), 0

    def fetch(rows: torch.Tensor) -> torch.Tensor:
        nonlocal fetched
        fetched += len(rows)
        return source[rows]

    for number, batch in enumerate(batches):
        wanted = torch.tensor(batch)
        assert torch.equal(cache.read(wanted, fetch), source[wanted])
        changed = wanted[: number % 3].unique()
        source[changed] += 1
        cache.forget(changed)
    assert cache.reads - cache.hits == fetched
    assert cache.reads == sum(map(len, batches))


def test_rare_rows_do_not_push_out_frequent_ones() -> None:
    source = torch.randn(10_000, 4)
    cache = RowCache(100, 4, torch.float32, "cpu")
    often = torch.arange(100)
    cache.read(often, source.__getitem__)
    for _ in range(10):
        cache.read(often, source.__getitem__)
        cache.read(torch.randint(100, 10_000, (30,)), source.__getitem__)
    before = cache.hits
    cache.read(often, source.__getitem__)
    assert cache.hits - before == 100
    for _ in range(5):
        cache.read(often + 300, source.__getitem__)
    before = cache.hits
    cache.read(often + 300, source.__getitem__)
    assert cache.hits - before == 100, "what is not read any more makes room"


def test_a_model_counts_its_caches_hits() -> None:
    model = full(engram_storage="host", engram_cache_rows=1_000)
    cache = lambda: model.model.memory(0).table.cache  # noqa: E731
    logits(model, tokens(1, 30))
    assert cache().hits < cache().reads == 30 * 4
    before = cache().hits
    logits(model, tokens(1, 30))
    assert cache().hits - before == 30 * 4, "the table has fewer rows than the cache"


def test_a_wrong_shape_and_a_missing_table_are_named(tmp_path: Path) -> None:
    full().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"table\.weight: \(256, 8\) in the file"):
        EngramForCausalLM.from_pretrained(
            tmp_path, engram_storage="disk", engram_rows=[59, 71], ignore_mismatched_sizes=True
        )
    with pytest.raises(ValueError, match=r"has no model\.layers\.1\.engram\.table\.weight"):
        EngramForCausalLM.from_pretrained(
            tmp_path, engram_storage="disk", engram_layers=[0, 1], ignore_mismatched_sizes=True
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engram_storage": "tape"}, "engram_storage='tape'.*'device', 'host', 'disk'"),
        ({"engram_storage": "disk", "engram_memory": "product_key"}, "'device' for 'product_key'"),
        ({"engram_cache_rows": 5}, "engram_cache_rows=5.*0 for tables on the device"),
    ],
)
def test_impossible_storage_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**options)
