"""An offline mirror: built from local files, read by lm-eval's own tasks, honest about faults."""

import json
from pathlib import Path

import datasets
import pytest
from mirror_tools import ARC, GSM, MMLU, QUIET, SPEC, KnowingLM, make_mirror, write_sources

from engram_eval.cli import main
from engram_eval.errors import UserError
from engram_eval.evaluation.loading import check_data, load_tasks
from engram_eval.evaluation.mirror import open_mirror
from engram_eval.evaluation.mirror_build import build_mirror
from engram_eval.evaluation.mirror_check import check_mirror
from engram_eval.evaluation.mirror_spec import read_spec, shipped_specs
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.scores import task_rows


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("mirror"))


def add_mmlu(folder: Path) -> Path:
    """Build a mirror of MMLU's form: a configuration per subject."""
    spec = "".join(
        f'[[sets]]\nrepo = "cais/mmlu"\nconfig_from = "subject"\nsplit = "{split}"\n'
        'files = ["mmlu.jsonl"]\n'
        for split in ("test", "dev")
    )
    return make_mirror(folder, spec)


def test_datasets_reads_it_like_a_hub_repository(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path)
    arc = datasets.load_dataset(str(mirror / "allenai/ai2_arc"), "ARC-Easy", cache_dir=cache)
    assert arc["test"][0] == {
        "question": ARC[0]["q"],
        "choices": {"text": ARC[0]["options"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    assert list(arc["test"]) == list(
        load_tasks(["arc_easy"], mirror=mirror)["tasks"]["arc_easy"].eval_docs
    )


def test_unmodified_tasks_are_scored_from_it(mirror: Path, tmp_path: Path) -> None:
    loaded = load_tasks(["arc_easy", "gsm8k@2"], mirror=mirror)
    writes = {row["question"] + "\nAnswer:": f"so #### {len(row['question'])}" for row in GSM[1:4]}
    writes |= {GSM[0]["question"] + "\nAnswer:": GSM[0]["answer"]}
    lm = KnowingLM([str(n + 1) for n in range(4)], writes)
    samples = run_tasks(lm, loaded, tmp_path, QUIET)
    rows = {
        (r.name, r.metric, r.slice.get("filter")): r
        for t, s in samples.items()
        for r in task_rows(t, {}, s)
    }
    # Of six questions it knows four; in the other two all choices are equal, and the first wins.
    assert rows["arc_easy", "acc", None].value == pytest.approx(4 / 6)
    assert rows["arc_easy", "acc", None].baseline == pytest.approx(1 / 3)
    assert rows["arc_easy", "acc", None].slice == {"domain": "knowledge"}
    assert rows["gsm8k@2", "exact_match", None].value == pytest.approx(1 / 4)
    assert rows["gsm8k@2", "exact_match", "flexible-extract"].value == pytest.approx(1 / 4)
    asked = [prompt for prompt in lm.prompts if "Ann" in prompt]
    assert len(asked) == 4 and all(prompt.count("Question: Ann") == 3 for prompt in asked)


def test_groups_of_lm_eval_are_one_benchmark(tmp_path: Path) -> None:
    spec_folder = add_mmlu(tmp_path)
    loaded = load_tasks(["mmlu_virology", "mmlu_anatomy"], mirror=spec_folder)
    assert set(loaded["tasks"]) == {"mmlu_virology", "mmlu_anatomy"} and not loaded["pooled"]
    pooled = {**loaded, "pooled": {"mmlu": list(loaded["tasks"])}}
    samples = run_tasks(KnowingLM(["A"]), pooled, tmp_path / "out", QUIET)
    assert set(samples) == {"mmlu"} and len(samples["mmlu"]) == len(MMLU)
    rows = task_rows("mmlu", {}, samples["mmlu"])
    by_subtask = {r.slice.get("subtask"): r for r in rows if r.metric == "acc"}
    right = sum(row["answer"] == 0 for row in MMLU)
    assert by_subtask[None].value == pytest.approx(right / len(MMLU))
    assert by_subtask["mmlu_virology"].n == 5 and by_subtask["mmlu_anatomy"].n == 3
    limited = run_tasks(KnowingLM(["A"]), pooled, tmp_path / "few", QUIET, limit=4)
    assert len(limited["mmlu"]) == 4
    assert {sample["slices"]["subtask"] for sample in limited["mmlu"]} == set(loaded["tasks"])


def test_what_is_missing_is_named_before_anything_is_loaded(mirror: Path, tmp_path: Path) -> None:
    for names, message in (
        (["piqa"], "task 'piqa': dataset 'baber/piqa' is not in the mirror"),
        (["arc_challenge"], "no configuration 'ARC-Challenge' .* there are ARC-Easy"),
        (["arc_easy@5"], "no split 'train' .* needed for 5 examples before each question"),
        (["gsm9k"], "unknown task 'gsm9k' .did you mean 'gsm8k'"),
        (["smal"], "unknown task 'smal' .did you mean 'small'"),
        (["gsm8k@many"], "expected a number of examples"),
        (["arc_easy_bpb@3"], "no split 'train'"),
    ):
        with pytest.raises(UserError, match=message):
            check_data(names, str(mirror))
    with pytest.raises(UserError, match="no mirror here"):
        open_mirror(tmp_path)
    check_data(["arc_easy", "gsm8k@3", "arc_easy_bpb"], str(mirror))


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path)
    path = mirror / "allenai/ai2_arc/data/ARC-Easy/test.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"task 'arc_easy': .*test\.parquet: its data changed"):
        check_data(["arc_easy"], str(mirror))
    path.unlink()
    with pytest.raises(UserError, match="missing from the mirror"):
        load_tasks(["arc_easy"], mirror=mirror)
    (mirror / "mirror.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_mirror(mirror)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("arc.jsonl", "{", r"arc\.jsonl:7: malformed row: not JSON"),
        ("arc.jsonl", "[1]", r"arc\.jsonl:7: malformed row: expected an object"),
        ("arc.jsonl", '{"q": "a"}', r"arc\.jsonl:7: malformed row .*'options' is undefined"),
        ("arc.jsonl", json.dumps(ARC[0]), "7 rows, the specification says 6"),
        ("gsm.jsonl", '{"question": 1, "answer": "2"}', r"malformed row 7 .*"),
    ],
)
def test_malformed_rows_are_named_and_nothing_is_written(
    file: str, line: str, message: str, tmp_path: Path
) -> None:
    spec = write_sources(tmp_path / "sources")
    with open(spec.parent / file, "a") as handle:
        handle.write(line + "\n")
    with pytest.raises(UserError, match=message):
        build_mirror(read_spec(spec), spec.parent, tmp_path / "mirror", QUIET)
    assert not (tmp_path / "mirror").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "missing sets"),
        ("sets = []", r"no \[\[sets\]\]"),
        ("[[sets]]\nrepo = 'a/b'\nsplit = 'x'\nfiles = []\nfoo = 1", "unknown key 'sets.0..foo'"),
        ("[[sets]]\nrepo = '../b'\nsplit = 'x'\nfiles = []", "expected owner/name"),
        (SPEC.replace('"q"', '"q ~"'), "'q ~' is no expression"),
        (SPEC.replace("arc.jsonl", "arx.jsonl"), "no file 'arx.jsonl'"),
        (SPEC + SPEC[SPEC.index("[[sets]]") :], "two sets make"),
    ],
)
def test_bad_specifications_are_told(spec: str, message: str, tmp_path: Path) -> None:
    path = write_sources(tmp_path / "sources", spec)
    with pytest.raises(UserError, match=message):
        build_mirror(read_spec(path), path.parent, tmp_path / "mirror", QUIET)


