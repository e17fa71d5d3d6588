"""From ids to rows, compiled: against torch's own functions and plain Python."""

import copy

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from engram_eval.models.hashing import NgramHash, TokenHistory, allot_primes, draw_multipliers
from engram_eval.models.native_lookup import LARGEST, NativeLookup, hashing, lookup_for
from engram_eval.models.table import RowTable

pytestmark = native_tools.needed
VOCABULARY, PAD, BOUNDARY = 9, 3, 5


lookup = native_tools.builds("lookup", NativeLookup)


def history_of(length: int, boundary: int | None) -> TokenHistory:
    history = TokenHistory(VOCABULARY, length, PAD, boundary, compressed=True)
    history.compressed_ids.copy_(torch.tensor([4, 4, 0, 1, 2, 2, 3, 0, 1]))
    return history


@given(
    ids=st.lists(
        st.lists(st.integers(-1, VOCABULARY - 1), min_size=7, max_size=7), min_size=1, max_size=3
    ),
    new=st.integers(1, 7),
    length=st.integers(1, 5),
    boundary=st.sampled_from([None, BOUNDARY]),
)
def test_looking_back_equals_torch(
    ids: list[list[int]], new: int, length: int, boundary: int | None
) -> None:
    history, given_ids = history_of(length, boundary), torch.tensor(ids)
    found = history(given_ids, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeLookup, "load", lambda: None)
        expected = history(given_ids, new)
    assert torch.equal(found, expected)


TOP = 2**63 - 1
PRIMES = st.one_of(st.integers(1, 40), st.integers(1, LARGEST), st.integers(LARGEST - 40, LARGEST))


@given(
    lengths=st.sampled_from([(1,), (2, 3), (1, 3, 4)]),
    heads=st.integers(1, 9),
    tokens=st.integers(1, 20),
    offset=st.booleans(),
    data=st.data(),
)
def test_hashing_equals_whole_numbers(
    lookup: NativeLookup,
    lengths: tuple[int, ...],
    heads: int,
    tokens: int,
    offset: bool,
    data: st.DataObject,
) -> None:
    longest = lengths[-1]
    many = len(lengths) * heads
    primes = data.draw(st.lists(PRIMES, min_size=many, max_size=many))
    largest = 2**62 // VOCABULARY
    multipliers = data.draw(st.lists(st.integers(1, largest), min_size=longest, max_size=longest))
    history = torch.randint(VOCABULARY, (longest, 1, tokens))
    constants = hashing(lengths, tuple(primes), tuple(multipliers), offset)
    rows = lookup.hash_history(history, constants)[0].tolist()
    for token, found in enumerate(rows):
        ids, expected = history[:, 0, token].tolist(), []
        for order, length in enumerate(lengths):
            mix = 0
            for number, multiplier in zip(ids[:length], multipliers[:length], strict=True):
                mix ^= number * multiplier
            expected += [mix % p for p in primes[order * heads : (order + 1) * heads]]
        before = [sum(primes[:head]) if offset else 0 for head in range(many)]
        assert found == [one + other for one, other in zip(expected, before, strict=True)]


