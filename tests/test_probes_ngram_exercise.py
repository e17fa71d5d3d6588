"""Which of two 3-grams has ended: only their first token tells, by a slow count."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter
from probes.ngram_exercise import (
    CONTEXT,
    FEWEST_DOCUMENTS,
    MOST_DOCUMENTS,
    PAIRS,
    grams_of,
    ngram_exercise,
    pairs,
)

Gram = tuple[int, int, int]


def told(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a stream of documents, and which one each token is of."""
    sizes = [len(document) for document in documents]
    stream = np.array([token for document in documents for token in document], dtype=np.int64)
    return stream, np.repeat(np.arange(len(documents)), sizes)


def by_hand(documents: list[list[int]]) -> dict[Gram, dict[int, int]]:
    """Return where each document has each 3-gram first: its last token's place in the stream."""
    found: dict[Gram, dict[int, int]] = defaultdict(dict)
    start = 0
    for number, document in enumerate(documents):
        for end in range(2, len(document)):
            a, b, c = document[end - 2 : end + 1]
            found[a, b, c].setdefault(number, start + end)
        start += len(document)
    return found


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=40))
def test_the_first_place_of_each_ngram_in_each_document(documents: list[list[int]]) -> None:
    stream, document = told(documents)
    grams = grams_of(stream, document).first_of_documents()
    base = grams.vocabulary
    found: dict[Gram, dict[int, int]] = defaultdict(dict)
    for place, code, number in zip(grams.place, grams.code, grams.document, strict=True):
        gram = (code // base**2, code // base % base, code % base)
        assert tuple(stream[place - 2 : place + 1]) == gram
        found[gram][int(number)] = int(place)
    assert found == by_hand(documents)


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=8, max_size=60))
def test_pairs_end_alike_and_are_the_commonest(documents: list[list[int]]) -> None:
    stream, document = told(documents)
    grams = grams_of(stream, document).first_of_documents()
    base, domain = grams.vocabulary, np.zeros(len(documents), dtype=np.int64)
    asked = [(int(c) // base**2, int(c) // base % base, int(c) % base) for c in
             pairs(grams, domain)]  # fmt: skip
    held = {gram: len(where) for gram, where in by_hand(documents).items()}
    often: dict[tuple[int, int], list[int]] = defaultdict(list)
    for (_, b, c), count in held.items():
        if count >= FEWEST_DOCUMENTS:
            often[b, c].append(count)
    able = {end: sorted(counts)[-2:] for end, counts in often.items() if len(counts) > 1}
    assert len(asked) == 2 * min(PAIRS, len(able)) and len(set(asked)) == len(asked)
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert first[1:] == second[1:]
        assert sorted([held[first], held[second]]) == able[first[1:]]
    weakest = [able[gram[1:]][0] for gram in asked[::2]]
    assert weakest == sorted((counts[0] for counts in able.values()), reverse=True)[:PAIRS]


def test_domains_take_turns() -> None:
    """Sixty documents of sums have twenty commoner pairs, ten of code one pair: it is asked."""
    sums = [[t for n in range(20) for t in (50 + i % 2, 100 + n, 200 + n)] for i in range(60)]
    code = [[10 + i % 2, 12, 13] for i in range(2 * FEWEST_DOCUMENTS)]
    stream, document = told([*sums, *code])
    domain = np.array([1] * len(sums) + [0] * len(code))
    grams = grams_of(stream, document).first_of_documents()
    asked = pairs(grams, domain)
    ends = [(int(c) // grams.vocabulary % grams.vocabulary) for c in asked[::2]]
    assert 12 in ends[:2] and len(ends) == PAIRS
    assert sum(end >= 100 for end in ends) == PAIRS - 1


def test_too_little_recurs() -> None:
    grams = grams_of(*told([[1, 2, 3], [4, 2, 3]])).first_of_documents()
    assert not len(pairs(grams, np.zeros(2, dtype=np.int64)))
    assert not len(pairs(grams_of(*told([[]])), np.zeros(1, dtype=np.int64)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("pocket")
    people = EntityDials(n_entities=12, max_exposures=8)
    config = CorpusConfig(vocab_size=400, train_bytes=2_000_000, entities=people)
    build_corpus({}, config, None, out, Reporter(quiet=True))
    return load_corpus(out)


def test_two_tokens_do_not_tell_and_three_do(corpus: Corpus) -> None:
    made = ngram_exercise(corpus, np.random.default_rng(0))
    assert made is not None and made.token is not None
    rows, ends = np.divmod(made.place, made.token.shape[1])
    last = [tuple(made.token[row, end - 2 : end + 1]) for row, end in zip(rows, ends, strict=True)]
    names = dict(zip(made.label, last, strict=True))
    assert [names[label] for label in made.label] == last, "one 3-gram a class"
    shared = Counter(gram[1:] for gram in set(last))
    assert set(shared.values()) == {2}
    assert made.classes == len(set(last)) > 4
    assert max(Counter(made.label).values()) <= MOST_DOCUMENTS
    for label in range(made.classes):
        mine = made.group[made.label == label]
        assert len(set(mine)) == len(mine), "each document once"


def test_what_is_read_is_the_text_before(corpus: Corpus) -> None:
    made = ngram_exercise(corpus, np.random.default_rng(0))
    assert made is not None and made.token is not None
    stream = np.asarray(corpus.tokens("val")).astype(np.int64)
    there = {stream[max(0, p + 1 - CONTEXT) : p + 1].tobytes() for p in range(len(stream))}
    for number in range(0, len(made.place), 29):
        row, end = divmod(int(made.place[number]), made.token.shape[1])
        text = made.token[row, : end + 1]
        assert len(text) <= CONTEXT
        assert text.tobytes() in there
    again = ngram_exercise(corpus, np.random.default_rng(0))
    assert again is not None
    np.testing.assert_array_equal(again.token, made.token)
