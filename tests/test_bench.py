"""The training bench: shapes that add up, turns that end, rows that can be read."""

import dataclasses
import gc
import io
import math
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engram_eval.bench import lookup, offload, peers, products, train, turns
from engram_eval.bench.arms import bench_arms
from engram_eval.bench.offload_stage import arm_name, time_storages
from engram_eval.bench.rate import seconds_per_token
from engram_eval.bench.registry import BENCHES, bench_table
from engram_eval.costs.ledger import architecture_config, ledger
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import INDEXES
from engram_eval.models.memory import memory_specs
from engram_eval.progress import Reporter, Task
from engram_eval.scales import SCALES
from engram_eval.stage_config import OffloadStage
from engram_eval.stages import resolve
from engram_eval.threads import threads
from probes import bench as probe_bench
from probes.registry import PROBES

SIZES = SCALES["smoke"]
KINDS = {
    "dense": {**SIZES.backbone, "n_routed_experts": 0},
    "moe": {**SIZES.backbone, **SIZES.experts},
    "engram": {**SIZES.backbone, **SIZES.experts, **SIZES.memory},
    "ungated": {**SIZES.backbone, **SIZES.experts, **SIZES.memory, "engram_gate": "none"},
}


@pytest.mark.parametrize("index", INDEXES)
def test_training_is_timed_with_every_index(index: str) -> None:
    architecture = {**KINDS["engram"], "vocab_size": 512, "engram_index": index}
    assert 0 < seconds_per_token(architecture, SIZES.train) < 1


def test_a_batch_in_more_pieces_than_are_measured_is_timed() -> None:
    many = dataclasses.replace(SIZES.train, seq_len=64, batch_size=64, accumulate=64)
    assert 0 < seconds_per_token({**KINDS["dense"], "vocab_size": 512}, many) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_the_ledgers_flops(kind: str) -> None:
    config = architecture_config({**KINDS[kind], "vocab_size": 512})
    forward = products.forward_products(config, 16, 64)
    total = sum(product.flops for product in forward)
    assert total == ledger(config, 64).flops_per_token * 16 * 64
    everything = products.training_products(forward)
    assert sum(product.flops for product in everything) == 3 * total
    joined = products.distinct(everything)
    assert sum(product.flops for product in joined) == 3 * total
    assert len({product[:4] for product in joined}) == len(joined)


def test_backward_products_have_the_gradients_shapes() -> None:
    product = products.Product(batch=2, m=3, k=5, n=7, times=4)
    left, right = product.backward()
    # dA = dC @ B.T and dB = A.T @ dC
    assert left == products.Product(2, 3, 7, 5, 4)
    assert right == products.Product(2, 5, 3, 7, 4)
    assert product.flops == left.flops == right.flops == 2 * 2 * 3 * 5 * 7 * 4


def test_time_alone_grows_with_the_work() -> None:
    small = [products.Product(1, 64, 64, 64, 1)]
    large = [products.Product(1, 512, 512, 512, 4), products.Product(3, 64, 64, 64, 1)]
    takes = [products.timed(each, torch.bfloat16) for each in (small, large)]
    seconds = [min(take() for _ in range(5)) for take in takes]
    assert 0 < seconds[0] < seconds[1]


def test_turns_end_at_the_deadline_and_the_first_is_not_counted() -> None:
    counts = {"quick": 0, "slow": 0}

    def work(name: str, seconds: float) -> turns.Contender:
        def step() -> None:
            counts[name] += 1
            time.sleep(seconds)

        return turns.Contender(name, name, None, step)

    task = Task("bench", 1.0)
    contenders = [work("quick", 0.001), work("slow", 0.3)]
    times = turns.take_turns(contenders, time.monotonic() + 0.8, task)
    assert counts["slow"] == 2 and len(times.steps["slow"]) == 1
    assert counts["quick"] == len(times.steps["quick"]) + 1 > 5
    assert times.alone == {}
    assert task.done == pytest.approx(0.6, abs=0.5)


