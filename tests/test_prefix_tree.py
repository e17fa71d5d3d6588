"""Clusters and batches beside an exhaustive search."""

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.evaluation.batching import PASS_COST, Budget, Size, cut_batches
from engram_eval.evaluation.prefix_tree import (
    Stem,
    Tokens,
    common_length,
    find_clusters,
    make_stem,
    split_clusters,
)

SEQUENCES = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)


def slow_common(texts: Sequence[Tokens]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts)))  # noqa: B905


def most_saved(beginnings: Sequence[Tokens], cost: int, prefix: Tokens = ()) -> int:
    """Try, for each prefix in turn, one cluster of all that begin with it, or its parts."""
    below = [text for text in beginnings if text[: len(prefix)] == prefix]
    if len(below) < 2:
        return 0
    parts = sum(most_saved(below, cost, (*prefix, token)) for token in (0, 1))
    return max(len(prefix) * (len(below) - 1) - cost, parts, 0)


@given(SEQUENCES, SEQUENCES)
def test_common_length(a: Tokens, b: Tokens) -> None:
    assert common_length(a, b) == slow_common([a, b])


@given(st.lists(SEQUENCES, max_size=7), st.integers(0, 4))
def test_no_choice_of_clusters_saves_more(texts: list[Tokens], cost: int) -> None:
    ordered = sorted(texts)
    clusters = find_clusters(ordered, cost)
    ends = [0, *(place for c in clusters for place in (c.first, c.last)), len(ordered)]
    assert ends == sorted(ends)
    assert all(c.depth == slow_common(ordered[c.first : c.last]) for c in clusters)
    saved = sum(c.depth * (c.last - c.first - 1) - cost for c in clusters)
    assert saved == most_saved(ordered, cost)


def test_each_task_keeps_its_own_prefix() -> None:
    first, second = tuple(range(100, 150)), tuple(range(200, 260))
    lists = [(first, 30), (second, 20), ((), 10)]
    stems = [
        Stem((*prefix, n, n + 1), (), 1, 100 * len(prefix) + n)
        for prefix, count in lists
        for n in range(count)
    ]
    random.Random(0).shuffle(stems)
    found = split_clusters(stems, cost=100)
    assert [(depth, len(members)) for depth, members in found] == [(0, 10), (50, 30), (60, 20)]
    assert sorted(stem for _, members in found for stem in members) == sorted(stems)


def test_what_is_scored_is_never_part_of_a_prefix() -> None:
    shared = tuple(range(40))
    stems = [Stem((*shared, n), (), 11, n) for n in range(9)]
    assert split_clusters(stems, cost=1)[0][0] == 30


def test_what_a_deep_cluster_leaves_over_is_clustered() -> None:
    shared, deep = tuple(range(10)), tuple(range(100))
    stems = [Stem((*shared, 200 + n, n), (), 1, n) for n in range(20)]
    stems += [Stem((*deep, 200 + n, n), (), 1, 20 + n) for n in range(20)]
    assert [(d, len(members)) for d, members in split_clusters(stems, 5)] == [(100, 20), (10, 20)]


def test_nothing_to_cluster() -> None:
    assert split_clusters([]) == []
    assert find_clusters([]) == []


def test_a_stem_ends_where_its_sequences_part() -> None:
    stem = make_stem([(1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 3)], fresh_from=1, key=7)
    assert stem == Stem((1, 2, 3), ((4,), (5, 6)), fresh=2, key=7)
    assert stem.beginning == (1,)
    assert make_stem([(1, 2), (1, 2)], 0, 0) == Stem((1, 2), (), 2, 0)


def padded_cost(widths: Sequence[int], cuts: Sequence[int]) -> int:
    parts = itertools.pairwise([0, *cuts, len(widths)])
    return sum((last - first) * widths[first] + PASS_COST for first, last in parts)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=7))
def test_no_cut_costs_less(lengths: list[int]) -> None:
    widths = sorted(lengths, reverse=True)
    batches = list(cut_batches(widths, [Size(w, w, 1) for w in widths], Budget()))
    assert [w for batch in batches for w in batch] == widths
    cuts = list(itertools.accumulate(map(len, batches)))[:-1]
    inner = range(1, len(widths))
    options = (c for size in range(len(widths)) for c in itertools.combinations(inner, size))
    assert padded_cost(widths, cuts) == min(padded_cost(widths, option) for option in options)


@pytest.mark.parametrize("limit", ["tokens", "columns", "logits"])
@given(lengths=st.lists(st.integers(1, 30), max_size=40), most=st.integers(1, 90))
def test_batches_keep_each_budget(limit: str, lengths: list[int], most: int) -> None:
    widths = sorted(lengths, reverse=True)
    sizes = [Size(w, 2 * w, 3 * w) for w in widths]
    batches = list(cut_batches(widths, sizes, Budget(**{limit: most})))
    assert [w for batch in batches for w in batch] == widths
    factor = {"tokens": 1, "columns": 2, "logits": 3}[limit]
    assert all(len(b) * factor * b[0] <= most or len(b) == 1 for b in batches)


def test_a_full_budget_is_used() -> None:
    sizes = [Size(10, 10, 1)] * 12
    assert [len(b) for b in cut_batches(sizes, sizes, Budget(tokens=50))] == [5, 5, 2]
    assert [len(b) for b in cut_batches(sizes, sizes, Budget(columns=80))] == [8, 4]


def test_padding_is_borne_where_passes_are_dear() -> None:
    sizes = [Size(400, 400, 1), Size(10, 10, 1)]
    assert len(list(cut_batches(sizes, sizes, Budget(pass_cost=300)))) == 2
    assert len(list(cut_batches(sizes, sizes, Budget(pass_cost=500)))) == 1
