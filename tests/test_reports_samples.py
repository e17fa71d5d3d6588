"""Samples side by side: choices of any benchmark's form, and text that models wrote."""

import json

import pytest
from reports_fixture import SMALL, write_study
from test_reports import Page

from engram_eval.files import write_jsonl
from reports.build import build_report
from reports.load import load_study
from reports.sections.samples import read_sample, section

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Replace a small study's samples by one benchmark with choices and one with text."""
    folder = write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)
    stages = json.loads((folder / "stages.json").read_text())
    for model in ("moe", "engram"):
        stage = next(s for s in stages if s["label"] == f"evaluate {model} seed 0")
        place = folder / stage["folder"] / "samples"
        for old in place.iterdir():
            old.unlink()
        write_jsonl(place / "arc.jsonl", [choice(i, model == "engram") for i in range(3)])
        write_jsonl(place / "gsm8k.jsonl", [written(i, model == "engram") for i in range(3)])
    return folder


def choice(number, right):
    scores = [-1.0, -2.0, -3.0] if right else [-3.0, -2.0, -1.0]
    return {
        "doc_id": number,
        "doc": {"question": f"Which {number}?", "choices": {"text": ["a", "b", "c"]}},
        "target": "0",
        "filtered_resps": [[score, False] for score in scores],
        "metrics": ["acc"],
        "acc": float(right),
    }


def written(number, right):
    return {
        "doc_id": number,
        "doc": {"question": f"How many {number}?"},
        "target": f"#### {number}",
        "filtered_resps": [f"{number} {HOSTILE}" if right else "none"],
        "metrics": ["exact_match"],
        "exact_match": 1.0 if right else 0.0,
    }


def test_choices_of_a_benchmark_are_shown_with_their_texts(study):
    items = [i for i in section(load_study(study)).content["items"] if i.task == "arc"]
    assert [item.kind for item in items] == ["only engram right"] * 2
    assert items[0].query == "Which 0?"
    gold = items[0].choices[0]
    assert gold.text == "a" and gold.gold and gold.picked == (False, True)
    assert gold.bits == ("4.3", "1.4")


def test_what_models_wrote_stands_side_by_side_and_stays_text(study):
    items = [i for i in section(load_study(study)).content["items"] if i.task == "gsm8k"]
    assert items[0].target == "#### 0"
    assert [(w.model, w.right) for w in items[0].written] == [("moe", False), ("engram", True)]
    page = Page(build_report(study, study / "report.html").read_text())
    assert not page.all("img") and HOSTILE in page.text()


def test_options_without_texts_have_numbers_and_no_gold_is_left_out():
    sample = read_sample({"doc": {}, "filtered_resps": [[-1.0, True], [-2.0, False]], "target": 1})
    assert sample.options == ["option 1", "option 2"] and sample.gold == 1
    assert read_sample({"doc": {"gold": 5}, "filtered_resps": [[-1.0, True]]}).gold is None
    with pytest.raises(ValueError, match="expected an object"):
        read_sample(7)