def test_each_set_has_its_time_and_goes() -> None:
    made: list[str] = []
    taken: list[str] = []

    def contender(name: str) -> turns.Contender:
        made.append(name)

        def step() -> None:
            taken.append(name)
            time.sleep(0.002)

        return turns.Contender(name, name, None, step)

    def sets() -> Iterator[list[turns.Contender]]:
        yield [contender("first"), contender("second")]
        assert not weak[0](), "given up before the next is made"
        yield [contender("third")]

    weak: list[weakref.ref[Callable[[], None]]] = []

    def watched() -> Iterator[list[turns.Contender]]:
        for each in sets():
            weak.append(weakref.ref(each[0].step))
            assert len(made) == 2 * len(weak) - (len(weak) > 1), "made when its turn comes"
            yield each
            del each

    started = time.monotonic()
    told = io.StringIO()
    done, times = train.set_by_set(
        watched(), 0.25 * train.GPU_CONTENDERS, Task("bench", 1.0), Reporter(out=told)
    )
    assert [line.split(":")[0] for line in told.getvalue().splitlines()] == [c.name for c in done]
    assert [each.name for each in done] == ["first", "second", "third"] == list(times.steps)
    assert all(len(counted) >= 3 for counted in times.steps.values())
    # Each has 0.25 s, but for a last turn that would end too late.
    late = sum(max(counted) for counted in times.steps.values())
    assert 0.75 - late < time.monotonic() - started < 5
    together = taken[: taken.index("third")]
    both = min(together.count(name) for name in ("first", "second"))
    assert together[: 2 * both] == ["first", "second"] * both, "turn by turn"
    assert len({*together[2 * both :]}) <= 1, "until one sits out"
    with pytest.raises(RuntimeError, match="given up"):
        done[0].step()