def test_an_expression_cannot_leave_its_row(tmp_path: Path) -> None:
    spec = SPEC.replace('question = "q"', 'question = "q.__class__.__mro__"')
    path = write_sources(tmp_path / "sources", spec)
    with pytest.raises(UserError, match="malformed row"):
        build_mirror(read_spec(path), path.parent, tmp_path / "mirror", QUIET)


def test_a_set_of_ones_own_is_added_and_the_rest_stays(mirror: Path, tmp_path: Path) -> None:
    copy = make_mirror(tmp_path)
    own = '[[sets]]\nrepo = "me/mine"\nsplit = "test"\nfiles = ["mine.csv"]\n'
    (tmp_path / "own.toml").write_text(own)
    (tmp_path / "mine.csv").write_text("question,answer\nwho?,me\n")
    build_mirror(read_spec(tmp_path / "own.toml"), tmp_path, copy, QUIET)
    opened = open_mirror(copy)
    assert {"me/mine", "openai/gsm8k"} <= set(opened.sets)
    assert opened.sets["openai/gsm8k"] == open_mirror(mirror).sets["openai/gsm8k"]
    with pytest.raises(UserError, match="neither empty nor a mirror"):
        build_mirror(read_spec(tmp_path / "own.toml"), tmp_path, tmp_path / "sources", QUIET)
    (tmp_path / "mine.csv").write_text("question,answer\nwho?\n")
    with pytest.raises(UserError, match=r"mine\.csv:2: malformed row"):
        build_mirror(read_spec(tmp_path / "own.toml"), tmp_path, copy, QUIET)


def test_results_that_cannot_be_written_are_an_error(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    loaded = load_tasks(["arc_easy"], mirror=mirror)
    with pytest.raises(OSError, match="file"):
        run_tasks(KnowingLM(), loaded, tmp_path / "file" / "out", QUIET)


def test_check_says_what_would_run_and_why_not(mirror: Path) -> None:
    arc, piqa, bpb = check_mirror(mirror, ["arc_easy", "piqa", "gsm8k_bpb"], QUIET)
    assert (arc.runs, arc.items, arc.remark) == (True, len(ARC), "made up")
    assert not piqa.runs and "baber/piqa" in piqa.remark
    assert bpb.runs and bpb.items == 4


def test_the_verb_builds_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_sources(tmp_path / "sources")
    out = tmp_path / "mirror"
    build = ["mirror", "build", str(spec), "--root", str(spec.parent), "--out", str(out)]
    assert main([*build, "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert main(["mirror", "check", str(out), "--tasks", "arc_easy,piqa", "--quiet"]) == 1
    assert "1 of 2 would run" in capsys.readouterr().out
    assert main(["mirror", "check", str(out), "--tasks", "arc_easy", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["items"] == len(ARC)
    assert main(["mirror", "build", "evalpack", "--out", str(out)]) == 2
    assert "did you mean 'eval-pack'" in capsys.readouterr().err


def test_shipped_specifications_are_well_formed() -> None:
    assert "eval-pack" in shipped_specs()
    for name in shipped_specs():
        assert read_spec(Path(name)).sets
