"""The graph of a study and the runner, on stages that take no time."""

import dataclasses
import io
import json
import multiprocessing
import shutil
import sys
import types
from pathlib import Path

import pytest

from engram_eval import node as node_module
from engram_eval import stages
from engram_eval.adapters.stage import load
from engram_eval.api import run
from engram_eval.cli import main
from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.errors import UserError
from engram_eval.locks import refusing_lock
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, read_record
from engram_eval.running import node_run, runner
from engram_eval.running import study_folder as study_folder_module
from engram_eval.running.runner import run_study
from engram_eval.studies.loaded import loaded_study
from engram_eval.studies.registry import find_study, is_changed, study_folder
from engram_eval.study import graph, solve
from probes.registry import PROBES

QUIET = Reporter(quiet=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the stages by functions that note that they ran."""
    seen: list[str] = []

    def make(name: str):
        def stage(inputs, config, seed, out, report):
            seen.append(name)
            if name == "train":
                (out / "model").mkdir(exist_ok=True)
            return [MetricRow(name, "acc", 0.5)]

        return stage

    module = types.ModuleType("fake_stages")
    for name in stages.STAGES:
        setattr(module, name, make(name))
    module.analyze = lambda out: seen.append("analyze")
    module.report = lambda out, file: file.write_text("report")
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    fakes = {name: stages.Stage(f"fake_stages:{name}", 1) for name in stages.STAGES}
    for where in (node_module, node_run, runner, study_folder_module):
        monkeypatch.setattr(where, "STAGES", fakes)
    # A collection of all that a test process has gathered takes half a second, after every stage.
    monkeypatch.setattr(node_run, "give_back_freed_memory", lambda: True)
    monkeypatch.setattr(runner, "ANALYZE", "fake_stages:analyze")
    monkeypatch.setattr(runner, "REPORT", "fake_stages:report")
    return seen


@pytest.fixture(scope="module")
def smoke() -> StudyConfig:
    return find_study("smoke")


@pytest.fixture(scope="module")
def brief() -> StudyConfig:
    """Return the smallest study, solved, with a probe of each kind instead of all."""
    return solve(find_study("smoke", assignments=['probe.probes=["logit_lens", "cka"]']))


def test_every_input_comes_before_its_user(smoke: StudyConfig) -> None:
    nodes = graph(solve(smoke))
    place = {node.key: index for index, node in enumerate(nodes)}
    assert len(place) == len(nodes)
    for node in nodes:
        assert all(place[source.key] < place[node.key] for source in node.inputs.values())


def test_keys_depend_on_what_matters_and_on_nothing_else(smoke: StudyConfig) -> None:
    solved = solve(smoke)

    def keys(config: StudyConfig) -> dict[str, str]:
        return {node.label: node.key for node in graph(config)}

    base = keys(solved)
    assert keys(solve(solved)) == base
    longer = keys(dataclasses.replace(solved, train=dataclasses.replace(solved.train, lr=1e-4)))
    assert longer["corpus"] == base["corpus"]
    assert longer["train moe seed 0"] != base["train moe seed 0"]
    assert longer["evaluate moe seed 0"] != base["evaluate moe seed 0"]
    question = keys(dataclasses.replace(solved, question="another"))
    assert question == base


@pytest.mark.parametrize(
    ("task", "asks"),
    [
        *((name, True) for name in ("pocket", "context_copy", "math_addition@2")),
        *((name, True) for name in ("context", "long_context", "needle_single")),
        *((name, False) for name in ("small", "gsm8k@8", "pile_loss")),
    ],
)
def test_items_are_made_where_a_task_asks_for_them(
    smoke: StudyConfig, task: str, asks: bool
) -> None:
    scored = dataclasses.replace(smoke, evaluate=dataclasses.replace(smoke.evaluate, tasks=(task,)))
    for node in graph(scored):
        if node.stage == "evaluate":
            assert ("items" in node.inputs) == asks and "corpus" in node.inputs


def test_seeds_of_one_model_first_seeds_and_matched_seeds_are_paired(smoke: StudyConfig) -> None:
    twice = [dataclasses.replace(model, seeds=(0, 1)) for model in smoke.models]
    solved = solve(dataclasses.replace(smoke, models=tuple(twice)))
    pairs = {
        node.label.removeprefix("probe_pair cka ")
        for node in graph(solved)
        if node.stage == "probe_pair" and "equal loss" not in node.label
    }
    assert {"moe seed 0 with moe seed 1", "moe seed 0 with engram seed 0"} <= pairs
    assert "moe seed 1 with engram seed 1" in pairs, "what it is matched to, of the same data order"
    assert "moe seed 1 with engram seed 0" not in pairs
    assert "dense seed 0 with engram seed 0" in pairs
    assert "dense seed 1 with engram seed 1" not in pairs


@pytest.mark.parametrize(
    ("task", "limit", "again"),
    [
        *(("long_context", 12, True), ("context", 12, True), ("needle_single", 12, True)),
        *(("context", 0, False), ("pocket", 12, False), ("small", 12, False)),
    ],
)
def test_what_a_limit_takes_of_long_contexts_is_part_of_the_key(
    smoke: StudyConfig, monkeypatch: pytest.MonkeyPatch, task: str, limit: int, again: bool
) -> None:
    scores = dataclasses.replace(smoke.evaluate, tasks=(task,), limit=limit)
    asked = dataclasses.replace(smoke, evaluate=scores, baselines=("ngram",))

    def keys() -> dict[str, str]:
        return {node.label: node.key for node in graph(asked)}

    before = keys()
    monkeypatch.setattr("engram_eval.evaluation.table.LIMITED_LONG", 99)
    changed = {label for label, key in keys().items() if before[label] != key}
    scored = {label for label in before if label.startswith(("evaluate ", "baseline "))}
    assert scored and changed == (scored if again else set())


def test_a_probe_of_a_new_version_runs_again_alone(
    smoke: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> dict[str, str]:
        return {node.label: node.key for node in graph(solve(smoke))}

    before = keys()
    for name in ("logit_lens", "cka"):
        monkeypatch.setitem(PROBES, name, PROBES[name]._replace(version=99))
    after = keys()
    changed = {label for label in after if after[label] != before[label]}
    assert changed == {label for label in after if " logit_lens " in label or " cka " in label}


def test_seeds_are_trained_one_after_the_other(smoke: StudyConfig) -> None:
    trained = [(n.seed, n.model) for n in graph(solve(smoke)) if n.stage == "train"]
    names = [model.name for model in smoke.models]
    assert [seed for seed, _ in trained] == sorted(seed for seed, _ in trained)
    for seed in {seed for seed, _ in trained}:
        of_seed = [str(name) for each, name in trained if each == seed]
        assert of_seed == sorted(of_seed, key=names.index)


def test_a_new_stage_version_is_a_new_key(
    smoke: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {node.label: node.key for node in graph(solve(smoke))}
    bumped = dict(stages.STAGES, train=stages.STAGES["train"]._replace(version=99))
    monkeypatch.setattr(node_module, "STAGES", bumped)
    after = {node.label: node.key for node in graph(solve(smoke))}
    assert after["train moe seed 0"] != before["train moe seed 0"]
    assert after["corpus"] == before["corpus"]


def test_finished_stages_do_not_run_again(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "smoke"
    assert run_study(brief, out, QUIET) == []
    assert calls.count("train") == 5
    first = (out / "metrics.jsonl").read_text()
    calls.clear()
    assert run_study(brief, out, QUIET) == []
    assert calls == ["analyze"]
    assert (out / "metrics.jsonl").read_text() == first
    assert (out / "models" / "engram" / "seed1").resolve().is_dir()
    assert (out / "corpus").resolve().is_dir()


def test_a_stage_of_another_version_runs_again_and_says_so(
    brief: StudyConfig, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "smoke", io.StringIO()
    run_study(brief, out, QUIET)
    calls.clear()
    older = node_module.STAGES["evaluate"]
    monkeypatch.setitem(node_module.STAGES, "evaluate", older._replace(version=99))
    run_study(brief, out, Reporter(out=said))
    assert calls.count("evaluate") == 5 and "train" not in calls
    assert f"evaluate: version {older.version} has become 99" in said.getvalue()
    assert said.getvalue().count("has become") == 1


def test_a_report_alone_leaves_the_records_alone(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "smoke"
    run_study(brief, out, QUIET)
    shutil.rmtree(tmp_path / "store")
    kept = {"metrics.jsonl": "", "stages.json": "[]"}
    for name, text in kept.items():
        (out / name).write_text(text)
    (out / "report.html").unlink()
    run_study(brief, out, QUIET, stages=("analyze", "report"))
    assert (out / "report.html").exists()
    assert {name: (out / name).read_text() for name in kept} == kept


@pytest.mark.parametrize("with_store", [True, False])
def test_a_report_needs_no_text_that_stayed_elsewhere(
    brief: StudyConfig, calls: list[str], tmp_path: Path, with_store: bool
) -> None:
    out, text, said = tmp_path / "smoke", tmp_path / "mine.txt", io.StringIO()
    text.write_text("What was trained on. " * 99)
    own = dataclasses.replace(brief, corpus=dataclasses.replace(brief.corpus, paths=(str(text),)))
    run_study(own, out, QUIET)
    text.unlink()
    if not with_store:
        shutil.rmtree(tmp_path / "store")
    before = (out / "metrics.jsonl").read_text()
    (out / "report.html").unlink()
    run_study(own, out, Reporter(out=said), stages=("analyze", "report"))
    assert (out / "report.html").exists() and (out / "metrics.jsonl").read_text() == before
    assert "its rows stay as they are" in said.getvalue() and str(text) in said.getvalue()
    with pytest.raises(UserError, match="no such file"):
        run_study(own, out, QUIET)
    with pytest.raises(UserError, match="no such file"):
        run_study(own, tmp_path / "other", QUIET, stages=("analyze", "report"))


def test_rows_are_owned(brief: StudyConfig, calls: list[str], tmp_path: Path) -> None:
    run_study(brief, tmp_path / "smoke", QUIET)
    rows = [json.loads(line) for line in (tmp_path / "smoke" / "metrics.jsonl").open()]
    trained = {(r["model"], r["seed"]) for r in rows if r["name"] == "train"}
    assert trained == {("dense", 0), ("moe", 0), ("moe", 1), ("engram", 0), ("engram", 1)}
    assert {row["study"] for row in rows} == {"brief"}
    assert {r["model"] for r in rows if r["stage"] == "baseline"} == {"ngram"}


def test_a_failed_stage_is_recorded_and_the_rest_goes_on(
    brief: StudyConfig, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = sys.modules["fake_stages"].train

    def train(inputs, config, seed, out, report):
        if seed == 1:
            raise RuntimeError("disk on fire")
        return fine(inputs, config, seed, out, report)

    monkeypatch.setattr(sys.modules["fake_stages"], "train", train)
    out = tmp_path / "smoke"
    failed = {node.label for node in run_study(brief, out, QUIET)}
    assert {"train moe seed 1", "evaluate moe seed 1", "train engram seed 1"} <= failed
    assert not any("seed 0" in label and "seed 1" not in label for label in failed)
    stage = next(
        s for s in json.loads((out / "stages.json").read_text()) if s["label"] == "train moe seed 1"
    )
    assert (stage["status"], stage["error"]) == ("failed", "RuntimeError: disk on fire")
    monkeypatch.setattr(sys.modules["fake_stages"], "train", fine)
    assert run_study(brief, out, QUIET) == []


def test_a_quiet_run_says_the_first_reason_and_where_all_are(
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(inputs, config, seed, out, report):
        raise RuntimeError(f"disk {seed}\non fire")

    monkeypatch.setattr(sys.modules["fake_stages"], "train", train)
    out = str(tmp_path / "smoke")
    assert main(["run", "smoke", "--quiet", "--workers", "1", "--out", out]) == 1
    told = capsys.readouterr().err.splitlines()
    reasons = [line for line in told if not line.endswith("did not finish")]
    first = told[0].removeprefix("engram-eval: ").removesuffix(" did not finish")
    why = "RuntimeError: disk 0 on fire; all reasons: engram-eval status"
    assert reasons == [told[-1]] == [f"engram-eval: {first}: {why} {out}"]


def test_a_users_mistake_ends_the_run(
    brief: StudyConfig, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corpus(inputs, config, seed, out, report):
        raise UserError("a.txt:3: not UTF-8")

    monkeypatch.setattr(sys.modules["fake_stages"], "corpus", corpus)
    with pytest.raises(UserError, match=r"a\.txt:3"):
        run_study(brief, tmp_path / "smoke", QUIET)
    assert "train" not in calls
    records = [read_record(folder) for folder in (tmp_path / "store").iterdir()]
    assert [record.status for record in records if record] == ["failed"]


def test_one_model_and_seed_alone(brief: StudyConfig, calls: list[str], tmp_path: Path) -> None:
    run_study(brief, tmp_path / "smoke", QUIET, stages=("train",), only=("moe", 1))
    assert sorted(calls) == ["corpus", "train"]


def _hold(out: Path, ready, release) -> None:
    with refusing_lock(out / ".lock"):
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_by_number(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(30)
    with (
        pytest.raises(UserError, match=f"process {holder.pid} is already at work"),
        refusing_lock(tmp_path / ".lock"),
    ):
        pass
    release.set()
    holder.join()


def test_matching_names_a_missing_model(smoke: StudyConfig) -> None:
    lone = dataclasses.replace(smoke, models=(ModelSpec("engram", {}, match="moe"),))
    with pytest.raises(UserError, match="'moe', which is not in the study"):
        solve(lone)
    twice = dataclasses.replace(smoke, models=smoke.models[:1] * 2)
    with pytest.raises(UserError, match="share a name"):
        solve(twice)


def test_models_can_be_loaded_instead_of_trained(tmp_path: Path) -> None:
    folders = []
    for name in ("a/seed0", "b/seed0"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(name.encode())
        (folder / "tokenizer.json").touch()
        folders.append(str(folder))
    config = loaded_study(folders, ["pocket"], 5, ["ngram", "b/seed0+knn"], ["text.txt"])
    assert [model.name for model in config.models] == ["a/seed0", "b/seed0"]
    assert config.baselines == ("ngram", "a/seed0+ngram", "b/seed0+ngram", "b/seed0+knn")
    assert config.corpus.paths == ("text.txt",) and not config.evaluate.heldout
    assert config.evaluate.tokenizer == "" and config.evaluate.lengths == ()
    config = loaded_study(folders, ["pocket"], 5, [], lengths=[64])
    # Nobody's text is known, so contexts are measured in the first model's tokens.
    assert (config.evaluate.tokenizer, config.evaluate.lengths) == (folders[0], (64,))
    nodes = graph(solve(config))
    assert [n.stage for n in nodes].count("load") == 2
    assert not {"train", "probe"} & {n.stage for n in nodes}
    out = tmp_path / "out"
    out.mkdir()
    load({}, nodes[-4].config, None, out, QUIET)
    assert (out / "model").resolve() == tmp_path / "a/seed0"
    (tmp_path / "a/seed0/model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="has changed"):
        load({}, nodes[-4].config, None, out, QUIET)


def test_bad_comparisons_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        loaded_study([str(tmp_path)], ["pocket"], 0, [])
    with pytest.raises(UserError, match="given twice"):
        loaded_study([str(tmp_path)] * 2, ["pocket"], 0, [])
    with pytest.raises(UserError, match=r"no config\.json; expected a folder saved by"):
        loaded_study([str(tmp_path), str(tmp_path / "b")], ["pocket"], 0, [])
    (tmp_path / "engram/seed0").mkdir(parents=True)
    for wrong, right in (("engrm/seed0", "engram"), ("engram/sed0", "seed0")):
        with pytest.raises(UserError, match=rf"{wrong}: no such folder.*{right}'"):
            loaded_study([str(tmp_path / wrong), str(tmp_path)], ["pocket"], 0, [])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(UserError, match="give the text with --corpus"):
        loaded_study([str(tmp_path)], ["pocket"], 0, ["ngram"])


def test_a_comparison_takes_the_text_that_its_models_have_read(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    run_study(brief, tmp_path / "one", QUIET)
    folders = []
    for name in ("moe", "engram"):
        folder = (tmp_path / "one/models" / name / "seed0").resolve()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(name.encode())
        (folder / "tokenizer.json").touch()
        folders.append(str(tmp_path / "one/models" / name / "seed0"))
    config = loaded_study(folders, ["pocket"], 5, ["knn"])
    assert config.corpus == brief.corpus and config.evaluate.heldout
    assert config.evaluate.seq_len == brief.train.seq_len and config.evaluate.tokenizer == ""
    assert config.baselines == ("moe/seed0+knn", "engram/seed0+knn")
    nodes = graph(solve(config))
    around = [node for node in nodes if node.stage == "baseline"]
    assert [(node.model, node.inputs["train"].stage) for node in around] == [
        ("moe/seed0+knn", "load"),
        ("engram/seed0+knn", "load"),
    ]
    for _ in range(2):
        assert run_study(config, tmp_path / "two", QUIET, ("load",)) == []
        assert (tmp_path / "two/models/moe/seed0/seed0").is_symlink()
    # One model and a memory are a comparison.
    assert loaded_study(folders[:1], ["pocket"], 5, ["rag"]).baselines == ("rag", "moe/seed0+rag")


def test_results_carry_the_names_of_the_study_that_shows_them(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    run_study(brief, tmp_path / "one", QUIET)
    named = {"moe": "baseline", "engram": "candidate", "dense": "twin"}
    models = tuple(
        dataclasses.replace(m, name=named[m.name], match=named.get(m.match or ""))
        for m in solve(brief).models
    )
    calls.clear()
    run_study(dataclasses.replace(brief, models=models), tmp_path / "two", QUIET)
    assert calls == ["analyze"]
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").open()]
    assert {row["model"] for row in rows} == {*named.values(), "ngram", None}


def test_arms_of_equal_configuration_run_once(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    solved = solve(brief)
    twin = dataclasses.replace(solved.models[1], name="moe_again")
    doubled = dataclasses.replace(solved, models=(*solved.models, twin))
    assert run_study(doubled, tmp_path / "smoke", QUIET) == []
    assert calls.count("train") == 5
    rows = [json.loads(line) for line in (tmp_path / "smoke" / "metrics.jsonl").open()]
    assert {"moe", "moe_again"} <= {row["model"] for row in rows}


def test_links_of_seeds_that_are_gone_go_too(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "smoke"
    run_study(brief, out, QUIET)
    one = tuple(dataclasses.replace(m, seeds=(0,)) for m in brief.models)
    run_study(dataclasses.replace(brief, models=one), out, QUIET)
    assert not (out / "models/moe/seed1").is_symlink()
    assert (out / "models/moe/seed0").exists()


def test_a_folder_of_another_study_is_left_as_it_is(
    brief: StudyConfig, calls: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "smoke"
    run_study(brief, out, QUIET)
    there = {path: path.read_bytes() for path in out.glob("*.json*")}
    for other in ({"name": "main"}, {"scale": "tiny"}):
        with pytest.raises(UserError) as error:
            run_study(dataclasses.replace(brief, **other), out, QUIET)
        assert "holds the study 'brief' at scale smoke, not" in str(error.value)
        assert f"another --out, or `engram-eval run {out}`" in str(error.value)
    assert there == {path: path.read_bytes() for path in out.glob("*.json*")}
    assert run_study(dataclasses.replace(brief, baselines=()), out, QUIET) == []
    (out / "study.json").write_text("{")
    assert run_study(brief, out, QUIET) == []


def test_an_interrupted_study_says_what_is_there(
    brief: StudyConfig, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(inputs, config, seed, out, report):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["fake_stages"], "evaluate", evaluate)
    out = tmp_path / "smoke"
    with pytest.raises(KeyboardInterrupt):
        run_study(brief, out, QUIET)
    states = {s["label"]: s["status"] for s in json.loads((out / "stages.json").read_text())}
    assert states["train moe seed 0"] == "ok"
    assert states["evaluate moe seed 0"] == "not run"


def test_a_late_mistake_is_recorded_and_the_rest_goes_on(
    brief: StudyConfig, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(inputs, config, seed, out, report):
        raise UserError("too few documents")

    monkeypatch.setattr(sys.modules["fake_stages"], "probe", probe)
    failed = run_study(brief, tmp_path / "smoke", QUIET)
    assert {node.stage for node in failed} == {"probe"}
    assert (tmp_path / "smoke" / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['evaluate.tasks=["nope"]'], "unknown task 'nope'"),
        (['baselines=["nrgam"]'], "unknown baseline 'nrgam' (did you mean 'ngram'?)"),
        (['probe.probes=["lens"]'], "unknown probe 'lens'"),
        (["train.tokens=-5"], "train.tokens=-5: at least 1"),
        (["train.router_aux_loss_coef=-1.0"], "train.router_aux_loss_coef=-1.0: must not be below"),
        (["train.checkpoints=[2.0]"], "2.0 is not a share"),
        (["evaluate.limit=-1"], "evaluate.limit=-1: at least 0"),
        (["evaluate.lengths=[64, 0]"], "evaluate.lengths=[64, 0]: each must be at least 1"),
        (["models=[]"], "the study has no models"),
        (["models.moe.seeds=[]"], "models.moe.seeds=[]: at least one"),
        (["models.moe.seeds=[0, 0]"], "models.moe.seeds=[0, 0]: at least one is needed, each once"),
        (["models.moe.seeds=[-1]"], "models.moe.seeds: -1 is no seed; allowed: 0 and above"),
        (["corpus.seed=-3"], "corpus.seed: -3 is no seed"),
        (["train.lr=NaN"], "train.lr: nan is no number"),
    ],
)
def test_mistakes_show_before_anything_runs(
    calls: list[str], tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        run_study(find_study("smoke", assignments=changes), tmp_path / "smoke", QUIET)
    assert message in str(error.value)
    assert calls == []


def test_a_changed_study_has_a_folder_of_its_own(smoke: StudyConfig) -> None:
    assert study_folder(smoke, "smoke") == Path("runs/smoke")
    other = find_study("smoke", assignments=["train.lr=0.1"])
    mine, theirs = study_folder(smoke, "smoke", True), study_folder(other, "smoke", True)
    assert mine != theirs and theirs.name.startswith("smoke-")


def test_a_changed_study_is_told_from_the_shipped_one(smoke: StudyConfig) -> None:
    longer = dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, tokens=32_768))
    assert not is_changed(smoke) and is_changed(longer)
    assert not is_changed(dataclasses.replace(longer, name="mine"))
    assert study_folder(longer, longer.name, changed=True) != study_folder(smoke, smoke.name)


def test_from_python_a_failure_says_why(
    calls: list[str], brief: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(sys.modules["fake_stages"], "train", fail)
    with pytest.raises(RuntimeError, match=r"train moe seed 0 \(OSError: the disk is gone\)"):
        run(brief, tmp_path / "study", quiet=True)
