"""Generated people: exposures, capacity in bits, held-out wordings."""

import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.document import Document
from engram_eval.corpus.entities import (
    MAX_PARAPHRASES,
    Person,
    entity_documents,
    entropy,
    exposures,
    held_out,
    held_out_template,
    make_people,
    question,
    render,
    told_alike,
    total_bits,
)
from engram_eval.corpus.entity_values import ATTRIBUTES
from engram_eval.corpus.lines import answer_is_last
from engram_eval.errors import UserError

CONFIG = CorpusConfig(entities=EntityDials(n_entities=40, max_exposures=60, min_exposures=3))
ANN = Person("Ann Lee", 1, 9, ("Lyon", "Nova Bank", "nurse", "1950", "Ashford College", "chess"))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(entity_documents(CONFIG))


def told(
    documents: list[Document], split: str, dials: EntityDials
) -> Counter[tuple[str, int, int]]:
    """Count (name, attribute, wording) by looking sentences up in the text."""
    sentences = {
        render(person, a, t).text: (person.name, a, t)
        for person in make_people(dials, CONFIG.seed)
        for a in range(len(ATTRIBUTES))
        for t in range(MAX_PARAPHRASES)
    }
    return Counter(
        sentences[part.removesuffix(".") + "."]
        for made in documents
        if made.split == split
        for part in made.text.split(". ")
    )


def test_default_dials_reach_from_a_hundred_exposures_to_five() -> None:
    people = make_people(EntityDials(), 0)
    assert people[0].exposures >= 100
    assert people[-1].exposures <= 5
    assert [p.exposures for p in people] == sorted((p.exposures for p in people), reverse=True)


def test_exposures_follow_zipf_between_the_ends() -> None:
    dials = EntityDials(max_exposures=100, min_exposures=10, zipf_exponent=1.0)
    assert [exposures(dials, rank) for rank in (1, 2, 4, 10, 50)] == [100, 50, 25, 10, 10]
    flat = replace(dials, zipf_exponent=0.0)
    assert exposures(flat, 1000) == 100


@pytest.mark.parametrize(
    ("n", "bucket"), [(1, "low"), (8, "low"), (9, "mid"), (49, "mid"), (50, "high"), (120, "high")]
)
def test_buckets(n: int, bucket: str) -> None:
    assert ANN._replace(exposures=n).bucket == bucket


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda a: a.name)
def test_attributes_are_uniform_over_distinct_values(attribute) -> None:
    assert len(set(attribute.values)) == len(attribute.values)
    assert entropy(attribute) == math.log2(len(attribute.values)) >= 5
    assert len(attribute.templates) >= MAX_PARAPHRASES == 6
    for template in attribute.templates:
        assert template.count("{s}") == template.count("{o}") == 1
        assert template.index("{s}") < template.index("{o}")
    assert answer_is_last(attribute.templates[0]) and answer_is_last(attribute.templates[1])


def test_no_beginning_of_a_sentence_leaves_the_attribute_open() -> None:
    for first, second in permutations((t for a in ATTRIBUTES for t in a.templates), 2):
        assert not second.startswith(first.split("{o}")[0])


def test_capacity_on_a_hand_worked_case() -> None:
    # 64 towns, 64 firms, 32 trades, 64 years, 32 schools, 32 hobbies.
    assert total_bits((ANN,)) == 6 + 6 + 5 + 6 + 5 + 5
    assert total_bits(make_people(EntityDials(n_entities=7), 0)) == 7 * 33
    assert total_bits(()) == 0


def test_question_and_answer_make_the_sentence() -> None:
    assert question(ANN, 0, 0) == "Ann Lee was born in"
    line = render(ANN, 0, 0)
    assert line.text == "Ann Lee was born in Lyon."
    assert line.answers == ((20, 24, 6.0, 0.0),)


@given(st.integers(0, 300), st.integers(0, 5))
def test_people_are_unique_named_by_three_words_and_drawn_by_the_seed(n: int, seed: int) -> None:
    people = make_people(EntityDials(n_entities=n), seed)
    assert len({person.name for person in people}) == n
    assert all(len(person.name.split()) == 3 for person in people)
    assert [person.rank for person in people] == list(range(1, n + 1))
    assert people == make_people(EntityDials(n_entities=n), seed)
    for person in people:
        assert all(v in a.values for v, a in zip(person.values, ATTRIBUTES, strict=True))


def test_names_share_their_words_so_that_no_word_identifies() -> None:
    people = make_people(EntityDials(n_entities=300), 0)
    for part in range(3):
        shared = Counter(person.name.split()[part] for person in people)
        assert sum(n > 1 for n in shared.values()) > len(shared) / 2
    many = make_people(EntityDials(n_entities=30_000), 0)
    assert len({person.name for person in many}) == 30_000


