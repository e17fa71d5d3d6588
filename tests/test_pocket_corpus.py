"""The pocket corpus as a whole: sizes, determinism, independence of the domains."""

import statistics
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, EntityDials, Mix
from engram_eval.corpus.arithmetic import arithmetic_documents
from engram_eval.corpus.budget import DOMAINS, budget, stream
from engram_eval.corpus.document import Answer, Document
from engram_eval.corpus.entities import entity_documents
from engram_eval.corpus.facts import facts_documents
from engram_eval.corpus.pocket import (
    cut,
    library_documents,
    pocket_documents,
)
from engram_eval.corpus.recall import recall_documents
from engram_eval.errors import UserError

SMOKE = CorpusConfig(
    train_bytes=120_000, vocab_size=512, entities=EntityDials(n_entities=20, max_exposures=20)
)
GENERATORS = {
    "facts": facts_documents,
    "entities": entity_documents,
    "math": arithmetic_documents,
    "recall": recall_documents,
}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(pocket_documents(SMOKE))


def sizes(documents: list[Document]) -> Counter[tuple[str, str | None]]:
    total: Counter[tuple[str, str | None]] = Counter()
    for made in documents:
        total[made.domain, made.split] += len(made.text.encode())
    return total


def test_sizes_follow_the_mix(documents: list[Document]) -> None:
    total = sizes(documents)
    assert set(total) == {(domain, split) for domain in DOMAINS for split in ("train", "val")}
    for domain in ("code", "docs", "facts", "math", "recall"):
        share = getattr(SMOKE.mix, domain)
        assert total[domain, "train"] == pytest.approx(120_000 * share, abs=800)
        wanted = 120_000 * share * 0.08 / 0.92
        assert total[domain, "val"] == pytest.approx(wanted, abs=800)


def test_the_same_configuration_gives_the_same_documents(documents: list[Document]) -> None:
    assert list(pocket_documents(SMOKE)) == documents


@pytest.mark.parametrize("domain", GENERATORS)
def test_domains_do_not_depend_on_each_other(domain: str, documents: list[Document]) -> None:
    alone = list(GENERATORS[domain](SMOKE))
    assert alone == [made for made in documents if made.domain == domain]


@pytest.mark.parametrize("domain", GENERATORS)
def test_the_seed_moves_every_domain(domain: str) -> None:
    one, two = (list(GENERATORS[domain](replace(SMOKE, seed=seed))) for seed in (0, 1))
    assert not {made.text for made in one} & {made.text for made in two if len(made.text) > 60}


@pytest.mark.parametrize("domain", ["math", "recall"])
def test_more_training_text_moves_no_validation(domain: str) -> None:
    small, large = (
        [d for d in GENERATORS[domain](replace(SMOKE, train_bytes=n)) if d.split == "val"]
        for n in (60_000, 240_000)
    )
    assert large[: len(small)] == small


@settings(max_examples=12)
@given(
    st.integers(0, 40_000),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
    st.integers(0, 12),
)
def test_any_budget_gives_valid_documents(
    train_bytes: int, val_fraction: float, seed: int, n_entities: int
) -> None:
    config = CorpusConfig(
        seed=seed,
        train_bytes=train_bytes,
        val_fraction=val_fraction,
        entities=EntityDials(n_entities=n_entities, max_exposures=8),
    )
    for domain, generate in GENERATORS.items():
        made = list(generate(config))
        assert len({d.name for d in made}) == len(made)
        for document in made:
            assert document.domain == domain and document.split in ("train", "val")
            assert document.text.isascii() and document.answers
            starts = [a.start for a in document.answers]
            assert starts == sorted(set(starts))
            assert all(document.text[a.start : a.end].strip() for a in document.answers)
            assert all(a.absent_bits > 0 == a.perfect_bits for a in document.answers)


def test_large_budgets_stream() -> None:
    config = CorpusConfig(train_bytes=100_000_000, entities=EntityDials(n_entities=2_000))
    for domain, generate in GENERATORS.items():
        first = list(islice(generate(config), 50))
        assert len(first) == 50 and {d.domain for d in first} == {domain}


