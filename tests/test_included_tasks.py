"""Tasks of the user's own, from folders beside the project: asked, kept apart, and keyed."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from evaluation_tools import QUIET, PlantedLM

from engram_eval.cli import main
from engram_eval.config import StudyConfig
from engram_eval.config_json import to_dict
from engram_eval.errors import UserError
from engram_eval.evaluation import table
from engram_eval.evaluation.included import included_sha256
from engram_eval.evaluation.loading import check_data, load_tasks
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.scores import task_rows
from engram_eval.paths import tasks_dir
from engram_eval.publish import local_paths
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve

TASK = """
task: lab_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1, domain: counting}}
"""
ITEMS = [
    {"query": f"After {n} comes", "choices": [f" {n}", f" {n + 1}"], "gold": 1} for n in range(6)
]


def write_items(path: Path) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a folder with a task of lm-eval's form, a group of it, and its twin in bits."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "lab"
    folder.mkdir()
    write_items(folder / "items.jsonl")
    (folder / "numbers.yaml").write_text(TASK.format(items=folder / "items.jsonl"))
    (folder / "lab.yaml").write_text("group: lab\ntask: [lab_numbers]\n")
    shutil.copy(tasks_dir() / "bpb" / "_bpb_yaml", folder)
    (folder / "bits.yaml").write_text(
        "include: _bpb_yaml\ntask: lab_numbers_bpb\nmetadata: {base: lab_numbers}\n"
    )
    return folder


def asking(folder: Path) -> StudyConfig:
    study = find_study("smoke", assignments=["probe.probes=[]", "probe.equal_loss=[]"])
    evaluate = dataclasses.replace(
        study.evaluate, tasks=("lab_numbers", "math_addition"), include_path=(str(folder),)
    )
    return solve(dataclasses.replace(study, evaluate=evaluate))


def keys(study: StudyConfig, *stages: str) -> list[str]:
    return [node.key for node in graph(study) if node.stage in stages]


def test_own_tasks_are_asked_beside_ours(lab: Path, tmp_path: Path) -> None:
    names = ("lab", "lab_numbers_bpb", "math_addition")
    check_data(names, include=[str(lab)])
    loaded = load_tasks(names, include=[str(lab)])
    lm = PlantedLM(ITEMS, 1.0)
    samples = run_tasks(lm, loaded, tmp_path / "out", QUIET, limit=4)
    assert set(samples) == set(names)
    # A group of one task is the group: its task is no second benchmark beside it.
    assert {path.stem for path in (tmp_path / "out" / "samples").iterdir()} == set(names)
    metadata = loaded["tasks"]["lab_numbers"].config.metadata
    (acc,) = (row for row in task_rows("lab", metadata, samples["lab"]) if row.metric == "acc")
    assert (acc.value, acc.n, acc.baseline) == (1.0, 4, 0.5)
    assert acc.slice == {"domain": "counting"}
    bits = task_rows("lab_numbers_bpb", {}, samples["lab_numbers_bpb"])
    # The planted model gives each byte of a right answer one bit.
    assert [row.value for row in bits] == [pytest.approx(1.0)]


def test_items_beside_ones_own_yaml_are_not_looked_for_among_the_studys(
    lab: Path, tmp_path: Path
) -> None:
    shutil.copy(tasks_dir() / "_choice_yaml", lab)
    (lab / "mine.yaml").write_text("include: _choice_yaml\ntask: mine\nmetadata: {version: 1}\n")
    (lab / "data").mkdir()
    write_items(lab / "data" / "mine.jsonl")
    studys = tmp_path / "items"
    studys.mkdir()
    shutil.copy(tasks_dir() / "math" / "data" / "math_addition.jsonl", studys)
    loaded = load_tasks(("mine", "math_addition"), studys, include=[str(lab)])["tasks"]
    assert len(loaded["mine"].eval_docs) == len(ITEMS)


def test_a_changed_task_is_another_stage_and_a_moved_one_is_not(lab: Path, tmp_path: Path) -> None:
    before, text = keys(asking(lab), "evaluate", "baseline"), keys(asking(lab), "corpus", "train")
    moved = tmp_path / "moved"
    shutil.copytree(lab, moved)
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "f.pyc").write_text("compiled")
    (moved / ".numbers.yaml.swp").write_text("an editor's")
    assert keys(asking(moved), "evaluate", "baseline") == before
    for name in ("numbers.yaml", "items.jsonl"):
        hashed = included_sha256([str(moved)])
        (moved / name).write_text((lab / name).read_text() + "\n")
        assert included_sha256([str(moved)]) != hashed
    assert not set(keys(asking(moved), "evaluate", "baseline")) & set(before)
    assert keys(asking(moved), "corpus", "train") == text


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        ({}, "x", "no task's .yaml here"),
        ({"a.yaml": "task: math_addition\n"}, "x", "'math_addition' is a task or suite of engram"),
        ({"a.yaml": "group: reasoning\ntask: [boolq]\n"}, "x", "'reasoning' is a task or suite"),
        ({"a.yaml": "task: mine\n"}, "mien", "unknown task 'mien' (did you mean 'mine'?)"),
        ({"a.yaml": "task: mine\ndoc: [a,\n"}, "mine", "a.yaml: cannot be read (while parsing"),
        ({"a.yaml": "include: b\ntask: mine\n"}, "mine", "a.yaml: cannot be read ([Errno 2]"),
        ({"a.yaml": "task: mine\ndoc_to_text: !function no.such\n"}, "mine", "'no' for function"),
        (
            {"a.yaml": "task: mine\nmetric_list: [{metric: mcc}]\n"},
            "mine",
            "task 'mine': none of its metrics (mcc) is one that a study keeps; allowed: acc, acc",
        ),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_runs(
    files: dict[str, str], asked: str, message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as told:
        check_data([asked], include=[str(tmp_path)])
    assert message in str(told.value) and "\n" not in str(told.value)
    assert "--mirror" not in str(told.value)


def test_one_name_in_two_folders_is_refused(lab: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(lab, other)
    with pytest.raises(UserError, match="is another folder's; rename yours"):
        check_data(["lab"], include=[str(lab), str(other)])


def test_they_are_listed(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tasks", "--include_path", str(lab)]) == 0
    out = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert "math_addition" in rows and rows["lab_numbers"] == str(lab / "numbers.yaml")
    assert main(["list", "probes", "--include-path", str(lab)]) == 2
    assert "only tasks have folders" in capsys.readouterr().err


def test_a_place_on_one_machine_is_not_published(lab: Path) -> None:
    assert str(lab) in local_paths(to_dict(asking(lab)))


def test_a_task_that_is_added_to_ours_is_asked_by_studies_that_ran_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = solve(find_study("smoke", assignments=["probe.probes=[]", "probe.equal_loss=[]"]))
    before = {stage: keys(study, stage) for stage in ("corpus", "train", "items", "evaluate")}
    copy = tmp_path / "tasks"
    shutil.copytree(tasks_dir(), copy)
    monkeypatch.setattr(table, "tasks_dir", lambda: copy)
    (copy / "math" / "README.md").write_text("Other words.")
    assert {stage: keys(study, stage) for stage in before} == before
    group = copy / "math" / "pocket_math.yaml"
    group.write_text(group.read_text().replace("  - math_addition\n", "  - math_new\n"))
    for stage in ("corpus", "train"):
        assert keys(study, stage) == before[stage]
    for stage in ("items", "evaluate"):
        assert not set(keys(study, stage)) & set(before[stage])