@pytest.mark.parametrize(
    "modulus", [1, 2, 3, 12503, 2**18 - 5, 2**18, 2**20 - 3, 2**31 - 1, LARGEST - 1, LARGEST]
)
def test_a_million_numbers_and_all_around_the_largest_multiples(
    lookup: NativeLookup, modulus: int
) -> None:
    draw = torch.Generator().manual_seed(modulus)
    numbers = torch.randint(0, TOP, (1_000_000,), generator=draw)
    # Multiples and the numbers before them, from zero up and from the largest down; and halves,
    # where rounding to the nearest turns.
    steps = torch.arange(50_000) * modulus
    high = TOP // modulus * modulus - steps
    near = [steps, (steps - 1).clamp_min(0), high, high - 1, steps + modulus // 2]
    numbers[:250_000] = torch.cat(near)
    found = lookup.hash_history(numbers.view(1, 1, -1), hashing((1,), (modulus,), (1,), False))
    assert torch.equal(found[0, :, 0], numbers % modulus)


@pytest.mark.parametrize("rows", [50, 2**30])
def test_a_hash_is_the_same_by_either_way(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    primes = allot_primes([0], [rows] * 2, 2)[0]
    index = NgramHash((2, 3), primes, draw_multipliers(0, 0, 3, 97))
    history = torch.randint(0, 97, (3, 2, 200), generator=torch.Generator().manual_seed(0))
    whole = index(history)
    pieces = torch.cat([index(each) for each in history.split(20, dim=-1)], dim=1)
    assert torch.equal(whole, pieces) and whole.shape == (2, 200, 4)
    assert torch.equal(index.hash_ids(history), whole - (index.primes.cumsum(0) - index.primes))
    graph = torch.export.export(index, (history,))
    assert torch.equal(graph.module()(history), whole)
    with FlopCounterMode(display=False) as counter:
        assert torch.equal(index(history), whole)
    assert counter.get_total_flops() == 0
    # A loaded model's constants are written into those that it was built with.
    index.primes.copy_(torch.tensor([53, 59, 61, 67]))
    mixes = index.mixes(history).repeat_interleave(2, dim=-1)
    assert torch.equal(index.hash_ids(history), mixes % torch.tensor([53, 59, 61, 67]))
    monkeypatch.setattr(NativeLookup, "load", lambda: None)
    assert torch.equal(index.hash_ids(history), mixes % torch.tensor([53, 59, 61, 67]))


def test_larger_primes_are_left_to_torch() -> None:
    primes = (2**61 - 1, 2**31 - 1)
    index = NgramHash((1, 2), primes, (2**60 + 1, 2**59 + 3))
    history = torch.tensor([[[0, 1, 2]], [[1, 2, 3]]])
    pairs = zip(*history[:, 0].tolist(), strict=True)
    for row, (one, other) in zip(index.hash_ids(history)[0].tolist(), pairs, strict=True):
        mixes = one * (2**60 + 1), one * (2**60 + 1) ^ other * (2**59 + 3)
        assert row == [mix % prime for mix, prime in zip(mixes, primes, strict=True)]


@given(st.integers(1, 50), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_are_those_of_the_table(count: int, width: int, dtype: torch.dtype) -> None:
    table = RowTable(11, width).to(dtype)
    rows = torch.randint(11, (2, count, 3))
    with torch.no_grad():
        found = table(rows)
    assert torch.equal(found, table(rows)) and table(rows).requires_grad
    weights = torch.randn(found.shape).to(dtype)
    (ours,) = torch.autograd.grad(table(rows), table.weight, weights)
    plain = torch.nn.functional.embedding(rows, table.weight.double()).flatten(-2)
    (theirs,) = torch.autograd.grad(plain, table.weight, weights.double(), retain_graph=True)
    # In half precision torch adds them up.
    close = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=close, atol=20 * close)
    assert found.shape == (2, count, 3 * width) and not found.requires_grad
    rounded = table(rows, rounded=True)
    assert torch.equal(rounded, found.bfloat16())
    (ours,) = torch.autograd.grad(rounded, table.weight, weights.bfloat16())
    (theirs,) = torch.autograd.grad(plain, table.weight, weights.bfloat16().double())
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=close, atol=20 * close)
    table.freeze()
    assert torch.equal(table(rows), found)


def test_what_does_not_exist_is_named(lookup: NativeLookup) -> None:
    with pytest.raises(IndexError, match="token id 9 of a vocabulary of 9"):
        history_of(2, None)(torch.tensor([[1, 9]]), 2)
    for row in (-1, 11):
        with pytest.raises(IndexError, match=f"row {row} of a table of 11"):
            lookup.gather(torch.zeros(11, 4), torch.tensor([[0, 3, row]]))


def test_narrow_numbers_are_left_to_torch() -> None:
    """Read as wide ones they would be nonsense."""
    ids, table = torch.tensor([[1, 5, 2, -1, 7]]), RowTable(11, 3)
    assert lookup_for(ids.int()) is None
    history = history_of(3, BOUNDARY)
    assert torch.equal(history(ids.int(), 4), history(ids, 4))
    with torch.no_grad():
        assert torch.equal(table(ids.int().clamp_min(0)), table(ids.clamp_min(0)))


@pytest.mark.parametrize("inference", [False, True])
def test_changed_constants_are_noticed(inference: bool) -> None:
    with torch.inference_mode(inference):
        index = NgramHash((1, 2), (7, 11, 13, 17), (3, 5))
        history = torch.randint(50, (2, 3, 8), generator=torch.Generator().manual_seed(0))
        index(history)
        index.primes.copy_(torch.tensor([5, 3, 19, 23]))
        mixes = index.mixes(history).repeat_interleave(2, dim=-1)
        assert torch.equal(index.hash_ids(history), mixes % index.primes)
        index.multipliers = torch.tensor([9, 1])
        mixes = index.mixes(history).repeat_interleave(2, dim=-1)
        assert torch.equal(index.hash_ids(history), mixes % index.primes)
        assert torch.equal(copy.deepcopy(index)(history), index(history))
