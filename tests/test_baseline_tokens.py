"""The suffix array, the unbounded n-gram and the cache against brute force; mixtures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.baselines.cache import Cache
from engram_eval.baselines.infini import LENGTHS, Infini
from engram_eval.baselines.kneser_ney import KneserNey
from engram_eval.baselines.mixture import MOST, Mixture, Weights, cross_tuned, tune
from engram_eval.baselines.predictor import Predictor, Scored, history
from engram_eval.baselines.suffix_array import Queries, build_suffix_array, open_suffix_array
from engram_eval.corpus.ngrams import NGramModel

VOCAB = 5
texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)


def places(stream: Sequence[int], told: Sequence[int]) -> list[int]:
    """Where a history ends in the text, one past its last token."""
    n = len(told)
    return [i for i in range(n, len(stream) + 1) if list(stream[i - n : i]) == list(told)]


def longest(stream: Sequence[int], told: Sequence[int]) -> tuple[int, list[int]]:
    for n in range(len(told), 0, -1):
        if found := places(stream, told[len(told) - n :]):
            return n, found
    return 0, []


@settings(max_examples=40)
@given(texts, texts)
def test_the_suffix_array_finds_the_longest_match(
    tmp_path_factory: pytest.TempPathFactory, train: list[int], told: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("sa")
    index = build_suffix_array(np.array(train, np.int64), folder)
    suffixes = [train[::-1][start:] for start in range(len(train))]
    assert [suffixes[i] for i in index.order] == sorted(suffixes)
    # Every beginning of ``told`` is a query, most recent token first.
    begin = np.arange(len(told), -1, -1)
    queries = Queries(np.array([*told[::-1], 0]) + 1, begin, np.arange(len(told) + 1))
    found = open_suffix_array(folder).longest(queries)
    for size in range(len(told) + 1):
        length, ends = longest(train, told[:size])
        first, last = found.first[size], found.last[size]
        assert found.length[size] == length
        if length:
            follows = [train[end] if end < len(train) else -1 for end in ends]
            assert sorted(index.following(np.arange(first, last))) == sorted(follows)


def slow_infini(train: Sequence[int], context: Sequence[int], token: int) -> tuple[float, str]:
    length, ends = longest(train, history(np.array(context, np.int64)).tolist())
    follows = [train[end] for end in ends if end < len(train)]
    if not follows:
        return 0.0, "none"
    level = max(n for n in LENGTHS if n <= length)
    kind = "sparse" if len(set(follows)) == 1 else "dense"
    return follows.count(token) / len(follows), f"{level}+ {kind}"


@settings(max_examples=40)
@given(texts, texts)
def test_the_unbounded_ngram_equals_counting(
    tmp_path_factory: pytest.TempPathFactory, train: list[int], text: list[int]
) -> None:
    model = Infini.fit(np.array(train, np.int64), VOCAB, tmp_path_factory.mktemp("infini"))
    check(model, text, lambda context, token: slow_infini(train, context, token))


def test_long_texts_keep_long_matches_and_large_vocabularies(tmp_path: Path) -> None:
    train = np.random.default_rng(0).integers(1, 100_000, 3000)
    model = Infini.fit(train, 100_000, tmp_path)
    scored = model.score(np.concatenate([[7], train[1000:1200]]))
    assert (scored.p[2:] == 1).all()
    assert model.kinds[scored.kind[-1]] == "16+ sparse"
    assert model.index.text.dtype == np.dtype("<u4")


def slow_cache(context: Sequence[int], token: int, window: int, order: int) -> tuple[float, str]:
    told = history(np.array(context, np.int64)).tolist()
    p, kind = 1 / VOCAB, "empty"
    for depth in range(order):
        if depth > len(told):
            break
        end = told[len(told) - depth :]
        follows = [
            told[i]
            for i in range(max(depth, len(told) - window), len(told))
            if told[i] != 0 and told[i - depth : i] == end
        ]
        if not follows:
            break
        p, kind = (follows.count(token) + p) / (len(follows) + 1), f"order {depth + 1}"
    return p, kind


@settings(max_examples=40)
@given(texts, st.integers(1, 12), st.integers(1, 4))
def test_the_cache_equals_counting(text: list[int], window: int, order: int) -> None:
    model = Cache(VOCAB, window, order)
    check(model, text, lambda context, token: slow_cache(context, token, window, order))
    sums = model.distributions([np.array(text[:n], np.int64) for n in range(len(text))]).p.sum(1)
    assert sums == pytest.approx(1)


def check(model: Predictor, text: list[int], slow) -> None:
    """Compare both faces of a predictor with a slow one."""
    expected = [slow(text[:i], token) for i, token in enumerate(text)]
    scored = model.score(np.array(text))
    assert scored.p == pytest.approx([p for p, _ in expected])
    assert [model.kinds[kind] for kind in scored.kind] == [kind for _, kind in expected]
    found = model.distributions([np.array(text[:i], np.int64) for i in range(len(text))])
    assert found.p[np.arange(len(text)), text] == pytest.approx(scored.p)
    assert (found.kind == scored.kind).all()


def test_histories_stop_where_they_are_told_to() -> None:
    text = np.array([1, 2, 1, 2, 1, 2])
    cache = Cache(VOCAB)
    starts = np.array([0, 0, 0, 3, 3, 3])
    assert cache.score(text, starts).p[3:] == pytest.approx(cache.score(text[3:]).p)


def test_weights_are_the_likeliest_ones_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=4000)
    q = rng.uniform(0.01, 1, 4000) ** np.where(kind == 0, 4, 1)
    p = rng.uniform(0.01, 1, 4000)
    found = tune(Scored(q, kind), p, ("a", "b")).values

    def cost(weight: float, of: int) -> float:
        mine = kind == of
        return -np.log(weight * q[mine] + (1 - weight) * p[mine]).sum()

    for of in (0, 1):
        best = scipy.optimize.minimize_scalar(cost, bounds=(0, 1), args=(of,), method="bounded")
        assert found[of] == pytest.approx(best.x, abs=1e-3)
    assert found[0] < found[1]


def test_a_memory_that_says_nothing_has_no_weight_and_rare_kinds_take_the_common_one() -> None:
    memory = Scored(
        np.array([0.0] * 60 + [0.9] * 200 + [0.9] * 3), np.repeat([0, 1, 2], [60, 200, 3])
    )
    found = tune(memory, np.full(263, 0.5), ("none", "often", "rarely")).values
    assert found[0] == 0 and found[1] == pytest.approx(MOST)
    assert 0 < found[2] < found[1]


def test_no_document_chooses_its_own_weight() -> None:
    # The memory is right about every second document only.
    side = np.repeat([0, 1], 100)
    memory = Scored(np.where(side == 0, 0.9, 0.1), np.zeros(200, np.int64))
    p = np.full(200, 0.5)
    mixed = cross_tuned(lambda _: memory, p, ("any",), side)
    assert mixed[side == 0] == pytest.approx(0.5)
    assert mixed[side == 1] == pytest.approx(0.1 * MOST + 0.5 * (1 - MOST), rel=1e-6)


def test_no_document_chooses_settings_of_the_memory() -> None:
    """Each half is scored by the memory as the other half set it: by the halves' own numbers."""
    side = np.repeat([0, 1], 100)
    p = np.full(200, 0.1)

    def set_by(part: np.ndarray) -> Scored:
        return Scored(np.full(200, 0.2 + 0.4 * side[part].mean()), np.zeros(200, np.int64))

    mixed = cross_tuned(set_by, p, ("any",), side)
    assert mixed[side == 0] == pytest.approx(0.6 * MOST + 0.1 * (1 - MOST), rel=1e-6)
    assert mixed[side == 1] == pytest.approx(0.2 * MOST + 0.1 * (1 - MOST), rel=1e-6)


def test_a_mixture_is_a_predictor(tmp_path: Path) -> None:
    train = np.array([1, 2, 3, 0, 1, 2, 4, 0, 3, 1, 2, 3, 0])
    base = KneserNey.fit(NGramModel.count(train, VOCAB, 3), 3)
    memory = Infini.fit(train, VOCAB, tmp_path)
    weights = Weights(np.array([0.0, *[0.3, 0.6] * len(LENGTHS)]))
    both = Mixture(memory, base, weights)
    text = np.array([1, 2, 3, 0, 3, 1, 2])
    weight = weights.values[memory.score(text).kind]
    expected = weight * memory.score(text).p + (1 - weight) * base.score(text).p
    assert both.score(text).p == pytest.approx(expected)
    found = both.distributions([text[:i] for i in range(7)]).p
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[np.arange(7), text] == pytest.approx(expected)
