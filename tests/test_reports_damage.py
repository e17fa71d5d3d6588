"""Unfinished, damaged, newer and hostile records: told where they would stand, never run."""

import json
import re
import shutil

import pytest
from reports_fixture import SMALL, read_metrics, write_metrics, write_study
from test_reports import Page

from engram_eval.files import write_json, write_jsonl
from reports.blocks import to_csv
from reports.build import build_report
from reports.decode import fits
from reports.load import load_study

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    '"\' onmouseover=alert(3) x="',
    "]]></svg><img src=x onerror=alert(4)>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$",
    '=HYPERLINK("http://evil")',
    "javascript:alert(5)",
    "nul \x00 bell \x07 rtl \u202e lone \ud800",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)


@pytest.fixture
def study(original, tmp_path):
    shutil.copytree(original.parent, tmp_path / "runs")
    return tmp_path / "runs" / "main"


def rebuilt(folder):
    return Page(build_report(folder, folder / "report.html").read_text())


def fail_stage(folder, stage, model, error="out of memory at step 17"):
    stages = json.loads((folder / "stages.json").read_text())
    for entry in stages:
        if entry["stage"] == stage and entry["model"] == model:
            entry |= {"status": "failed", "error": error}
    write_json(folder / "stages.json", stages)
    gone = [r for r in read_metrics(folder) if not (r["stage"] == stage and r["model"] == model)]
    write_metrics(folder, gone)


def test_failed_stage_is_told_on_top_and_in_place(study):
    fail_stage(study, "evaluate", "engram")
    text = rebuilt(study).text()
    assert "This study is not complete." in text
    assert "evaluate engram seed 0: failed – out of memory at step 17" in text
    # What all were scored on at the end of training takes its place, and that is said.
    assert "the evaluation is missing: scored on the validation text of the training" in text
    assert "No answer yet" not in text
    assert "Two evaluated models are needed to compare answers." in text
    assert "LogitLens: how early" in text
    assert json.loads((study / "summary.json").read_text())["complete"] is False


def test_study_that_has_hardly_begun(study):
    stages = json.loads((study / "stages.json").read_text())
    for entry in stages[1:]:
        entry |= {"status": "not run", "seconds": None, "started": None}
    write_json(study / "stages.json", stages)
    write_metrics(study, [])
    (study / "comparisons.jsonl").unlink()
    text = rebuilt(study).text()
    assert "Held-out loss is not recorded yet" in text
    assert "No task has been scored yet." in text
    assert "LogitLens is not recorded." in text


def test_training_that_stopped_shows_what_it_wrote(study):
    fail_stage(study, "train", "moe")
    page = rebuilt(study)
    assert "train moe seed 0: failed (out of memory at step 17)" in page.text()
    assert any("moe, seed 0, training" in text for parent, text in page.texts if parent == "title")


def test_compared_checkpoints_need_neither_training_nor_held_out_text(study):
    config = json.loads((study / "study.json").read_text())
    for entry in config["models"]:
        entry |= {"path": f"/models/{entry['name']}", "match": None}
    config["evaluate"] |= {"heldout": False, "tasks": ["pocket", "x y"], "limit": 5}
    config["baselines"] = ["knn", "moe+knn", "engram+rag"]
    config["probe"]["probes"] = []
    write_json(study / "study.json", config | {"scale": "loaded"})
    write_json(study / "ledger.json", {})
    (study / "verdicts.json").unlink()
    stages = json.loads((study / "stages.json").read_text())
    stages = [s | {"stage": "load"} if s["stage"] == "train" else s for s in stages]
    kept = [s for s in stages if s["stage"] in ("corpus", "items", "load", "evaluate")]
    write_json(study / "stages.json", kept)
    write_metrics(study, [r for r in read_metrics(study) if r["split"] == "test"])
    text = rebuilt(study).text()
    assert "Of 3 informative tasks, engram answers more items rightly than moe in 1" in text
    assert "These models were loaded, not trained here." in text
    assert "No analysis of the models' inside was asked for" in text
    assert (
        "engram-eval compare /models/dense /models/moe /models/engram --tasks 'pocket,x y' "
        "--limit 5 --with knn,rag"
    ) in text
    assert "untuned" not in text and "is not recorded" not in text


