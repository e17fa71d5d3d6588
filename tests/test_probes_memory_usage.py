"""Table use and cache curves against slow, readable counts."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, engram, llama

from engram_eval.adapters.load import open_model
from probes.cache_curves import hottest_hits, lfu_hits, lru_distances, lru_hits
from probes.memory_usage import crowding, effective_rank, memory_usage, zipf_exponent
from probes.ngram_rows import ngram_ids, row_memories
from probes.patterns import Text

READS = st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array)


def slow_lru(reads: np.ndarray, size: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in reads.tolist():
        hits += row in kept
        kept[row] = None
        kept.move_to_end(row)
        if len(kept) > size:
            kept.popitem(last=False)
    return hits / len(reads)


def slow_lfu(reads: np.ndarray, size: int) -> float:
    kept: set[int] = set()
    past: list[int] = []
    hits = 0
    for row in reads.tolist():
        hits += row in kept
        if row not in kept and len(kept) == size:
            last = {r: max(i for i, x in enumerate(past) if x == r) for r in kept}
            kept.remove(min(kept, key=lambda r: (past.count(r), last[r])))
        kept.add(row)
        past.append(row)
    return hits / len(reads)


@given(READS)
def test_cache_curves_equal_slow_simulations(reads: np.ndarray) -> None:
    sizes = np.arange(1, 12)
    np.testing.assert_allclose(lru_hits(reads, sizes), [slow_lru(reads, k) for k in sizes])
    np.testing.assert_allclose(lfu_hits(reads, sizes), [slow_lfu(reads, k) for k in sizes])
    # All rows cached: the fixed choice serves everything, the others all but the first reads.
    assert hottest_hits(reads, sizes)[-1] == 1
    assert lru_hits(reads, sizes)[-1] == pytest.approx(1 - len(set(reads.tolist())) / len(reads))


@given(READS)
def test_a_larger_cache_never_serves_less(reads: np.ndarray) -> None:
    for rates in (lru_hits, hottest_hits):
        assert (np.diff(rates(reads, np.arange(1, 12))) >= 0).all()


def test_stack_distances_by_hand() -> None:
    reads = np.array([5, 7, 5, 5, 9, 7, 5])
    assert lru_distances(reads).tolist() == [-1, -1, 1, 0, -1, 2, 2]


@pytest.mark.parametrize("exponent", [0.3, 0.8, 1.2])
def test_zipf_exponent_is_recovered(exponent: float) -> None:
    p = np.arange(1, 501) ** -exponent
    counts = np.random.default_rng(0).multinomial(200_000, p / p.sum())
    assert zipf_exponent(counts) == pytest.approx(exponent, abs=0.03)
    assert zipf_exponent(np.array([4])) is None


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.arange(1, 5.0), torch.ones(3))) == pytest.approx(1)


def test_crowding_by_hand() -> None:
    # n-gram 0 has row 4 to itself; 1 (once) and 2 (three times) share row 2.
    rows, ngrams = np.array([4, 2, 2, 2, 2, 4]), np.array([0, 1, 2, 2, 2, 0])
    np.testing.assert_allclose(crowding(rows, ngrams), [0, 0.75, 0.25, 0.25, 0.25, 0])


def test_ngrams_are_told_apart_as_the_memory_sees_them() -> None:
    adapter = open_model(engram())
    tokens = torch.tensor([[3, 4, 3, 4, 5, 0, 4, 3, 4]])
    (memory,) = row_memories(adapter)
    one = ngram_ids(adapter, memory, tokens, 1)
    assert one[0] == one[2]
    two = ngram_ids(adapter, memory, tokens, 2).tolist()
    assert two[1] == two[3] == two[8] and len(set(two)) == 6
    # What stands before the end of a document is not seen.
    assert two[6] != two[1]


def test_a_table_with_room_is_hardly_crowded_and_one_row_is_full() -> None:
    text = Text(np.random.default_rng(0).integers(1, VOCAB, 4000))
    roomy = memory_usage(open_model(engram(engram_rows=[200_003, 200_003])), text).rows
    single = memory_usage(open_model(engram(engram_index="single")), text).rows
    for rows, low, high in ((roomy, 0, 0.02), (single, 0.99, 1)):
        found = [r for r in rows if r.metric == "crowding"]
        assert len(found) == 2 * 3
        for row in found:
            assert low <= row.value <= high
            assert row.value == pytest.approx(row.baseline, abs=0.02)
    touched = [r.value for r in single if r.metric == "rows_touched"]
    assert touched == [1, 1]
    rank = next(r for r in single if r.metric == "effective_rank")
    assert rank.value == pytest.approx(1, abs=1e-3) and rank.baseline == 32


def test_no_table_no_rows() -> None:
    text = Text(np.arange(1, 40))
    assert memory_usage(open_model(llama()), text).rows == []
    assert row_memories(open_model(engram(engram_layers=[]))) == []
    product = engram(engram_memory="product_key", product_keys=8, product_key_top_k=2)
    assert memory_usage(open_model(product), text).rows == []


def test_every_policy_and_size_has_a_row() -> None:
    text = Text(np.random.default_rng(0).integers(1, VOCAB, 500))
    rows = memory_usage(open_model(engram()), text).rows
    curve = [r for r in rows if r.metric == "cache_hit_rate"]
    assert {r.condition for r in curve} == {"lru", "lfu", "hottest"}
    assert len(curve) == 15
    best = {r.slice["cached_share"]: r.value for r in curve if r.condition == "hottest"}
    assert list(best.values()) == sorted(best.values())
