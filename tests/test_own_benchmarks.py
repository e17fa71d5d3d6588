"""Benchmarks that lm-eval lacks, on rows in the shape in which their authors publish them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from mirror_tools import QUIET, KnowingLM

from engram_eval.evaluation.loading import load_tasks
from engram_eval.evaluation.mirror_build import build_mirror
from engram_eval.evaluation.mirror_check import check_mirror
from engram_eval.evaluation.mirror_spec import read_spec
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.scores import task_rows
from engram_eval.evaluation.table import task_table
from engram_eval.paths import tasks_dir

CCPM = [
    {
        "translation": "明亮的月光洒在窗户纸上。",
        "choices": ["床前明月光", "疑是地上霜", "举头望明月", "低头思故乡"],
        "answer": 0,
    },
    {
        "translation": "我低下头思念家乡。",
        "choices": ["床前明月光", "疑是地上霜", "举头望明月", "低头思故乡"],
        "answer": 3,
    },
]
DIALOGUE = ["男：你几点来？", "女：六点，下班以后。"]
C3 = [
    {"context": text, "question": question, "choice": choices.split(), "answer": answer}
    for text, question, choices, answer in (
        (DIALOGUE, "女的几点来？", "五点 六点", "六点"),
        (DIALOGUE, "她先做什么？", "上班 吃饭 睡觉 买书", "上班"),
        (["天晴了。"], "天气怎么样？", "晴 雨 雪", "晴"),
    )
]
ARTICLE = "Last week I talked with some of my students about their plans."
RACE = [
    {
        "example_id": "middle1.txt",
        "article": ARTICLE,
        "question": question,
        "options": ["Plans.", "Games.", "Food.", "Music."],
        "answer": answer,
    }
    for question, answer in (("What did they talk about?", "A"), ("What is it not about?", "C"))
]
PARTS = [
    name
    for name in (tasks_dir() / "pile_loss" / "pile_loss.yaml").read_text().split()
    if name.startswith("pile_") and name != "pile_loss"
]
PILE = [{"text": f"A text of {part}, number {n}.", "part": part} for part in PARTS for n in (1, 2)]
SPEC = """
[[sets]]
repo = "THUNLP-AIPoet/CCPM"
split = "validation"
files = ["valid.jsonl"]
[[sets]]
repo = "clue/clue"
config = "c3"
split = "validation"
files = ["c3.jsonl"]
[[sets]]
repo = "ehovy/race"
config = "middle"
split = "test"
files = ["race.jsonl"]
[[sets]]
repo = "ehovy/race"
config = "middle"
split = "train"
files = ["race.jsonl"]
[[sets]]
repo = "EleutherAI/pile"
config_from = "part"
split = "train"
files = ["pile.jsonl"]
"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name, rows in (("valid", CCPM), ("c3", C3), ("race", RACE), ("pile", PILE)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "spec.toml").write_text(SPEC)
    return build_mirror(read_spec(folder / "spec.toml"), folder, folder / "mirror", QUIET)


class ReadingLM(KnowingLM):
    """Also reads whole texts, at half a nat a byte."""

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        return [-0.5 * len(request.args[0].encode()) for request in requests]


def rows(task: str, mirror: Path, out: Path, lm: KnowingLM) -> dict[str, Any]:
    loaded = load_tasks([task], mirror=mirror)
    samples = run_tasks(lm, loaded, out, QUIET)[task]
    assert {"doc_hash", "prompt_hash", "target_hash"} <= samples[0].keys()
    metadata = next(iter(loaded["tasks"].values())).config.metadata
    return {row.metric: row for row in task_rows(task, metadata, samples) if len(row.slice) == 1}


def test_all_would_run(mirror: Path) -> None:
    own = {"ccpm", "c3", "race_middle", "pile_loss"}
    names = sorted([*own, *(f"{task}_bpb" for task in own - {"pile_loss"})])
    assert set(names) <= set(task_table())
    assert {v.task: v.remark for v in check_mirror(mirror, names, QUIET) if not v.runs} == {}


def test_ccpm_matches_verse_to_prose(mirror: Path, tmp_path: Path) -> None:
    lm = KnowingLM(["床前明月光"])
    found = rows("ccpm", mirror, tmp_path, lm)
    assert (found["acc"].value, found["acc"].baseline) == (0.5, 0.25)
    assert found["acc"].slice == {"domain": "language"}
    assert lm.prompts[0] == "现代文：明亮的月光洒在窗户纸上。\n古诗："
    bits = rows("ccpm_bpb", mirror, tmp_path / "bpb", lm)["bits_per_byte"]
    # The right lines have 15 bytes each; one costs 1 nat, one costs 9.
    assert bits.value == pytest.approx(10 / math.log(2) / 30)


def test_c3_asks_with_two_to_four_choices_and_clusters_by_text(
    mirror: Path, tmp_path: Path
) -> None:
    lm = KnowingLM(["六点", "上班", "雨"])
    found = rows("c3", mirror, tmp_path, lm)
    acc = found["acc"]
    assert acc.value == pytest.approx(2 / 3)
    assert acc.baseline == pytest.approx((1 / 2 + 1 / 4 + 1 / 3) / 3)
    assert lm.prompts[0] == "男：你几点来？\n女：六点，下班以后。\n问题：女的几点来？\n答案："
    # Two questions of one dialogue, both right; one of another text, wrong: residuals 2/3, -2/3.
    assert acc.stderr == pytest.approx(math.sqrt(2 * 2 * (2 / 3) ** 2) / 3)


def test_race_middle_asks_every_question_by_itself(mirror: Path, tmp_path: Path) -> None:
    lm = KnowingLM(["Plans."])
    found = rows("race_middle", mirror, tmp_path, lm)
    assert (found["acc"].value, found["acc"].baseline, found["acc"].n) == (0.5, 0.25, 2)
    # One article: no standard error comes of one source.
    assert found["acc"].stderr is None
    assert lm.prompts[0] == f"Article: {ARTICLE}\n\nQuestion: {RACE[0]['question']}\nAnswer:"
    shown = KnowingLM()
    rows("race_middle@1", mirror, tmp_path / "shots", shown)
    assert all(prompt.count("Article:") == 2 for prompt in shown.prompts)


def test_pile_loss_is_bits_over_bytes_of_all_parts(mirror: Path, tmp_path: Path) -> None:
    assert len(PARTS) == 22
    loaded = load_tasks(["pile_loss"], mirror=mirror)
    samples = run_tasks(ReadingLM(), loaded, tmp_path, QUIET)["pile_loss"]
    found = [r for r in task_rows("pile_loss", {}, samples) if r.metric == "bits_per_byte"]
    assert [row.value for row in found] == pytest.approx([0.5 / math.log(2)] * len(found))
    parts = {row.slice["subtask"] for row in found if "subtask" in row.slice}
    assert parts == set(PARTS) and found[0].n == 44
    assert found[0].slice == {"domain": "language"}
