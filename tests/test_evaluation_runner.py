"""Tasks run through lm-eval, with language models whose scores are known beforehand."""

import io
import json
import math
from pathlib import Path

import pytest
from evaluation_tools import QUIET, PlantedLM
from lm_eval.tasks import TaskManager

from engram_eval.errors import UserError
from engram_eval.evaluation.loading import check_tasks, load_tasks
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.scores import task_rows
from engram_eval.files import read_jsonl, write_jsonl
from engram_eval.paths import tasks_dir
from engram_eval.progress import Reporter

TASKS = ("math_addition", "context_copy")


def committed(task: str) -> list[dict]:
    (path,) = tasks_dir().glob(f"*/data/{task}.jsonl")
    return list(read_jsonl(path))


def planted(nats_per_byte: float) -> PlantedLM:
    return PlantedLM([item for task in TASKS for item in committed(task)], nats_per_byte)


def rows_by_task(loaded: dict, samples: dict) -> dict:
    return {
        (row.name, row.metric): row
        for task, found in samples.items()
        for row in task_rows(task, loaded["tasks"][task].config.metadata, found)
        if set(row.slice) == {"domain"}
    }


def test_who_knows_scores_one(tmp_path: Path) -> None:
    loaded = load_tasks(TASKS)
    rows = rows_by_task(loaded, run_tasks(planted(1.0), loaded, tmp_path, QUIET))
    for task in TASKS:
        assert rows[task, "acc"].value == 1.0
        assert rows[task, "acc"].baseline == 0.25
        assert rows[task, "acc_centered"].value == 1.0
        assert rows[task, "bits_per_byte"].value == pytest.approx(1.0)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"]["math_addition"]["acc,none"] == 1.0
    assert results["results"]["math_addition"]["bits_per_byte,none"] == pytest.approx(1.0)


def test_who_finds_all_choices_equal_scores_at_chance(tmp_path: Path) -> None:
    loaded = load_tasks(("context_presence", "math_comparison"))
    lm = PlantedLM([], 0.0)
    # A constant per choice instead of per byte: nothing but the order is left.
    lm._score = lambda context, continuation: (-math.log(4), False)  # type: ignore[method-assign]
    rows = rows_by_task(loaded, run_tasks(lm, loaded, tmp_path, QUIET))
    assert rows["context_presence", "acc"].value == pytest.approx(0.25, abs=0.005)
    assert rows["math_comparison", "acc"].value == pytest.approx(0.25, abs=0.005)


def test_files_are_the_same_each_time_and_name_no_folder(tmp_path: Path) -> None:
    for name in "ab":
        items = tmp_path / name / "items"
        write_jsonl(items / "math_addition.jsonl", committed("math_addition")[:20])
        run_tasks(planted(1.0), load_tasks(TASKS[:1], items), tmp_path / name / "out", QUIET)
    for file in ("results.json", "results/math_addition.json", "samples/math_addition.jsonl"):
        first, second = (tmp_path / name / "out" / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert str(tmp_path) not in first.read_text()
    assert len(list(read_jsonl(first))) == 20


def test_finished_tasks_are_not_run_again(tmp_path: Path) -> None:
    loaded = load_tasks(TASKS)
    run_tasks(planted(1.0), loaded, tmp_path, QUIET)
    whole = (tmp_path / "results.json").read_bytes()
    (tmp_path / "results.json").unlink()
    (tmp_path / "results" / "context_copy.json").unlink()
    again = planted(1.0)
    samples = run_tasks(again, load_tasks(TASKS), tmp_path, QUIET)
    assert again.calls == 1
    assert set(samples) == set(TASKS)
    assert (tmp_path / "results.json").read_bytes() == whole


def test_the_limit_takes_the_first_items(tmp_path: Path) -> None:
    samples = run_tasks(planted(1.0), load_tasks(TASKS[:1]), tmp_path, QUIET, limit=7)
    ids = [sample["doc"]["id"] for sample in samples["math_addition"]]
    assert ids == [item["id"] for item in committed("math_addition")[:7]]


def test_groups_give_the_mean_over_their_tasks(tmp_path: Path) -> None:
    loaded = load_tasks(("pocket",))
    assert set(loaded["groups"]) == {
        "pocket",
        "pocket_knowledge",
        "pocket_code",
        "pocket_math",
        "pocket_context",
    }
    run_tasks(planted(1.0), loaded, tmp_path, QUIET, limit=4)
    results = json.loads((tmp_path / "results.json").read_text())
    context = ("context_recall", "context_copy", "context_presence", "context_reuse")
    mean = sum(results["results"][task]["acc,none"] for task in context) / 4
    assert results["groups"]["pocket_context"]["acc,none"] == pytest.approx(mean)
    everything = [results["results"][task]["acc,none"] for task in loaded["tasks"]]
    overall = sum(everything) / len(everything)
    assert results["groups"]["pocket"]["acc,none"] == pytest.approx(overall)
    assert results["group_subtasks"]["pocket_context"] == list(context)


def test_an_unknown_task_is_named_with_its_nearest() -> None:
    with pytest.raises(UserError, match=r"'math_adition'.*did you mean 'math_addition'"):
        load_tasks(("math_adition",))
    with pytest.raises(UserError, match="no tasks"):
        check_tasks(())
    check_tasks(("pocket", "math_addition"))


def test_missing_items_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"math_addition.*math_addition\.jsonl"):
        load_tasks(("math_addition",), tmp_path)


def test_lm_eval_keeps_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    reporter = Reporter(out=out, interval_s=0.0)
    run_tasks(planted(1.0), load_tasks(TASKS), tmp_path, reporter, limit=2)
    assert capfd.readouterr() == ("", "")
    assert out.getvalue().splitlines()[-1].startswith("evaluate: 100%")


def test_stock_lm_eval_runs_the_tasks() -> None:
    from lm_eval import simple_evaluate

    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    found = simple_evaluate(
        model=planted(1.0), tasks=list(TASKS), task_manager=manager, limit=3, bootstrap_iters=0
    )
    assert found is not None
    assert found["results"]["context_copy"]["acc,none"] == 1.0
    assert found["versions"]["context_copy"] == 2