def test_checkpoints_that_no_task_tells_apart(study):
    rows = [json.loads(x) for x in (study / "comparisons.jsonl").read_text().splitlines()]
    kept = [row | {"informative": False} for row in rows if row["name"] != "heldout"]
    write_jsonl(study / "comparisons.jsonl", [row for row in kept if row["name"] != "tasks"])
    config = json.loads((study / "study.json").read_text())
    config["evaluate"]["heldout"] = False
    write_json(study / "study.json", config)
    write_metrics(study, [r for r in read_metrics(study) if r["split"] == "test"])
    assert "No clear difference: no task tells engram and moe apart." in rebuilt(study).text()


def test_empty_folder_still_makes_a_page(tmp_path):
    page = rebuilt(tmp_path)
    assert "study.json : the file is missing" in page.text()
    assert "No answer yet: fewer than two models are recorded." in page.text()


DAMAGE = {
    "{broken": "not JSON",
    '{"name": "x", "metric": "acc", "value": 1, "schema": 99}': "schema 99",
    '{"name": "x", "metric": "no_such_metric", "value": 1}': "no_such_metric",
    '{"name": "x", "metric": "acc", "value": NaN}': "not finite",
    '{"name": "x", "metric": "acc", "value": "0.5"}': "wrong type",
    '{"name": "x", "metric": "acc", "value": 1, "slice": "code"}': "slice",
    '{"name": "x", "metric": "acc", "value": 1, "layer": [1]}': "layer",
    '{"name": "x", "metric": ["acc"], "value": 1}': "wrong type",
    '{"name": "x", "metric": "acc"}': "value",
    "[" * 100_000: "nested",
    "7": "expected a metric row",
}


def test_damaged_rows_are_told_and_the_rest_is_shown(study):
    path = study / "metrics.jsonl"
    path.write_text("\n".join([*DAMAGE, path.read_text()]))
    text = rebuilt(study).text()
    assert f"{len(DAMAGE)} recorded entries could not be read" in text
    for number, reason in enumerate(DAMAGE.values(), start=1):
        told = re.search(rf"metrics.jsonl, line {number} : (.*?)(?= metrics.jsonl, line|$)", text)
        assert told and reason in told[1], (number, told)
    assert "engram predicts held-out text better than moe" in text


NONSENSE = ("[]", "{}", "null", "{broken", '{"a": 1}', "[1, {}]", '{"models": [3]}', "\xff")


@pytest.mark.parametrize(
    "name", ["study.json", "ledger.json", "stages.json", "comparisons.jsonl", "verdicts.json"]
)
def test_any_file_may_hold_nonsense(study, name):
    for content in NONSENSE:
        (study / name).write_bytes(content.encode("latin-1"))
        found = load_study(study)
        assert len(found.rows) > 100
        fine = content in (
            {"stages.json": ("[]",), "verdicts.json": ("[]",), "comparisons.jsonl": ()}.get(name)
            or ("{}",)
        )
        harmless = name == "study.json" and content.startswith("{") and content != "{broken"
        assert [p for p in found.problems if p.where.startswith(name)] or fine or harmless
    assert "engram-eval" in rebuilt(study).text()


def test_damaged_samples_and_logs_are_told(study):
    stages = json.loads((study / "stages.json").read_text())
    folder = study / next(s for s in stages if s["label"] == "train engram seed 0")["folder"]
    (folder / "train.jsonl").write_text('{"step": 1}\n')
    samples = study / next(s for s in stages if s["label"] == "evaluate moe seed 0")["folder"]
    (samples / "samples" / "pocket_add.jsonl").write_text('{"doc": 7}\n{"doc": {"choices": []}}\n')
    text = rebuilt(study).text()
    assert "train.jsonl, line 1" in text and "pocket_add.jsonl, line 1" in text