def test_values_are_uniform() -> None:
    people = make_people(EntityDials(n_entities=6_400), 3)
    counts = Counter(person.values[0] for person in people)
    assert len(counts) == 64 and min(counts.values()) > 60 and max(counts.values()) < 145


@given(st.integers(0, 39), st.integers(0, 5), st.integers(2, MAX_PARAPHRASES), st.integers(0, 3))
def test_one_wording_of_each_fact_is_held_out(rank: int, a: int, n: int, seed: int) -> None:
    person, attribute = make_people(CONFIG.entities, 0)[rank], ATTRIBUTES[a]
    out = [i for i in range(n) if held_out(person, attribute, i, n, seed)]
    assert out == [held_out_template(person, attribute, n, seed)]
    assert answer_is_last(attribute.templates[out[0]])


def test_exposures_are_kept_for_every_fact(documents: list[Document]) -> None:
    counts: Counter[tuple[str, int]] = Counter()
    for (name, attribute, _), n in told(documents, "train", CONFIG.entities).items():
        counts[name, attribute] += n
    for person in make_people(CONFIG.entities, 0):
        for attribute in range(len(ATTRIBUTES)):
            assert counts[person.name, attribute] == person.exposures


def test_no_held_out_pair_stands_in_training_text(documents: list[Document]) -> None:
    text = "\n".join(made.text for made in documents if made.split == "train")
    n = CONFIG.entities.n_paraphrases
    asked = told(documents, "val", CONFIG.entities)
    assert asked and set(asked.values()) == {1}
    people = {person.name: person for person in make_people(CONFIG.entities, 0)}
    for name, a, t in asked:
        assert held_out(people[name], ATTRIBUTES[a], t, n, 0)
    for person in people.values():
        for a, attribute in enumerate(ATTRIBUTES):
            assert render(person, a, held_out_template(person, attribute, n, 0)).text not in text


def test_validation_asks_nothing_that_training_told_in_the_same_words_from_the_name_on(
    documents: list[Document],
) -> None:
    train = "\n".join(made.text for made in documents if made.split == "train")
    for made in documents:
        if made.split == "val":
            name = next(p.name for p in make_people(CONFIG.entities, 0) if p.name in made.text)
            for end in made.text.removesuffix(".").split(name)[1:]:
                assert name + end.split(".")[0] not in train


@pytest.mark.parametrize(
    ("attribute", "alike"), [(0, {1, 4}), (1, {1, 5}), (2, set()), (4, set()), (5, {1, 4})]
)
def test_wordings_that_say_the_same_from_the_name_on(attribute: int, alike: set[int]) -> None:
    found = {t for t in range(6) if told_alike(ATTRIBUTES[attribute], t, 6)}
    assert found == alike
    # With fewer wordings the other one of a pair is not told.
    assert not any(told_alike(ATTRIBUTES[attribute], t, 4) for t in range(4))


@pytest.mark.parametrize("n", [2, 3, MAX_PARAPHRASES])
def test_paraphrases_are_a_dial(n: int) -> None:
    dials = EntityDials(n_entities=30, max_exposures=30, n_paraphrases=n)
    made = list(entity_documents(replace(CONFIG, entities=dials)))
    trained = told(made, "train", dials)
    assert {t for _, _, t in trained} == set(range(n))
    assert not set(trained) & set(told(made, "val", dials))


def test_biographies_tell_one_person_with_exact_spans(documents: list[Document]) -> None:
    people = {person.name: person for person in make_people(CONFIG.entities, 0)}
    for made in documents:
        person = people[" ".join(next(n for n in people if n in made.text).split())]
        assert made.text.count(person.name) == len(made.answers)
        spans = [made.text[a.start : a.end] for a in made.answers]
        if made.split == "train":
            assert sorted(spans) == sorted(person.values)
            assert sum(a.absent_bits for a in made.answers) == 33
        else:
            assert len(spans) == len(set(spans)) >= len(ATTRIBUTES) - 2
            assert set(spans) <= set(person.values)
        assert not any(a.perfect_bits for a in made.answers)
        assert made.keep_repeats


def test_validation_is_a_fair_share_of_all_ranks(documents: list[Document]) -> None:
    asked = [int(made.name.split("/")[2]) for made in documents if made.split == "val"]
    train = sum(made.split == "train" for made in documents)
    assert len(asked) == pytest.approx(train * 0.08 / 0.92, rel=0.35)
    assert min(asked) == 1 and max(asked) > 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_entities": -1}, "n_entities is -1"),
        ({"n_paraphrases": 1}, "allowed: 2 to 6"),
        ({"n_paraphrases": 7}, "allowed: 2 to 6"),
        ({"min_exposures": 0}, "min_exposures is 0"),
        ({"min_exposures": 200}, "max_exposures"),
        ({"zipf_exponent": -0.1}, "zipf_exponent"),
    ],
)
def test_impossible_dials_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_people(replace(EntityDials(), **change), 0)