def test_the_mix_is_relative_and_may_leave_domains_out() -> None:
    config = replace(SMOKE, mix=Mix(code=0, docs=0, facts=3, math=1, recall=0))
    assert budget(config, "facts").train == 90_000
    total = sizes(list(pocket_documents(replace(config, entities=EntityDials(n_entities=0)))))
    assert {domain for domain, _ in total} == {"facts", "math"}


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (Mix(math=-0.1), "corpus.mix.math is -0.1"),
        (Mix(code=0, docs=0, facts=0, math=0, recall=0), "all 0"),
    ],
)
def test_impossible_mixes_are_refused(mix: Mix, message: str) -> None:
    with pytest.raises(UserError, match=message):
        budget(replace(SMOKE, mix=mix, entities=EntityDials(n_entities=0)), "math")


def test_people_alone_are_a_text() -> None:
    nothing = Mix(code=0, docs=0, facts=0, math=0, recall=0)
    config = replace(SMOKE, mix=nothing, entities=EntityDials(n_entities=3, max_exposures=5))
    assert {document.domain for document in pocket_documents(config)} == {"entities"}


def test_streams_of_domains_and_purposes_differ() -> None:
    draws = {
        stream(seed, domain, purpose).integers(2**60)
        for seed in (0, 1)
        for domain in DOMAINS
        for purpose in (0, 1, 2)
    }
    assert len(draws) == 2 * len(DOMAINS) * 3


def library(*sizes: int) -> list[Document]:
    """Make modules of lines of ten bytes; every tenth one validates."""
    return [
        Document("x = 12345\n" * (size // 10), "code", f"m{i}", "train" if i % 10 else "val")
        for i, size in enumerate(sizes)
    ]


def test_the_library_is_cut_to_the_budget_at_line_ends() -> None:
    config = CorpusConfig(
        train_bytes=50_000, mix=Mix(code=1, docs=0, facts=0, math=0, recall=0), val_fraction=0.1
    )
    made = list(library_documents(config, library(*[9_000] * 60)))
    assert {len(d.text) for d in made if d.split == "train"} == {6_250}
    assert sum(len(d.text) for d in made if d.split == "train") == 50_000
    assert sum(len(d.text) for d in made if d.split == "val") == pytest.approx(5_555, abs=10)
    assert all(d.text.endswith("\n") and d.domain == "code" for d in made)


def test_a_library_that_ends_early_gives_what_there_is() -> None:
    config = CorpusConfig(train_bytes=10**9, mix=Mix(code=1, docs=0, facts=0, math=0, recall=0))
    modules = library(100, 200, 300)
    assert list(library_documents(config, modules)) == modules
    nothing = replace(config, mix=Mix(code=0, docs=0))
    assert list(library_documents(nothing, modules)) == []


@given(st.text("ab\né", max_size=40), st.integers(0, 60))
def test_cut_keeps_whole_leading_lines(text: str, size: int) -> None:
    kept = cut(text, size)
    assert text.startswith(kept)
    if len(text.encode()) <= size:
        assert kept == text
    else:
        assert len(kept.encode()) <= size and (kept == "" or kept.endswith("\n"))
        rest = text[len(kept) :].split("\n")[0] + "\n"
        assert len((kept + rest).encode()) > size


def test_each_generated_domain_has_its_two_entropies(documents: list[Document]) -> None:
    answers: dict[str, list[Answer]] = {}
    for document in documents:
        answers.setdefault(document.domain, []).extend(document.answers)
    bits = {
        domain: statistics.fmean(answer.absent_bits for answer in found)
        for domain, found in answers.items()
        if found
    }
    assert set(bits) == set(GENERATORS)
    assert bits["recall"] == pytest.approx(4.0)
    # Validation leaves some facts out, of towns (6 bits) and hobbies (5).
    trained = [d.answers for d in documents if (d.domain, d.split) == ("entities", "train")]
    assert statistics.fmean(a.absent_bits for each in trained for a in each) == pytest.approx(5.5)
    assert bits["entities"] == pytest.approx(5.5, abs=0.05)
    assert 4 < bits["facts"] < 7
    assert all(a.perfect_bits == 0 for found in answers.values() for a in found)
    assert all(len(answers[domain]) > 100 for domain in bits)
