import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.corpus.longest_match import longest_match
from engram_eval.corpus.ngrams import NGramModel, ranked
from engram_eval.errors import UserError
from tests.slow_ngrams import SlowNGrams, history


def streams(vocab_size: int, max_size: int = 120) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=max_size)


VOCAB = 4


@given(streams(VOCAB), streams(VOCAB, 40), st.integers(1, 5), st.integers(0, 6))
def test_surprisal_equals_the_slow_truth(
    train: list[int], tokens: list[int], order: int, cut: int
) -> None:
    slow = SlowNGrams(train, VOCAB, order)
    model = NGramModel.count(train, VOCAB, order)
    starts = [0 if t < cut else cut for t in range(len(tokens))]
    expected = slow.surprisal_bits(tokens, order, starts)
    np.testing.assert_allclose(model.surprisal_bits(tokens, order, starts), expected, atol=1e-12)
    whole = slow.surprisal_bits(tokens, order, [0] * len(tokens))
    np.testing.assert_allclose(model.surprisal_bits(tokens, order), whole, atol=1e-12)


@given(streams(VOCAB), streams(VOCAB, 8), st.integers(1, 5))
def test_probabilities_add_up_to_one(train: list[int], context: list[int], order: int) -> None:
    model = NGramModel.count(train, VOCAB, 5)
    bits = [model.surprisal_bits([*context, token], order)[-1] for token in range(VOCAB)]
    assert np.isfinite(bits).all()
    assert np.exp2(-np.array(bits)).sum() == pytest.approx(1, abs=1e-12)


@given(streams(VOCAB), streams(VOCAB, 20), streams(VOCAB, 20))
def test_no_order_sees_across_documents(train: list[int], one: list[int], two: list[int]) -> None:
    model = NGramModel.count(train, VOCAB, 5)
    end = [0, 1, 2, 3]
    bits = [model.surprisal_bits([*before, *end], 5)[-3:] for before in (one, two)]
    assert np.array_equal(*bits)


@given(streams(VOCAB))
def test_counts_stay_within_documents(train: list[int]) -> None:
    """Counting two documents one behind the other counts each alone."""
    model = NGramModel.count([*train, 0, 1, 2, 0], VOCAB, 3)
    assert sum(model.counts[0]) == len(train) + 4
    pairs = Counter(zip([*train, 0, 1, 2], [*train[1:], 0, 1, 2, 0], strict=True))
    assert sorted(model.counts[1]) == sorted(pairs.values())


@pytest.mark.parametrize("vocab_size", [300, 50_000, 2**20])
def test_large_vocabularies_are_exact(vocab_size: int) -> None:
    """Vocabulary ** 5 does not fit 64 bits here; keys must not run into each other."""
    rng = np.random.default_rng(0)
    alphabet = np.append(rng.choice(vocab_size, 6, replace=False), vocab_size - 1)
    train, tokens = rng.choice(alphabet, 3_000).tolist(), rng.choice(alphabet, 200).tolist()
    model = NGramModel.count(train, vocab_size, 5)
    expected = SlowNGrams(train, vocab_size, 5).surprisal_bits(tokens, 5, [0] * 200)
    np.testing.assert_allclose(model.surprisal_bits(tokens, 5), expected, rtol=1e-12)