KEEP = ("metric", "split", "stage", "status", "folder", "site", "condition", "units")


def poisoned(value, text, keep=()):
    """Put ``text`` behind every string of a JSON value, but for those of kept keys."""
    if isinstance(value, dict):
        return {k: v if k in keep else poisoned(v, text, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(item, text, keep) for item in value]
    return f"{value}{text}" if isinstance(value, str) else value


def poison(folder, text):
    """Put ``text`` into every field of a study folder that the report may show."""
    write_metrics(folder, [poison_row(row, text) for row in read_metrics(folder)])
    config, ledger, stages = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("study", "ledger", "stages")
    )
    write_json(folder / "study.json", poisoned(config, text))
    write_json(folder / "ledger.json", {f"{k}{text}": poisoned(v, text) for k, v in ledger.items()})
    for path in folder.parent.glob("store/*/samples/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_jsonl(path, poisoned(lines, text, ("id",)))
    stages = poisoned(stages, text, KEEP)
    stages[0] |= {"status": f"failed{text}", "error": text}
    write_json(folder / "stages.json", stages)
    claims = poisoned(json.loads((folder / "verdicts.json").read_text()), text, ("unit",))
    write_json(folder / "verdicts.json", claims)
    comparisons = [json.loads(x) for x in (folder / "comparisons.jsonl").read_text().splitlines()]
    for entry in comparisons:
        entry["name"] += "" if entry["name"] == "heldout" else text
    write_jsonl(folder / "comparisons.jsonl", poisoned(comparisons, text, (*KEEP, "name")))


@pytest.fixture(scope="module")
def clean(original):
    return rebuilt(original)


@pytest.mark.parametrize("text", [HOSTILE[1], "".join(HOSTILE)])
def test_hostile_text_in_every_field_is_inert(study, clean, text):
    poison(study, text)
    page = rebuilt(study)
    raw = (study / "report.html").read_text()
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in clean.tags} | {"pre"}
    names = {name for _, attrs in clean.tags for name in attrs}
    assert {name for _, attrs in page.tags for name in attrs} <= names
    assert "alert(1)</script>" not in raw and "\x00" not in raw
    pictures = [[a for a in p.all("svg") if a.get("role") == "img"] for p in (page, clean)]
    assert len(pictures[0]) == len(pictures[1])
    assert text in page.text() or "{{ 7 * 7 }}" in page.text()


def poison_row(row, text):
    slices = {key: f"{value}{text}" for key, value in row["slice"].items()}
    other = row["other"] and {**row["other"], "model": f"{row['other']['model']}{text}"}
    known = ("heldout", "train", "logit_lens", "linear", "knockout", "cka")
    name = row["name"] if row["name"] in known else f"{row['name']}{text}"
    return {**row, "name": name, "model": f"{row['model']}{text}", "slice": slices, "other": other}


def test_spreadsheet_formulas_are_disarmed_but_numbers_stay():
    text = to_csv([{"a": "=1+1", "b": -2.5, "c": "@x"}])
    assert text == "a,b,c\n'=1+1,-2.5,'@x\n"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (None, float | None, True),
        ([1, 2], list[int], True),
        (["x"], list[int], False),
        ({"a": "b"}, dict[str, str], True),
        ({"a": 1}, dict[str, str], False),
        ("x", str, True),
    ],
)
def test_shapes(value, hint, expected):
    assert fits(value, hint) is expected


def test_no_template_marks_recorded_text_as_safe():
    from reports.build import HERE

    for path in (HERE / "templates").glob("*.html"):
        for filtered in re.findall(r"\{\{[^}]*\|\s*safe[^}]*\}\}", path.read_text()):
            assert re.match(r"\{\{ ' class=\"\w+\"' \| safe", filtered), (path.name, filtered)
