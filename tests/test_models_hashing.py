import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import full, tokens
from sympy import isprime, nextprime

from engram_eval.models.hashing import (
    INT64_MAX,
    NgramHash,
    TokenHistory,
    allot_primes,
    draw_multipliers,
    is_prime,
)


@given(st.integers(0, 10**7))
def test_primality_against_sympy(number: int) -> None:
    assert is_prime(number) == isprime(number)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=3),
    st.integers(1, 4),
    st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True),
)
def test_primes_are_the_next_unused(rows: list[int], heads: int, layers: list[int]) -> None:
    primes = allot_primes(layers, rows, heads)
    used: set[int] = set()
    for layer, (order, least) in itertools.product(layers, enumerate(rows)):
        for prime in primes[layer][order * heads : (order + 1) * heads]:
            expected = nextprime(least - 1)
            while expected in used:
                expected = nextprime(expected)
            assert prime == expected
            used.add(prime)


@given(st.integers(0, 40), st.integers(0, 99), st.integers(1, 5), st.integers(2, 200_000))
def test_multipliers_are_odd_and_never_overflow(
    layer: int, seed: int, count: int, vocab_size: int
) -> None:
    drawn = draw_multipliers(layer, seed, count, vocab_size)
    assert len(drawn) == count
    assert all(m % 2 == 1 and m * (vocab_size - 1) <= INT64_MAX for m in drawn)


def test_multipliers_differ_by_layer_and_seed() -> None:
    drawn = {draw_multipliers(layer, seed, 3, 1000) for layer in (0, 1) for seed in (0, 1)}
    assert len(drawn) == 4


def slow_rows(
    ids: list[int], orders: list[int], primes: list[int], multipliers: list[int], stop: int | None
) -> list[list[int]]:
    """Rows by Python integers; ids are not compressed and the pad id is 0."""
    heads = len(primes) // len(orders)
    table = []
    for position in range(len(ids)):
        row = []
        for order, first in zip(orders, range(0, len(primes), heads), strict=True):
            mix, blocked = ids[position] * multipliers[0], False
            for back in range(1, order):
                source = position - back
                blocked = blocked or source < 0 or ids[source] == stop
                mix ^= (0 if blocked else ids[source]) * multipliers[back]
            row += [
                mix % p + sum(primes[: first + k])
                for k, p in enumerate(primes[first : first + heads])
            ]
        table.append(row)
    return table


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.sampled_from([[1], [2], [2, 3], [1, 3], [2, 3, 4], [4]]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
)
def test_rows_against_python_integers(
    ids: list[int], orders: list[int], heads: int, reset: bool, seed: int
) -> None:
    primes = allot_primes([0], [50] * len(orders), heads)[0]
    multipliers = draw_multipliers(0, seed, orders[-1], 41)
    history = TokenHistory(41, orders[-1], 0, 7 if reset else None, compressed=False)
    seen = history(torch.tensor([ids]), len(ids))
    rows = NgramHash(orders, primes, multipliers)(seen)
    stop = 7 if reset else None
    assert rows[0].tolist() == slow_rows(ids, orders, list(primes), list(multipliers), stop)


def test_compressed_ids_and_pad_id_are_used() -> None:
    history = TokenHistory(4, 2, pad_id=3, boundary_id=None, compressed=True)
    history.compressed_ids.copy_(torch.tensor([0, 1, 1, 2]))
    seen = history(torch.tensor([[2, 1, 0]]), 3)
    assert seen[:, 0].tolist() == [[1, 1, 0], [2, 1, 1]]


def test_only_new_positions_are_returned() -> None:
    history = TokenHistory(50, 3, 0, None, compressed=False)
    ids = tokens(2, 9, vocab_size=50)
    assert torch.equal(history(ids, 2), history(ids, 9)[:, :, -2:])


def test_document_after_another_reads_the_rows_it_reads_alone() -> None:
    model = full().model
    first, second = tokens(1, 6, seed=1), tokens(1, 7, seed=2)
    end = torch.zeros(1, 1, dtype=torch.int64)
    packed = model.ngram_rows(torch.cat([first, end, second, end], dim=1))
    alone = model.ngram_rows(torch.cat([second, end], dim=1))
    for layer, rows in alone.items():
        assert torch.equal(packed[layer][:, 7:], rows)
    running_on = full(engram_reset_at_eos=False).model
    packed = running_on.ngram_rows(torch.cat([first, end, second, end], dim=1))
    assert not torch.equal(packed[0][:, 7:], running_on.ngram_rows(second)[0][:, :1])


def test_missing_compression_map_is_an_error() -> None:
    model = full(engram_compression=True)
    with pytest.raises(ValueError, match=r"call model\.set_tokenizer"):
        model(tokens(1, 4))


def test_maps_of_wrong_shape_or_range_are_refused() -> None:
    model = full(engram_compression=True).model
    with pytest.raises(ValueError, match=r"must be \(97,\) numbers >= 0"):
        model.set_compression(torch.zeros(96, dtype=torch.int64))
    with pytest.raises(ValueError, match="least -1"):
        model.set_compression(torch.full((97,), -1))


def test_map_changes_multipliers_to_its_range() -> None:
    model = full(engram_compression=True, engram_seed=5).model
    model.set_compression(torch.arange(97) // 2)
    for layer in (0, 2):
        expected = draw_multipliers(layer, 5, 3, 49)
        assert model.memory(layer).hash.multipliers.tolist() == list(expected)