@given(st.lists(st.integers(0, 40) | st.integers(2**58, 2**60), max_size=60))
def test_ranks_are_those_of_unique(values: list[int]) -> None:
    array = np.array(values, np.int64)
    wanted = np.unique(array, return_inverse=True, return_counts=True)
    for found, expected in zip(ranked(array), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_hand_worked_case() -> None:
    # "1 2 | 1 3 |": after 1 come 2 and 3, once each.
    model = NGramModel.count([1, 2, 0, 1, 3, 0], 4, 2)
    unigram_2 = (1 + 4 / 4) / (6 + 4)
    assert 2 ** -model.surprisal_bits([2], 1)[0] == pytest.approx(unigram_2)
    bigram = (1 + 2 * unigram_2) / (2 + 2)
    assert 2 ** -model.surprisal_bits([1, 2], 2)[1] == pytest.approx(bigram)


def test_what_completes_a_known_pattern_costs_little() -> None:
    model = NGramModel.count([1, 2, 3, 0] * 9, 5, 5)
    _, _, completes, breaks = model.surprisal_bits([0, 1, 2, 4], 3)
    assert completes < 1 < breaks


def test_saved_counts_are_the_same(tmp_path: Path) -> None:
    train = np.random.default_rng(1).integers(0, 50, 2_000).astype(np.uint16)
    model = NGramModel.count(train, 50, 4)
    model.save(tmp_path)
    again = NGramModel.load(tmp_path)
    assert (again.vocab_size, again.max_order) == (50, 4)
    assert np.array_equal(model.surprisal_bits(train, 4), again.surprisal_bits(train, 4))


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = NGramModel.count([1, 2], 4, 2)
    for order in (0, 3):
        with pytest.raises(UserError, match=f"order {order}; counted are 1 to 2"):
            model.surprisal_bits([1], order)
    with pytest.raises(UserError, match="tokens from 1 to 4; the vocabulary has 4"):
        model.surprisal_bits([1, 4], 2)
    with pytest.raises(UserError, match="tokens from 1 to 4; the vocabulary has 4"):
        NGramModel.count([1, 4], 4, 2)
    with pytest.raises(UserError, match="cannot count 0 tokens"):
        NGramModel.count([], 4, 2)
    with pytest.raises(UserError, match="to order 0"):
        NGramModel.count([1], 4, 0)
    with pytest.raises(UserError, match="no n-gram counts here"):
        NGramModel.load(tmp_path)


def slow_match(train: list[int], tokens: list[int], t: int, cap: int) -> tuple[int, int, Counter]:
    """The longest history found in the training text, how often, and what follows it."""
    longest = history(tokens, t, cap)
    for length in range(len(longest), 0, -1):
        part = list(longest[len(longest) - length :])
        places = [i for i in range(len(train) - length + 1) if train[i : i + length] == part]
        if places:
            follows = Counter(train[i + length] for i in places if i + length < len(train))
            return length, len(places), follows
    return 0, len(train), Counter(train)


@settings(max_examples=60)
@given(streams(3, 80), streams(3, 40), st.sampled_from([1, 2, 3, 5, 8, 64]), st.integers(1, 3))
def test_longest_match_equals_the_slow_truth(
    train: list[int], tokens: list[int], cap: int, order: int
) -> None:
    model = NGramModel.count(train, 3, order)
    match = longest_match(model, train, tokens, cap)
    lower = 2 ** -model.surprisal_bits(tokens, order)
    for t, token in enumerate(tokens):
        length, number, follows = slow_match(train, tokens, t, cap)
        assert (match.length[t], match.occurrences[t]) == (length, number)
        p = lower[t] if length < order else (follows[token] + lower[t]) / (number + 1)
        assert match.surprisal_bits[t] == pytest.approx(-math.log2(p), abs=1e-9)


def test_longest_match_costs_less_where_text_repeats() -> None:
    rng = np.random.default_rng(2)
    passage = rng.integers(1, 20, 40)
    train = np.concatenate([rng.integers(1, 20, 3_000), [0], passage, [0]])
    model = NGramModel.count(train, 20, 5)
    match = longest_match(model, train, np.concatenate([[0], passage]))
    assert match.length[-1] == 40 and match.occurrences[-1] == 1
    assert match.surprisal_bits[10:].max() < model.surprisal_bits(passage, 5)[10:].mean() + 1
    halves = np.repeat([0, 20], [20, 20])
    limited = longest_match(model, train, passage, history_start=halves)
    assert limited.length[20] == 0 and limited.length[25] == 5
    with pytest.raises(UserError, match="max_length 0"):
        longest_match(model, train, passage, 0)


def test_a_hundred_thousand_tokens_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(3)
    train = (rng.zipf(1.3, 1_000_000) % 4_096).astype(np.uint16)
    model = NGramModel.count(train, 4_096, 5)
    model.surprisal_bits(train[:10], 5)
    started = time.process_time()
    model.surprisal_bits(train[:100_000], 5)
    assert time.process_time() - started < 2
