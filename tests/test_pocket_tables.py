"""The fact tables: counts, uniqueness, known anchors, other people's numbers."""

from collections import Counter
from pathlib import Path

import pytest
import scipy.constants

from engram_eval.corpus.facts import TABLES, load_facts, read_table
from engram_eval.errors import UserError

FACTS = {(fact.relation, fact.subject): fact.object for fact in load_facts()}


def relation(name: str) -> dict[str, str]:
    return {subject: object for (r, subject), object in FACTS.items() if r == name}


def test_there_are_enough_facts_and_each_subject_stands_once_per_relation() -> None:
    assert len(load_facts()) >= 1500
    assert len(FACTS) == len(load_facts())


def test_fields_are_ascii_without_stray_blanks_or_braces() -> None:
    for fact in load_facts():
        for field in fact:
            assert field.isascii() and field == " ".join(field.split())
            assert not set(field) & set("{}\n")


@pytest.mark.parametrize(
    ("name", "subject", "object"),
    [
        ("capital", "France", "Paris"),
        ("capital", "Australia", "Canberra"),
        ("currency", "Japan", "yen"),
        ("continent", "Egypt", "Africa"),
        ("region", "Mongolia", "Eastern Asia"),
        ("official_language", "Brazil", "Portuguese"),
        ("demonym", "Netherlands", "Dutch"),
        ("internet_domain", "Switzerland", ".ch"),
        ("longest_border", "Portugal", "Spain"),
        ("independence_year", "Ghana", "1957"),
        ("highest_point", "Nepal", "Mount Everest"),
        ("element_symbol", "Gold", "Au"),
        ("atomic_number", "Gold", "79"),
        ("element_group", "Gold", "11"),
        ("element_period", "Gold", "6"),
        ("element_category", "Gold", "transition metal"),
        ("state_capital", "Texas", "Austin"),
        ("state_abbreviation", "Alaska", "AK"),
        ("si_unit", "force", "newton"),
        ("unit_symbol", "newton", "N"),
        ("constant_symbol", "speed of light", "c"),
        ("prefix_symbol", "kilo", "k"),
        ("planet_order", "Mars", "fourth"),
        ("moon_of", "Titan", "Saturn"),
        ("author", "Hamlet", "William Shakespeare"),
        ("field", "Emmy Noether", "mathematics"),
        ("nationality", "Frederic Chopin", "Polish"),
    ],
)
def test_known_facts(name: str, subject: str, object: str) -> None:
    assert FACTS[name, subject] == object


def test_elements_fill_the_periodic_table() -> None:
    numbers = {subject: int(z) for subject, z in relation("atomic_number").items()}
    assert sorted(numbers.values()) == list(range(1, 119))
    assert len(set(relation("element_symbol").values())) == 118
    lengths = Counter(relation("element_period").values())
    assert lengths == {"1": 2, "2": 8, "3": 8, "4": 18, "5": 18, "6": 32, "7": 32}
    noble = [s for s, kind in relation("element_category").items() if kind == "noble gas"]
    assert {numbers[s] for s in noble} == {2, 10, 18, 36, 54, 86}
    assert {relation("element_group")[s] for s in noble} == {"18"}


def test_prefixes_agree_with_scipy() -> None:
    known = {p: n for p, n in relation("prefix_power").items() if hasattr(scipy.constants, p)}
    assert len(known) >= 20
    for prefix, power in known.items():
        assert getattr(scipy.constants, prefix) == pytest.approx(10.0 ** int(power))


def test_domains_states_and_constants_are_told_apart() -> None:
    for name in ("internet_domain", "capital", "state_capital", "state_abbreviation"):
        assert len(set(relation(name).values())) == len(relation(name))
    assert len(relation("state_capital")) == 50


def test_borders_lead_to_countries_of_the_table() -> None:
    assert set(relation("longest_border").values()) <= set(relation("continent"))


def test_a_region_lies_in_one_continent() -> None:
    places = {(r, relation("continent")[s]) for s, r in relation("region").items()}
    assert len(places) == len({region for region, _ in places})


def test_the_readme_counts_the_rows() -> None:
    readme = (TABLES / "README.md").read_text(encoding="utf-8")
    assert f"{len(load_facts()):,} rows" in readme
    for path in TABLES.glob("*.csv"):
        line = next(text for text in readme.splitlines() if f"`{path.name}`" in text)
        assert f"| {len(read_table(path)):,} |" in line


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("capital,France", "row"),
        ("capital,,Paris", "row"),
        ("captial,France,Paris", "did you mean 'capital'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"relation,subject,object\ncapital,Spain,Madrid\n{row}\n")
    with pytest.raises(UserError, match=message) as error:
        read_table(path)
    assert "bad.csv:3" in str(error.value)
