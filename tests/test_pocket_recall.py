"""In-context lookups: the answer is in the text, and nowhere else."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, Mix
from engram_eval.corpus.document import Document
from engram_eval.corpus.recall import (
    EASY_LENGTH,
    EASY_SHARE,
    KEYS,
    LENGTHS,
    MIN_QUERIES,
    PAIRS,
    VALUES,
    Lookup,
    Repeat,
    make_lookup,
    make_repeat,
    recall_documents,
    render_lookup,
    render_repeat,
)

CONFIG = CorpusConfig(train_bytes=120_000, mix=Mix(recall=1.0, code=0, docs=0, facts=0, math=0))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(recall_documents(CONFIG))


def answers_by_reading(text: str) -> list[str]:
    """Solve a text without the generator."""
    if text.startswith("Say: "):
        first, *copies = text.removeprefix("Say: ").removesuffix(".").split("; ")
        assert all(copy == first for copy in copies)
        return [word for _ in copies for word in first.split()[1:]]
    told, asked = re.fullmatch(r"Pairs: (.*)\. Asked: (.*)\.", text).groups()  # type: ignore[union-attr]
    pairs = dict(pair.split() for pair in told.split(", "))
    return [pairs[query.split()[0]] for query in asked.split(", ")]


def test_lookup_on_a_hand_worked_case() -> None:
    line = render_lookup(Lookup(("fox", "cat"), ("tin", "ink"), (1, 0, 1)))
    assert line.text == "Pairs: fox tin, cat ink. Asked: cat ink, fox tin, cat ink."
    assert [line.text[a.start : a.end] for a in line.answers] == ["ink", "tin", "ink"]
    assert {(a.absent_bits, a.perfect_bits) for a in line.answers} == {(4.0, 0.0)}
    short = render_lookup(Lookup(("fox", "cat"), ("tin", "ink"), (1, 0, 1)), n_queries=1)
    assert short.text == "Pairs: fox tin, cat ink. Asked: cat ink."


def test_repeat_on_a_hand_worked_case() -> None:
    line = render_repeat(Repeat(("key", "map", "key"), 3))
    assert line.text == "Say: key map key; key map key; key map key."
    assert [line.text[a.start : a.end] for a in line.answers] == ["map", "key", "map", "key"]
    assert [a.start for a in line.answers] == [22, 26, 35, 39]
    assert {(a.absent_bits, a.perfect_bits) for a in line.answers} == {(4.0, 0.0)}


@given(st.sampled_from(PAIRS), st.integers(0, 2**32 - 1))
def test_lookups_ask_for_every_pair_equally_often(n_pairs: int, seed: int) -> None:
    lookup = make_lookup(np.random.default_rng(seed), n_pairs)
    assert len(set(lookup.keys)) == n_pairs == len(lookup.values)
    counts = Counter(lookup.queries)
    assert set(counts) == set(range(n_pairs)) and len(set(counts.values())) == 1
    assert len(lookup.queries) >= MIN_QUERIES and counts[0] >= 2
    assert answers_by_reading(render_lookup(lookup).text) == [
        lookup.values[query] for query in lookup.queries
    ]


@given(st.sampled_from(LENGTHS), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_repeats_have_the_size_asked_for(length: int, copies: int, seed: int) -> None:
    repeat = make_repeat(np.random.default_rng(seed), length, copies)
    assert len(repeat.words) == length and repeat.copies == copies
    assert len(render_repeat(repeat).answers) == (length - 1) * (copies - 1)


def test_words_are_distinct_plain_and_on_one_side_only() -> None:
    assert len(set(KEYS)) == len(set(VALUES)) == len(KEYS) == len(VALUES) == 16
    assert not set(KEYS) & set(VALUES)
    assert all(re.fullmatch("[a-z]{3,4}", word) for word in KEYS + VALUES)


def test_spans_cover_what_a_reader_finds(documents: list[Document]) -> None:
    for made in documents:
        spans = [made.text[a.start : a.end] for a in made.answers]
        assert spans == answers_by_reading(made.text)


def test_there_are_easy_and_hard_ones_and_many_queries(documents: list[Document]) -> None:
    lookups = [d for d in documents if d.text.startswith("Pairs")]
    assert 0.4 < len(lookups) / len(documents) < 0.6
    sizes = {d.text.split(".")[0].count(",") + 1 for d in lookups}
    assert sizes == set(PAIRS) and min(sizes) == 2
    assert min(len(d.answers) for d in lookups) >= MIN_QUERIES
    repeats = [d.text.split(";")[0].count(" ") for d in documents if d.text.startswith("Say")]
    assert set(repeats) == {EASY_LENGTH, *LENGTHS}
    assert abs(np.mean(np.array(repeats) == EASY_LENGTH) - EASY_SHARE) < 0.08


def test_nothing_can_be_memorised(documents: list[Document]) -> None:
    # A key says nothing about its value across documents: all values come up, evenly.
    values: Counter[str] = Counter()
    for made in documents:
        if made.split == "train" and made.text.startswith("Pairs"):
            told = made.text.split(". ")[0].removeprefix("Pairs: ")
            values.update(v for k, v in (p.split() for p in told.split(", ")) if k < "cow")
    assert set(values) == set(VALUES)
    assert max(values.values()) < 2 * values.total() / 16
    train = {d.text for d in documents if d.split == "train"}
    assert not train & {d.text for d in documents if d.split == "val" and len(d.text) > 60}


def test_sizes_follow_the_budget(documents: list[Document]) -> None:
    size = sum(len(d.text) for d in documents if d.split == "train")
    assert 120_000 <= size < 121_000
    val = sum(len(d.text) for d in documents if d.split == "val")
    assert val == pytest.approx(120_000 * 0.08 / 0.92, rel=0.06)
