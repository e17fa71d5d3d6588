"""What a study will take: counted stages, and times from what their kinds take elsewhere."""

import json
from pathlib import Path

import pytest
from models_fixture import build
from tokenizer_tools import one_word_tokenizer

from engram_eval.cli import main
from engram_eval.config import StudyConfig
from engram_eval.running import plan as module
from engram_eval.running.plan import plan, plan_table
from engram_eval.running.stage_seconds import PROBES, TYPICAL, other_seconds, usual_pace
from engram_eval.stages import STAGES
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from probes import registry as probes

QUICK_PACE = usual_pace()


def others(study: StudyConfig, pace: float | None = QUICK_PACE) -> dict[str, float]:
    return other_seconds(graph(study), study, pace)


def test_the_quick_study_takes_what_its_stages_take_and_a_slower_machine_longer() -> None:
    study = solve(find_study("quick"))
    stages = [node.stage for node in graph(study)]
    found = others(study)
    assert set(found) == set(stages) - {"train"}
    for stage in set(found) - {"probe", "probe_pair"}:
        assert found[stage] == pytest.approx(stages.count(stage) * TYPICAL[stage])
    asked = [node.config.probe for node in graph(study) if node.stage == "probe"]
    assert found["probe"] == pytest.approx(sum(PROBES.get(p, TYPICAL["probe"]) for p in asked))
    slow = others(study, 3 * QUICK_PACE)
    assert 2.8 < slow["evaluate"] / found["evaluate"] <= 3
    # Text is made by no model.
    assert slow["corpus"] == found["corpus"]


def test_less_to_score_and_to_probe_takes_less() -> None:
    def seconds(*changes: str) -> dict[str, float]:
        return others(solve(find_study("quick", assignments=list(changes))))

    found = seconds()
    no_tasks = seconds("evaluate.tasks=[]")["evaluate"]
    assert 0 < no_tasks < 0.5 * found["evaluate"]
    assert seconds("evaluate.limit=20")["evaluate"] < 0.5 * found["evaluate"]
    assert 0.25 < seconds("probe.tokens=4096")["probe"] / found["probe"] < 0.35
    assert "probe" not in seconds("probe.probes=[]", "probe.equal_loss=[]")


def test_every_kind_of_stage_and_probe_that_takes_long_is_known() -> None:
    assert set(TYPICAL) == set(STAGES)
    assert set(PROBES) <= set(probes.PROBES)


def test_measurements_take_their_time_one_after_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "default_workers", lambda: 4)
    assert main(["plan", "offload", "--scale", "quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "offload at scale quick" and len(lines) == 2
    assert lines[1].startswith("all 5 stages about 5 min, side by side on 4 cores 5 min; ")


def test_stages_side_by_side_and_nothing_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    study = solve(find_study("smoke", tune=True))
    monkeypatch.setattr(module, "default_workers", lambda: 1)
    planned = plan(study, measure=False)
    assert "about" not in plan_table(planned)
    assert planned["stages"]["count"] == len({node.key for node in graph(study)})
    assert planned["tuning"]["runs"] == study.tune.runs == 20
    for row in planned["models"].values():
        row["training_seconds"] = 100.0
    planned["stages"]["other_seconds"] = {"evaluate": 200.0}
    *_, trainings, whole = plan_table(planned).splitlines()
    # Five models of 100 s; each of the three arms 20 times a quarter more.
    assert trainings == "training takes about 8 min and tuning 25 min on one core of this machine"
    assert whole.startswith(f"all {planned['stages']['count']} stages about 37 min; ")
    planned["workers"] = 2
    assert "37 min, side by side on 2 cores 18 min; " in plan_table(planned)
    assert json.loads(json.dumps(planned)) == planned


@pytest.mark.parametrize("named", ['update.ways=["engram+row"]', 'baselines=["ngrams"]'])
def test_a_plan_knows_what_it_is_asked_for(named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "--no-time", "--set", named]) == 2
    assert "unknown" in capsys.readouterr().err


def test_counts_of_a_billion_do_not_run_into_each_other() -> None:
    study = solve(find_study("horizon", "wiki", arms=["moe_wide"]))
    head, row = plan_table(plan(study, measure=False)).splitlines()[1:3]
    assert len(row.split()) == len(head.replace("memory MB", "memory_MB").split())
    assert row.split()[1:5] == ["1,083,940,992", "189,179,136", "1,046,192,256", "170,303,616"]


def test_what_a_study_leaves_on_a_disk_is_told_where_it_is_much() -> None:
    large = plan(solve(find_study("brief", "wiki", ["train.checkpoints=[0.5,1.0]"])), measure=False)
    bytes_of_all = sum(
        4 * row["params_total"] * 2 * len(row["seeds"]) for row in large["models"].values()
    )
    (line,) = [line for line in plan_table(large).splitlines() if "on disk" in line]
    count = 2 * sum(len(row["seeds"]) for row in large["models"].values())
    assert line.startswith(f"{count} checkpoints take {bytes_of_all / 1e9:,.0f} GB on disk")
    assert "on disk" not in plan_table(plan(solve(find_study("main", "tiny")), measure=False))


def test_models_that_are_loaded_are_named_with_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = []
    for name in ("a", "b"):
        folder = tmp_path / name
        build(vocab_size=300).save_pretrained(folder)
        one_word_tokenizer(folder)
        models.append({"name": name, "path": str(folder)})
    study = {"name": "mine", "scale": "mine", "models": models, "baselines": []}
    asked = {"probe": {"probes": ["logit_lens"], "equal_loss": []}, "evaluate": {"heldout": False}}
    (tmp_path / "mine.json").write_text(json.dumps(study | asked))
    given = ["plan", str(tmp_path / "mine.json"), "--no-time"]
    capsys.readouterr()
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine at scale mine",
        f"a  {tmp_path}/a",
        f"b  {tmp_path}/b",
        "stages: corpus 1, items 1, sample 1, load 2, evaluate 2, probe 2",
    ]
    assert main([*given, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["loaded"]["a"] == {"path": f"{tmp_path}/a", "seeds": [0]}
    kinds = {"corpus": 1, "items": 1, "sample": 1, "load": 2, "evaluate": 2, "probe": 2}
    assert planned["stages"]["kinds"] == kinds and planned["stages"]["count"] == 9