@pytest.mark.parametrize(("free", "ours"), [(10**9, [3, 3]), (10**6, [1] * 6)])
def test_ours_take_turns_on_a_gpu_that_has_room_for_all(
    monkeypatch: pytest.MonkeyPatch, free: int, ours: list[int]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(train, "compile_blocks", lambda model: None)
    models: list[weakref.ref[torch.nn.Module]] = []
    build = train._build

    def watched(*given: Any) -> torch.nn.Module:
        gc.collect()
        assert sum(model() is not None for model in models) < max(ours), "others have been given up"
        made = build(*given)
        models.append(weakref.ref(made))
        return made

    monkeypatch.setattr(train, "_build", watched)
    sizes, names = [], []
    for each in train._gpu_sets("smoke", torch.device("cpu")):
        sizes.append(len(each))
        names += [contender.name for contender in each]
        each.clear()
    assert sizes[: len(ours)] == ours and set(sizes[len(ours) :]) == {1}
    compiled = [f"{name}, compiled" for name in ("dense", "moe", "engram")]
    assert names[:6] == ["dense", "moe", "engram", *compiled]
    assert {name.partition(",")[0] for name in names[6:]} == {"Llama", "OLMoE", "Qwen4Exp"}


def test_several_steps_in_one_wait_are_several_steps() -> None:
    taken: list[int] = []
    train._waiting(lambda: taken.append(1), 4, torch.device("cpu"))()
    assert len(taken) == 4
    names = ("dense", "moe", "llama", "olmoe", "qwen4exp")
    contenders = [turns.Contender(name, name, None, lambda: None, 4) for name in names]
    contenders[0] = contenders[0]._replace(steps=1)
    # The last turn was slow for all of them; one had a slow turn more.
    steps = {name: [1.0, 1.0, 7.0] for name in names} | {"moe": [1.0, 9.0, 7.0]}
    times = turns.Times(steps, {"dense": [0.5, 0.6, 3.0]})
    rows = train._rows(contenders, times, SIZES.train, torch.device("cpu"))
    tokens = SIZES.train.batch_size * SIZES.train.seq_len
    plain, _, burst, *_ = [(r["steps"], r["ms_per_step"], r["tokens_per_s"]) for r in rows]
    assert plain == (3, 1000.0, tokens) and burst == (12, 250.0, 4 * tokens)
    assert rows[1]["vs_dense"] == rows[2]["vs_dense"] == 4.0
    assert [row["matrix_share"] for row in rows] == [0.5, None, None, None, None]


def test_of_a_peer_its_best_setting_counts() -> None:
    names = {"dense": "dense", "Llama, a": "llama", "Llama, b": "llama"}
    contenders = [turns.Contender(name, peer, None, lambda: None) for name, peer in names.items()]
    times = turns.Times({"dense": [1.0, 2.0], "Llama, a": [9.0, 1.0], "Llama, b": [3.0, 6.0]}, {})
    rows = train._rows(contenders, times, SIZES.train, torch.device("cpu"))
    assert rows[0]["vs_llama"] == 3.0 and rows[0]["vs_olmoe"] is None


def test_share_of_the_peak_is_three_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture_config({**KINDS["dense"], "vocab_size": 512})
    settings, gpu = SIZES.train, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    forward = ledger(config, settings.seq_len).flops_per_token
    wanted = 100 * 3 * forward * 1e6 / 989e12
    assert train._mfu_pct(config, settings, 1e6, gpu) == pytest.approx(wanted)
    assert train._mfu_pct(None, settings, 1e6, gpu) is None, "a peer's are not counted"
    assert train._mfu_pct(config, settings, 1e6, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    assert train._mfu_pct(config, settings, 1e6, gpu) is None, "its peak is not known"


def test_bench_at_the_smallest_scale_measures_everybody() -> None:
    out = io.StringIO()
    rows = resolve(BENCHES["train"])(2.0, Reporter(out=out, interval_s=0.0), scale="smoke")
    assert [row["name"] for row in rows] == [
        "dense",
        "moe",
        "engram",
        "Llama, sdpa",
        "Llama, eager",
        "OLMoE, eager",
        "OLMoE, grouped_mm",
        "Qwen4Exp, grouped_mm",
    ]
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        assert row["steps"] >= 1 and row["tokens_per_s"] > 0
        assert row["tokens_per_s"] * row["ms_per_step"] / 1000 == pytest.approx(16 * 64)
        assert (row["matrix_share"] is not None) == (row["name"] in KINDS)
    for name in ("dense", "moe", "engram"):
        assert 0 < by_name[name]["matrix_share"] < 1
    assert 1 in [by_name[f"Llama, {kind}"]["vs_llama"] for kind in ("sdpa", "eager")]
    assert by_name["dense"]["vs_llama"] > 0
    assert by_name["moe"]["vs_moe"] == 1
    assert "bench train" in out.getvalue()
    lines = bench_table(rows).splitlines()
    assert len(lines) == 9 and lines[0].split()[:2] == ["name", "tokens_per_s"]


def test_peers_have_our_models_shape() -> None:
    moe = {**KINDS["moe"], "vocab_size": 512}
    memory = {**moe, **SIZES.memory, "n_routed_experts": SIZES.engram_experts}
    built = {peer.group: peer.build() for peer in peers.peers(moe, memory)}
    dense = ledger(architecture_config({**KINDS["dense"], "vocab_size": 512}), 64)
    assert built["llama"].num_parameters() == dense.params_total
    ours = architecture_config(memory)
    theirs = built["qwen4exp"].model.layers[ours.engram_layers[0]].ple.ple_embedding
    # As many primes from the same number on; the table is padded to a multiple of 128 rows.
    rows = sum(prime for head in memory_specs(ours).values() for prime in head.primes)
    assert 0 <= len(theirs.ngram_embedding.weight) - rows < 128
    assert theirs.ngram_embedding.weight.shape[1] == ours.engram_row_dim


@pytest.mark.parametrize("instructions", [True, False])
def test_peers_train_in_what_is_fastest_here(
    instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "has_instructions", lambda: instructions)
    expected = torch.bfloat16 if instructions else torch.float32
    assert peers.dtype_of_products(torch.device("cpu")) == expected
    assert peers.dtype_of_products(torch.device("cuda")) == torch.bfloat16
    llama = next(peers.peers({**KINDS["moe"], "vocab_size": 512}, SIZES.memory)).build()
    seen: list[torch.dtype] = []
    projection = llama.model.layers[0].self_attn.q_proj
    projection.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    peers.peer_step(llama, train._batch("smoke", torch.device("cpu")), SIZES.train)()
    assert seen == [expected]


def test_unknown_scale_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown scale 'quik'.*did you mean 'quick'"):
        train.bench_train(1.0, Reporter(quiet=True), scale="quik")


def test_table_shows_what_is_missing_as_a_dash() -> None:
    rows: list[dict[str, object]] = [
        {"name": "a", "rate": 12345.6, "n": 3},
        {"name": "bb", "rate": None, "share": 0.12345},
    ]
    assert bench_table(rows).splitlines() == [
        "name    rate  n  share",
        "a     12,346  3      -",
        "bb         -  -  0.123",
    ]


def test_registry_points_at_functions() -> None:
    assert all(callable(resolve(target)) for target in BENCHES.values())


def test_bench_probe_lists_every_probe_and_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(probe_bench.TEXT, train_bytes=60_000)
    monkeypatch.setattr(probe_bench, "TEXT", few)
    rows = resolve(BENCHES["probe"])(0.01, Reporter(quiet=True))
    assert [row["name"] for row in rows] == ["capture", *PROBES]
    capture, first, *rest = rows
    # Less than a tenth on an idle machine; a busy one is noisier than that.
    assert 0.7 < capture["forward_passes"] < 1.3
    assert first["forward_passes"] > 1 and first["tokens"] == 1024
    assert all(row["cpu_seconds"] is None for row in rest)


@pytest.mark.slow
def test_bench_probe_measures_every_probe() -> None:
    rows = resolve(BENCHES["probe"])(600.0, Reporter(quiet=True))
    assert all(row["forward_passes"] > 0 for row in rows)


def test_bench_lookup_compares_equal_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "ROWS", (2_000, 10**14))
    rows = resolve(BENCHES["lookup"])(0.1, Reporter(quiet=True))
    assert [row["rows"] for row in rows] == ["2e+03", "1e+14"] * 2
    for row in rows[::2]:
        assert row["fits_in"] in ("L1", "L2", "L3", "DRAM")
        assert row["lookup_ns"] / row["embedding_ns"] == pytest.approx(row["vs_embedding"])
        assert row["hash_vs_reference"] > 5, "the reference loops over Python integers"
    assert all("lookup_ns" not in row and row["fits_in"] == "not in memory" for row in rows[1::2])


def test_lookups_are_timed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(lookup, "_measure", lambda *_: seen.append(torch.get_num_threads()) or {})
    with threads(2):
        resolve(BENCHES["lookup"])(0.1, Reporter(quiet=True))
        assert torch.get_num_threads() == 2
    assert set(seen) == {1}


def test_lookup_and_embedding_read_the_same_rows() -> None:
    made = lookup.make_lookup(lookup.SHAPES[0], 2_000, touched_mb=1)
    made.table.weight.detach().normal_()
    found = lookup.contenders(made)
    last = len(made.texts) - 1
    assert torch.equal(found["hash"](last), made.rows[last])
    assert torch.equal(found["lookup"](last), found["embedding"](last).flatten(-2))
    assert len(made.table.weight) == pytest.approx(2_000, rel=0.1)


def test_bench_offload_measures_every_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "ROWS", (0, 2_000, 10**13))
    monkeypatch.setattr(offload, "LENGTH", 24)
    monkeypatch.setattr(offload, "DECODED", 3)
    bench, out = resolve(BENCHES["offload"]), io.StringIO()
    rows = bench(0.1, Reporter(quiet=True), scales=("smoke",), patience=math.inf)
    names = [storage.name for storage in offload.STORAGES]
    assert [row["storage"] for row in rows] == 2 * names, "the largest table fits nowhere"
    for row in rows:
        assert row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0
        assert (row["cache_hits_pct"] is not None) == ("cache" in row["storage"])
        if row["cache_hits_pct"] is not None:
            assert 0 < row["cache_hits_pct"] < 100
    for row in rows[:: len(names)]:
        assert row["prefill_loss_pct"] == row["decode_loss_pct"] == 0
    (first, *_) = bench(0.1, Reporter(out=out), scales=("smoke",), patience=0.0)
    assert first["rows"] == 0 and "no time is left for 2 of 3 tables" in out.getvalue()
    with pytest.raises(UserError, match=r"unknown scale 'smke'.*'smoke'"):
        offload.bench_offload(1.0, Reporter(quiet=True), scales=("smke",))


