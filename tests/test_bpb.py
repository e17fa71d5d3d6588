"""Bits per byte of the right answers: the base's prompts, its answers, and sums over sums."""

import math
from pathlib import Path

import pytest
from mirror_tools import ARC, GSM, QUIET, KnowingLM, make_mirror

from engram_eval.errors import UserError
from engram_eval.evaluation.bpb import Gold, load_gold
from engram_eval.evaluation.loading import load_tasks
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.scores import task_rows


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("mirror"))


def test_prompts_are_the_bases_and_answers_are_right(mirror: Path) -> None:
    docs = list(load_gold("arc_easy", mirror=str(mirror))["test"])
    assert [Gold(doc["prompt"], doc["answer"]) for doc in docs] == [
        Gold(f"Question: {row['q']}\nAnswer:", " " + row["options"][row["right"]]) for row in ARC
    ]


def test_examples_come_from_the_base(mirror: Path) -> None:
    doc = load_gold("gsm8k", 2, answer="{{answer}}", mirror=str(mirror))["test"][3]
    assert doc["prompt"].count("Question: Ann") == 3
    assert doc["prompt"].endswith(f"Question: {GSM[3]['question']}\nAnswer:")
    assert doc["answer"] == " " + GSM[3]["answer"]


def test_another_wording_and_what_stands_between(mirror: Path) -> None:
    doc = load_gold(
        "arc_easy",
        prompt="{{question}}",
        before="it is",
        answer="{{answerKey}}",
        mirror=str(mirror),
    )["test"][0]
    assert (doc["prompt"], doc["answer"]) == (f"{ARC[0]['q']} it is", "B")
    (doc, *_) = load_gold("arc_easy", answer="b", delimiter="\n", mirror=str(mirror))["test"]
    assert doc["answer"] == "\nb"
    with pytest.raises(UserError, match="is empty"):
        load_gold("arc_easy", answer="{{''}}", mirror=str(mirror))["test"][0]


def test_the_score_is_bits_over_bytes(mirror: Path, tmp_path: Path) -> None:
    samples = run_tasks(
        KnowingLM(["1"]), load_tasks(["arc_easy_bpb"], mirror=mirror), tmp_path, QUIET
    )["arc_easy_bpb"]
    row = next(r for r in task_rows("arc_easy_bpb", {}, samples) if r.metric == "bits_per_byte")
    # One answer costs 1 nat, five cost 9, and each is a blank and a digit.
    assert row.value == pytest.approx((1 + 5 * 9) / math.log(2) / 12)
    assert row.slice == {"domain": "knowledge"} and row.n == 6
    assert "prompt" not in samples[0]["doc"]


def test_shots_are_the_bases(mirror: Path, tmp_path: Path) -> None:
    lm = KnowingLM()
    run_tasks(lm, load_tasks(["gsm8k_bpb@1"], mirror=mirror), tmp_path, QUIET, limit=2)
    assert [prompt.count("Question: Ann") for prompt in lm.prompts] == [2, 2]
