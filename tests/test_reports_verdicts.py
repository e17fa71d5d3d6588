"""Verdicts on the page: the published figure beside ours, and what could not be tested."""

import json
import re

import pytest
from reports_fixture import SMALL, write_study
from test_reports import Page

from engram_eval.files import write_json
from reports.build import build_report
from reports.load import Verdict
from reports.sections.verdicts import evidence, verdict_table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)


@pytest.fixture(scope="module")
def html(study):
    return build_report(study, study / "report.html").read_text()


def test_every_claim_stands_beside_its_published_figure(html):
    (table,) = re.findall(r'<table id="claims".*?</table>', html, flags=re.S)
    text = " ".join(re.sub("<[^>]+>", " ", table).split())
    assert table.count("1.950 against 1.962 nats (arXiv:2601.07372 Table 1)") == 5
    assert "+0.110 [+0.090, +0.130] bit/byte, untuned" in text
    assert "not tested no rows of engram" in text
    for word in ("supported", "no difference", "reversed", "inconclusive"):
        assert word in text
    assert 'href="#heldout-table"' in table


def test_the_table_says_what_is_corrected_and_what_is_not(html):
    (table,) = re.findall(r'<table id="claims".*?</table>', html, flags=re.S)
    text = " ".join(re.sub("<[^>]+>", " ", table).split())
    assert "Verdicts are corrected for the number of claims (Holm), the intervals" in text
    assert "Effect [95 % interval, not corrected] p, corrected" in text
    # The fixture's corrected p are 0.01 of no difference and 0.4 of equivalence.
    assert text.count("untuned 0.010") == 4 and "equal:" not in text
    (power,) = re.findall(r"<dt>Power</dt><dd>(.*?)</dd>", html)
    assert "correction" in power


def test_equivalence_that_is_shown_has_its_p(study):
    verdict = Verdict("x.y", "y", "no_difference", p_difference=0.3, p_equivalence=0.002)
    (row,) = verdict_table([verdict]).rows
    assert (row[3].text, row[3].small) == ("0.300", "equal: 0.002")


def test_a_row_has_the_name_that_the_figure_writes(html):
    (table,) = re.findall(r'<table id="claims".*?</table>', html, flags=re.S)
    (figure,) = re.findall(
        r'<figure class="block" id="claims-forest".*?</figure>', html, flags=re.S
    )
    for name in ("loss", "reasoning as knowledge", "dense twin", "code"):
        assert f"<small>{name}</small></th>" in table and f">{name}</text>" in figure


def test_the_forest_shows_what_was_tested(html):
    page = Page(html)
    counted = page.text().split("5 claims at this scale: ")[1].split(".")[0]
    for words in ("supported", "no difference", "reversed", "inconclusive", "not tested"):
        assert f"1 {words}" in counted
    tips = [text for parent, text in page.texts if parent == "title"]
    assert sum(tip.startswith("Engram does better than the MoE on") for tip in tips) == 8


def test_curves_and_what_is_the_same_in_every_seed_are_told(study, tmp_path):
    kept = (study / "verdicts.json").read_text()
    first, second, third, *rest = json.loads(kept)
    curve = {"weights": {"flat": 0.024, "line": 0.976}, "best": "line"}
    up = curve | {"lowest": 0.58, "low": 0.43, "high": 0.64}
    down = curve | {"lowest": None, "low": None, "high": None}
    same = third | {"effect": 0.0, "ci_low": None, "ci_high": None}
    told = [first | {"shape": up}, second | {"shape": down}, same, *rest]
    write_json(study / "verdicts.json", told)
    try:
        page = build_report(study, tmp_path / "report.html").read_text()
    finally:
        (study / "verdicts.json").write_text(kept)
    (table,) = re.findall(r'<table id="curves".*?</table>', page, flags=re.S)
    rows = [
        [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.split("<t[hd]", row)[1:]]
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.S)
    ]
    cells = [" ".join(row) for row in rows]
    assert "2.4" in cells[1] and "97.6" in cells[1] and "0.58 [0.43, 0.64]" in cells[1]
    assert "97.6" in cells[2] and "[" not in cells[2]
    (claims,) = re.findall(r'<table id="claims".*?</table>', page, flags=re.S)
    assert "0.000 in every seed, bit/byte" in claims


@pytest.mark.parametrize(
    ("name", "pair", "where"),
    [
        ("logit_lens", ["engram", "moe"], "equal-loss"),
        ("logit_lens", [], "logit-lens"),
        ("linear", ["engram", "moe"], "linear-probe"),
        ("task_knockout", [], "task-knockout"),
    ],
)
def test_a_claim_leads_to_its_evidence(name, pair, where):
    assert (
        evidence(Verdict("x.y", "y", "supported", rows=[{"name": name, "equal_loss": pair}]))
        == where
    )


def test_missing_verdicts_are_said(study, tmp_path):
    kept = (study / "verdicts.json").read_text()
    (study / "verdicts.json").unlink()
    try:
        text = Page(build_report(study, tmp_path / "report.html").read_text()).text()
    finally:
        (study / "verdicts.json").write_text(kept)
    assert "No verdict is recorded yet" in text


def test_a_study_that_no_claim_is_about_says_so_in_plain_words(study, tmp_path):
    kept = (study / "verdicts.json").read_text()
    try:
        write_json(study / "verdicts.json", [])
        plain = build_report(study, tmp_path / "report.html").read_text()
        (study / "verdicts.json").write_text("{")
        damaged = build_report(study, tmp_path / "report.html").read_text()
    finally:
        (study / "verdicts.json").write_text(kept)
    assert '<p class="lead">No published claim is about this study.</p>' in plain
    assert "No claim could be read" not in plain
    told = '<p class="missing" role="note">No claim could be read (verdicts.json).</p>'
    assert told in damaged


def test_newer_and_damaged_verdicts_are_told_and_the_rest_is_shown(study, tmp_path):
    kept = (study / "verdicts.json").read_text()
    newer, damaged, *rest = json.loads(kept)
    write_json(study / "verdicts.json", [newer | {"schema": 9}, damaged | {"effect": "big"}, *rest])
    try:
        text = Page(build_report(study, tmp_path / "report.html").read_text()).text()
    finally:
        (study / "verdicts.json").write_text(kept)
    assert "verdicts.json, entry 0 : schema 9: this version reads up to 1" in text
    assert "verdicts.json, entry 1 : effect: unexpected" in text
    assert "Engram does better than the MoE on dense_twin" in text
