"""What training shows of itself: collisions, router, gates, losses by domain."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import training_tools as tools
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.costs.ledger import architecture_config
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.training.collisions import Collisions
from engram_eval.training.data import Batches
from engram_eval.training.lookup import look_up
from engram_eval.training.prefetch import prefetched
from engram_eval.training.step import loss_of
from engram_eval.training.watch import Watch, peak_gpu_memory_mb


def model_of(name: str = "engram", **changes: Any) -> EngramForCausalLM:
    keys = {**tools.ARCHITECTURES[name], "engram_compression": False, **changes}
    return EngramForCausalLM(architecture_config(keys)).train()


def text(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 300, (batch, length), generator=generator)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=6))
def test_collisions_equal_a_slow_count(batches: list[list[int]]) -> None:
    """One order, two heads of 3 and 2 rows; an n-gram is its own mix."""
    ours, last = Collisions(5), dict[int, int]()
    for batch in batches:
        mixes = torch.tensor(batch).view(1, -1, 1)
        rows = torch.cat((mixes % 3, 3 + mixes % 2), dim=-1)
        reads = [(row, mix) for mix in batch for row in (mix % 3, 3 + mix % 2)]
        wrong = sum(row in last and last[row] != mix for row, mix in reads)
        assert ours.see(rows, mixes) == pytest.approx(wrong / len(reads))
        last |= {row: max(m for r, m in reads if r == row) for row, _ in reads}


def test_one_row_serves_everybody() -> None:
    model = model_of(engram_index="single", engram_rows=[1, 1])
    watch = Watch(model)
    for seed in (0, 1):
        model(text(seed=seed))
        watch.look(look_up(model, text(seed=seed)))
        rate = watch.numbers()["collision_rate"]
    # Only the n-gram that happened to be kept does not collide.
    assert rate > 0.9


def test_lookup_is_what_the_model_reads() -> None:
    model, ids = model_of(), text()
    found = look_up(model, ids)
    assert found.rows.keys() == model.model.ngram_rows(ids).keys() == {1}
    torch.testing.assert_close(found.rows[1], model.model.ngram_rows(ids)[1])
    heads = model.model.memory(1).hash.primes
    again = found.mixes[1].repeat_interleave(2, dim=-1) % heads
    torch.testing.assert_close(again + heads.cumsum(0) - heads, found.rows[1])
    assert look_up(model_of("moe"), ids) == ({}, {})


def test_prefetched_batches_are_the_batches_and_give_the_same_loss() -> None:
    model = model_of()
    batches = Batches(text(1, 400).numpy()[0], 8, 4, 0)
    ahead = list(prefetched(model, batches, 3, 7))
    assert len(ahead) == 4 and not list(prefetched(model, batches, 7, 7))
    for step, batch in enumerate(ahead, start=3):
        plain = batches.batch(step)
        assert torch.equal(batch.inputs, plain.inputs) and plain.lookup is None
        with torch.no_grad():
            assert torch.equal(*(loss_of(model, b, False).mean for b in (batch, plain)))


def test_batches_know_the_domains_of_what_they_predict() -> None:
    # Three documents of 5, 3 and 8 tokens, of domains 1, 0 and 2.
    docs = np.array([[0, 5, 1, 9], [5, 8, 0, 9], [8, 17, 2, 9]])
    batches = Batches(np.arange(17), 8, 2, 0, docs)
    batch = batches.batch(0)
    domain_of = [1] * 5 + [0] * 3 + [2] * 9
    assert batch.domains is not None
    assert batch.domains.tolist() == [[domain_of[t] for t in row] for row in batch.labels.tolist()]


def test_router_numbers_of_an_even_and_of_a_stubborn_router() -> None:
    model = model_of("moe")
    watch = Watch(model)
    routers = [block.mlp.gate for block in model.model.layers[1:]]
    with torch.no_grad():
        for router in routers:
            router.weight.zero_()
        model(text())
        even = watch.numbers()
        assert even["router_entropy_bits"] == pytest.approx(math.log2(4), rel=1e-6)
        # All ties: everybody goes to the same two of four experts.
        assert even["router_load_max"] == pytest.approx(2)
        assert even["router_load_entropy_bits"] == pytest.approx(1, rel=1e-6)


def test_gate_quantiles_and_what_survives_an_interruption() -> None:
    model = model_of()
    watch = Watch(model)
    ids = text()
    model(ids)
    watch.look(look_up(model, ids))
    found = watch.numbers()
    gates = [found[name] for name in ("gate_p10", "gate_p50", "gate_p90")]
    assert 0 < gates[0] <= gates[1] <= gates[2] < 1 and gates[0] < found["gate_mean"] < gates[2]
    other = Watch(model)
    other.unpack(watch.pack())
    for each in (watch, other):
        each.look(look_up(model, text(seed=1)))
    assert watch.numbers() == other.numbers()
    watch.close()
    other.close()
    touched = watch.numbers()["rows_touched"]
    model(text(seed=2))
    assert watch.numbers()["rows_touched"] == touched, "nobody looks any more"


def test_the_peak_on_a_gpu_is_what_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert peak_gpu_memory_mb() is None, "no GPU computes here"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert peak_gpu_memory_mb() == 3
