"""Facts in wordings: what is held out is never trained, everything else evenly."""

import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, Mix
from engram_eval.corpus.document import Document
from engram_eval.corpus.facts import (
    MIN_EXPOSURES,
    RELATIONS,
    Fact,
    answer_entropies,
    facts_documents,
    held_out,
    held_out_template,
    load_facts,
    question,
    render,
    taught_facts,
)
from engram_eval.corpus.lines import answer_is_last

SMALL = CorpusConfig(train_bytes=300_000, mix=Mix(facts=1.0, code=0, docs=0, math=0, recall=0))
SENTENCES = {
    render(fact, index).text: (fact, index)
    for fact in load_facts()
    for index in range(len(RELATIONS[fact.relation]))
}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(facts_documents(SMALL))


def told(documents: list[Document], split: str) -> Counter[tuple[Fact, int]]:
    """Look every line of the text up, as a reader would."""
    return Counter(
        SENTENCES[line] for d in documents if d.split == split for line in d.text.split("\n")
    )


@pytest.mark.parametrize("name", RELATIONS)
def test_wordings_name_the_subject_first_and_mostly_end_with_the_object(name: str) -> None:
    templates = RELATIONS[name]
    assert len(templates) >= 4
    assert sum(map(answer_is_last, templates)) >= 3
    for template in templates:
        assert template.count("{s}") == template.count("{o}") == 1
        assert template.index("{s}") < template.index("{o}")


def test_every_relation_has_facts_and_every_sentence_is_one_fact() -> None:
    assert {fact.relation for fact in load_facts()} == set(RELATIONS)
    assert len(SENTENCES) == sum(len(RELATIONS[fact.relation]) for fact in load_facts())


def test_no_beginning_of_a_sentence_leaves_the_relation_open() -> None:
    # Where one wording's text before the object began another's, the answer would cost bits.
    for first, second in permutations((t for r in RELATIONS.values() for t in r), 2):
        assert not second.startswith(first.split("{o}")[0])


def test_entropies_on_hand_worked_cases() -> None:
    assert answer_entropies()["state_capital"] == pytest.approx(math.log2(50))
    assert answer_entropies()["planet_order"] == pytest.approx(3.0)
    # 27 moons: 1, 2, 8, 9, 5, 3 and 2 go around Earth, Mars, Jupiter, ... (Jupiter has 5 of them).
    moons = Counter(f.object for f in load_facts() if f.relation == "moon_of")
    assert moons["Jupiter"] == 5 and moons.total() == 27
    bits = -sum(n / 27 * math.log2(n / 27) for n in (1, 2, 5, 9, 5, 3, 2))
    assert answer_entropies()["moon_of"] == pytest.approx(bits)


def test_question_and_answer_make_the_sentence() -> None:
    gold = Fact("element_symbol", "Gold", "Au")
    assert question(gold, 0) == "The chemical symbol of Gold is"
    assert render(gold, 0).text == "The chemical symbol of Gold is Au."


@given(st.sampled_from(load_facts()), st.integers(0, 5))
def test_one_wording_of_each_fact_is_held_out(fact: Fact, seed: int) -> None:
    out = [i for i in range(len(RELATIONS[fact.relation])) if held_out(fact, i, seed)]
    assert out == [held_out_template(fact, seed)]
    assert answer_is_last(RELATIONS[fact.relation][out[0]])


def test_held_out_wordings_are_spread_and_move_with_the_seed() -> None:
    capitals = [fact for fact in load_facts() if fact.relation == "capital"]
    counts = Counter(held_out_template(fact, 0) for fact in capitals)
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 30
    assert any(held_out_template(f, 0) != held_out_template(f, 1) for f in capitals)


def test_no_held_out_pair_stands_in_training_text(documents: list[Document]) -> None:
    text = "\n".join(d.text for d in documents if d.split == "train")
    for fact in taught_facts(SMALL):
        assert render(fact, held_out_template(fact, 0)).text not in text
    assert not any(held_out(fact, i, 0) for fact, i in told(documents, "train"))
    assert all(held_out(fact, i, 0) for fact, i in told(documents, "val"))


def test_every_wording_is_trained_on_other_facts(documents: list[Document]) -> None:
    trained = {(fact.relation, i) for fact, i in told(documents, "train")}
    asked = {(fact.relation, i) for fact, i in told(documents, "val")}
    assert asked <= trained


def test_exposures_and_wordings_are_even(documents: list[Document]) -> None:
    by_fact: Counter[Fact] = Counter()
    for (fact, _), n in told(documents, "train").items():
        by_fact[fact] += n
    assert set(by_fact) == set(taught_facts(SMALL))
    assert max(by_fact.values()) - min(by_fact.values()) <= 1
    assert min(by_fact.values()) >= MIN_EXPOSURES - 1
    wordings = told(documents, "train").values()
    assert max(wordings) - min(wordings) <= 1
    assert set(told(documents, "val").values()) == {1}


def test_documents_are_notes_with_exact_spans(documents: list[Document]) -> None:
    for made in documents:
        lines = made.text.split("\n")
        assert 1 <= len(lines) <= 10 and len(lines) == len(made.answers)
        facts = [SENTENCES[line][0] for line in lines]
        assert [made.text[a.start : a.end] for a in made.answers] == [f.object for f in facts]
        for fact, answer in zip(facts, made.answers, strict=True):
            assert answer.absent_bits == answer_entropies()[fact.relation]
            assert answer.perfect_bits == 0


def test_budget_decides_how_many_facts_are_taught() -> None:
    def config(size: int) -> CorpusConfig:
        return CorpusConfig(train_bytes=size)

    assert len(taught_facts(config(1))) == 1
    assert 40 < len(taught_facts(config(120_000))) < 120
    assert 1500 <= len(taught_facts(CorpusConfig())) <= len(load_facts())
    assert 1500 <= len(taught_facts(config(3_000_000))) < len(load_facts())
    assert len(taught_facts(config(100_000_000))) == len(load_facts())
    # A larger budget adds facts and takes none away.
    few, many = taught_facts(config(120_000)), taught_facts(config(1_200_000))
    assert many[: len(few)] == few


def test_sizes_follow_the_budget(documents: list[Document]) -> None:
    size = sum(len(d.text) for d in documents if d.split == "train")
    assert 300_000 <= size < 301_000
    val = sum(len(d.text) for d in documents if d.split == "val")
    assert val == pytest.approx(300_000 * 0.08 / 0.92, rel=0.05)
