"""Tuning: equally many runs for every arm, the best by validation text, taken by the training."""

import dataclasses
import json
from pathlib import Path

import pytest
import training_tools as tools

from engram_eval.check import check_study
from engram_eval.config import TUNED, TuneConfig
from engram_eval.errors import UserError
from engram_eval.files import read_jsonl
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.running.study_folder import study_ledger
from engram_eval.stage_config import TrainStage, TuneStage
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from engram_eval.training.stage import train
from engram_eval.training.tune import candidates, tune

QUIET = Reporter(quiet=True)
DIALS = TuneConfig(lr_factors=(1e-4, 1.0), table_factors=(0.2, 1.0), fraction=0.5)


def stage(name: str, dials: TuneConfig = DIALS) -> TuneStage:
    return TuneStage(tools.ARCHITECTURES[name], tools.SETTINGS, dials)


def test_every_arm_gets_as_many_runs_of_equal_length() -> None:
    found = {name: candidates(stage(name)) for name in tools.ARCHITECTURES}
    assert {len(settings) for settings in found.values()} == {4}
    assert {s.tokens for settings in found.values() for s in settings} == {750}
    grid = {(s.lr / tools.SETTINGS.lr, s.table_lr_multiplier) for s in found["engram"]}
    assert grid == {(1e-4, 1.0), (1e-4, 5.0), (1.0, 1.0), (1.0, 5.0)}
    rates = [s.lr / tools.SETTINGS.lr for s in found["dense"]]
    assert rates == pytest.approx([1e-4, 10 ** (-8 / 3), 10 ** (-4 / 3), 1.0])
    (only,) = candidates(stage("dense", TuneConfig(lr_factors=(0.5,))))
    assert only.lr == pytest.approx(tools.SETTINGS.lr / 2)


@pytest.fixture(scope="module")
def tuned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MetricRow]]:
    out = tmp_path_factory.mktemp("tune")
    return out, tune({"corpus": corpus}, stage("engram"), None, out, QUIET)


def test_a_rate_that_hardly_learns_is_not_chosen(tuned: tuple[Path, list[MetricRow]]) -> None:
    out, rows = tuned
    best = json.loads((out / "best.json").read_text())
    assert best["lr"] == tools.SETTINGS.lr
    losses = {(r.slice["lr"], r.slice["table_lr_multiplier"]): r.value for r in rows}
    assert len(losses) == 4 and min(losses.values()) == min(best["losses_nats"])
    assert losses[f"{best['lr']:.4g}", f"{best['table_lr_multiplier']:.4g}"] == min(losses.values())


def test_finished_runs_are_not_run_again(corpus: Path, tuned: tuple[Path, list[MetricRow]]) -> None:
    out, rows = tuned
    assert not (out / "run0" / "model").exists()
    before = (out / "run0" / "train.jsonl").stat().st_mtime_ns
    assert tune({"corpus": corpus}, stage("engram"), None, out, QUIET) == rows
    assert (out / "run0" / "train.jsonl").stat().st_mtime_ns == before


def test_training_takes_the_rates_that_were_found(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tune").mkdir()
    best = {"lr": 1e-3, "table_lr_multiplier": 2.0}
    (tmp_path / "tune" / "best.json").write_text(json.dumps(best))
    settings = dataclasses.replace(tools.SETTINGS, tokens=256)
    inputs = {"corpus": corpus, "tune": tmp_path / "tune"}
    logs = []
    for name, given, config in (
        ("by_stage", inputs, settings),
        ("by_hand", {"corpus": corpus}, dataclasses.replace(settings, **best)),
    ):
        out = tmp_path / name
        out.mkdir()
        train(given, TrainStage(tools.ARCHITECTURES["engram"], config), 0, out, QUIET)
        logs.append([(r["lr"], r["loss_nats"]) for r in read_jsonl(out / "train.jsonl")])
    assert logs[0] == logs[1]


def test_a_tuned_study_has_one_tuning_per_arm_and_says_so() -> None:
    study, plain = (solve(find_study("smoke", tune=choice)) for choice in (True, False))
    assert study.tune == TUNED
    nodes = graph(study)
    arms = {node.model: node for node in nodes if node.stage == "tune"}
    assert set(arms) == {"dense", "moe", "engram"}
    for node in nodes:
        if node.stage == "train":
            assert node.inputs["tune"] is not None
            assert node.inputs["tune"].key == arms[node.model].key
    assert not any(node.stage == "tune" for node in graph(plain))
    assert all(row["tuned"] for row in study_ledger(study).values())
    assert not any(row["tuned"] for row in study_ledger(plain).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("tune.lr_factors=[0.0]", r"tune\.lr_factors=\[0\.0\]: must be above 0"),
        ("tune.fraction=1.5", r"tune\.fraction=1\.5: must be in"),
        ("tune.table_factors=[]", r"at least one is needed"),
    ],
)
def test_impossible_tuning_is_refused(changes: str, message: str) -> None:
    study = find_study("smoke", assignments=["tune.lr_factors=[1.0]", changes])
    with pytest.raises(UserError, match=message):
        check_study(study)