def test_a_study_times_storages_as_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(offload, "LENGTH", 24)
    monkeypatch.setattr(offload, "DECODED", 3)
    config = OffloadStage("smoke", (1, 4), 0.1)
    rows = time_storages({}, config, 0, tmp_path, Reporter(quiet=True))
    names = [arm_name(storage.name) for storage in offload.STORAGES]
    assert {row.model for row in rows} == set(names) >= {"device", "disk_prefetch_cache"}
    own, large = (
        next(r.value for r in rows if r.metric == "table_bytes" and r.slice["table"] == size)
        for size in ("1x", "4x")
    )
    assert large == pytest.approx(4 * own, rel=0.2), "the own one has primes of rows"
    rates = [row for row in rows if row.metric == "tokens_per_s"]
    assert len(rates) == 2 * 2 * len(names) and all(row.value > 0 for row in rates)
    for row in rates:
        same = {r.metric: r.value for r in rows if (r.model, r.slice) == (row.model, row.slice)}
        if row.slice["phase"] == "decode":
            assert same["ms_per_step"] * same["tokens_per_s"] == pytest.approx(8 * 1000)
        device = next(r for r in rates if (r.model, r.slice) == ("device", row.slice))
        assert same["lost_share"] == pytest.approx(1 - row.value / device.value)
    assert {row.model for row in rows if row.metric == "cache_hit_rate"} == {names[-1]}
    huge = OffloadStage("smoke", (10**9,), 0.1)
    with pytest.raises(UserError, match=r"offload.tables=\[1000000000\]: none fits"):
        time_storages({}, huge, 0, tmp_path, Reporter(quiet=True))


def test_tables_in_all_storages_give_the_same_logits() -> None:
    model, spec = offload.bench_model(bench_arms("smoke")["engram"])
    text = offload.zipf_tokens(512, 0, (8, 256))
    seen = []
    for table in offload.make_tables(spec).values():
        model.model.memory(1).table = table
        with torch.inference_mode():
            seen.append(model(text).logits)
    assert len(seen) == 6 and all(torch.equal(each, seen[0]) for each in seen)


@pytest.mark.slow
def test_bench_evaluate_gives_equal_answers_and_ratios() -> None:
    rows = resolve(BENCHES["evaluate"])(0.01, Reporter(quiet=True), scale="smoke")
    assert [row["requests"] for row in rows] == [384, 96, 64, 16]
    for row in rows:
        assert row["unequal"] == 0 and (row["max_nats"] or 0) < 1e-4
        assert row["ratio"] == pytest.approx(row["hflm_s"] / row["ours_s"])
        assert row["cpu_ratio"] > 0
