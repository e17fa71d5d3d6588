"""Results are used again for the same question to the same model, and for nothing else."""

import io
from pathlib import Path
from typing import Any

import pytest
from mirror_tools import QUIET, SPEC, KnowingLM, make_mirror

from engram_eval.evaluation.loading import load_tasks
from engram_eval.evaluation.result_cache import ResultCache
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.task_hash import task_hash
from engram_eval.progress import Reporter
from engram_eval.stages import STAGES


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("cache"))


def loaded(name: str, mirror: Path) -> Any:
    return load_tasks([name], mirror=mirror)["tasks"][name]


class Unasked(KnowingLM):
    """Must not be asked."""

    def loglikelihood(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")


def test_what_was_asked_before_is_not_asked_again(mirror: Path, tmp_path: Path) -> None:
    tasks = load_tasks(["arc_easy"], mirror=mirror)
    cache = ResultCache(tmp_path / "cache", "somebody")
    lm = KnowingLM(["2", "3"])
    first = run_tasks(lm, tasks, tmp_path / "a", QUIET, 0, cache)
    out = io.StringIO()
    said = Reporter(out=out)
    again = run_tasks(
        Unasked(), load_tasks(["arc_easy"], mirror=mirror), tmp_path / "b", said, 0, cache
    )
    assert first == again
    assert "results used again: arc_easy" in out.getvalue()
    for path in (tmp_path / "a").rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    # Who is opened only when needed is not opened at all.
    run_tasks(lambda: pytest.fail("opened"), tasks, tmp_path / "c", QUIET, 0, cache)
    for other, limit in ((cache._replace(who="else"), 0), (cache, 2)):
        with pytest.raises(AssertionError, match="asked again"):
            run_tasks(Unasked(), tasks, tmp_path / f"d{limit}", QUIET, limit, other)


def test_another_version_of_the_scoring_asks_again(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = loaded("arc_easy", mirror)
    cache = ResultCache(tmp_path, "somebody")
    before = cache.entry("arc_easy", task, 0)
    assert cache.entry("arc_easy", task, 0) == before
    newer = STAGES["evaluate"]._replace(version=STAGES["evaluate"].version + 1)
    monkeypatch.setitem(STAGES, "evaluate", newer)
    assert cache.entry("arc_easy", task, 0) != before


def test_what_is_asked_decides_not_where_it_lies(mirror: Path, tmp_path: Path) -> None:
    elsewhere = make_mirror(tmp_path / "same")
    assert task_hash(loaded("arc_easy", mirror)) == task_hash(loaded("arc_easy", elsewhere))
    assert task_hash(loaded("arc_easy_bpb", mirror)) == task_hash(loaded("arc_easy_bpb", elsewhere))


def test_other_data_examples_settings_or_code_are_another_task(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {task_hash(loaded(name, mirror)) for name in ("arc_easy", "gsm8k@0", "gsm8k@2")}
    known.add(task_hash(loaded("gsm8k@2", mirror), 2))
    assert len(known) == 4
    # Other rows; for those with examples also other rows to draw from.
    changed = make_mirror(tmp_path / "data", SPEC.replace("row_number >= 2", "row_number >= 3"))
    assert task_hash(loaded("gsm8k@0", changed)) in known
    assert task_hash(loaded("gsm8k@2", changed)) not in known
    fewer = make_mirror(tmp_path / "rows", SPEC.replace("row_number < 4", "row_number < 3"))
    assert task_hash(loaded("gsm8k@0", fewer)) not in known
    task = loaded("arc_easy", mirror)
    task.config.target_delimiter = "\n"
    assert task_hash(task) not in known


def test_a_task_is_another_one_when_the_file_of_its_function_changes(tmp_path: Path) -> None:
    source = "def process_results(doc, results):\n    return {'acc': 1.0}\n"
    found = []
    for number, text in enumerate((source, source, source.replace("1.0", "0.0"))):
        path = tmp_path / str(number) / "scorer.py"
        path.parent.mkdir()
        path.write_text(text)
        names: dict[str, Any] = {}
        exec(compile(text, str(path), "exec"), names)
        task = load_tasks(["math_addition"])["tasks"]["math_addition"]
        task.config.process_results = names["process_results"]
        found.append(task_hash(task, 1))
    assert found[0] == found[1] != found[2]


def test_results_that_cannot_be_kept_are_an_error(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    cache = ResultCache(tmp_path / "cache", "somebody")
    with pytest.raises(OSError, match="cache"):
        run_tasks(KnowingLM(), load_tasks(["arc_easy"], mirror=mirror), tmp_path, QUIET, 0, cache)
