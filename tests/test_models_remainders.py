"""Remainders without division: what Python's integers give, up to the last number there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from engram_eval.models.hashing import NgramHash, allot_primes, draw_multipliers
from engram_eval.models.remainders import FEWEST, LARGEST, remainders, worthwhile

TOP = 2**63 - 1
MODULI = st.one_of(st.integers(1, 40), st.integers(1, LARGEST), st.integers(LARGEST - 40, LARGEST))


@st.composite
def near_multiples(draw: st.DrawFn, modulus: int) -> int:
    """Numbers whose quotient is next to a whole one, where rounding could go wrong."""
    quotient = draw(st.one_of(st.integers(0, 40), st.integers(0, TOP // modulus)))
    if draw(st.booleans()):
        quotient = TOP // modulus - quotient % 40
    return min(TOP, max(0, quotient * modulus + draw(st.integers(-2, 2))))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_against_python_integers(data: st.DataObject, orders: int, heads: int) -> None:
    moduli = tuple(data.draw(MODULI) for _ in range(orders * heads))
    offsets = tuple(data.draw(st.integers(0, 2**40)) for _ in moduli)
    number = st.one_of(
        st.integers(0, TOP), *(near_multiples(modulus) for modulus in moduli), st.just(TOP)
    )
    numbers = [[data.draw(number) for _ in range(orders)] for _ in range(4)]
    found = remainders(torch.tensor(numbers).view(2, 2, orders), moduli, offsets)
    assert found.dtype == torch.int64 and found.shape == (2, 2, orders * heads)
    for row, given_numbers in zip(found.view(4, -1).tolist(), numbers, strict=True):
        for head, (modulus, offset) in enumerate(zip(moduli, offsets, strict=True)):
            assert row[head] == given_numbers[head // heads] % modulus + offset


@pytest.mark.parametrize("modulus", [1, 2, 3, 12503, 2**20 - 3, LARGEST - 3, LARGEST])
def test_a_million_numbers_and_all_around_the_largest_multiples(modulus: int) -> None:
    draw = torch.Generator().manual_seed(modulus)
    numbers = torch.randint(0, TOP, (1_000_000,), generator=draw)
    # Multiples and the numbers before them, from zero up and from the largest down.
    steps = torch.arange(50_000) * modulus
    high = TOP // modulus * modulus - steps
    numbers[:200_000] = torch.cat([steps, (steps - 1).clamp_min(0), high, high - 1])
    found = remainders(numbers.view(-1, 1), (modulus,), (0,))
    assert torch.equal(found[:, 0], numbers % modulus)


def test_few_numbers_other_devices_and_watched_operations_are_divided() -> None:
    enough = torch.zeros(FEWEST, 1, dtype=torch.int64)
    assert worthwhile(enough)
    assert not worthwhile(enough[1:]) and not worthwhile(enough.to("meta"))
    with FakeTensorMode() as mode:
        assert not worthwhile(mode.from_tensor(enough))
    index = NgramHash((2,), (53, 59), (3, 5))
    with FlopCounterMode(display=False) as counter:
        index(torch.ones(2, 1, FEWEST, dtype=torch.int64))
    assert counter.get_total_flops() == 0
    history = torch.arange(2 * FEWEST).view(2, 1, FEWEST)
    graph = torch.export.export(index, (history,))
    assert torch.equal(graph.module()(history), index(history))


@pytest.mark.parametrize("rows", [50, 2**30])
def test_a_hash_is_the_same_on_both_ways(rows: int) -> None:
    """Few numbers, and moduli beyond the bound, are divided; many are not."""
    primes = allot_primes([0], [rows] * 2, 2)[0]
    index = NgramHash((2, 3), primes, draw_multipliers(0, 0, 3, 97))
    history = torch.randint(0, 97, (3, 2, 200), generator=torch.Generator().manual_seed(0))
    whole = index(history)
    pieces = torch.cat([index(each) for each in history.split(20, dim=-1)], dim=1)
    assert torch.equal(whole, pieces) and whole.shape == (2, 200, 4)
    assert torch.equal(index.hash_ids(history), whole - (index.primes.cumsum(0) - index.primes))
    # A loaded model's constants are written into those that it was built with.
    index.primes.copy_(torch.tensor([53, 59, 61, 67]))
    mixes = index.mixes(history).repeat_interleave(2, dim=-1)
    assert torch.equal(index.hash_ids(history), mixes % torch.tensor([53, 59, 61, 67]))
