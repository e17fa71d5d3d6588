"""Tuning goes on beyond its grid: towards a best that lies at the edge, else closer to it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import training_tools as tools

from engram_eval.check import check_study
from engram_eval.config import TUNED, TrainConfig, TuneConfig
from engram_eval.config_json import key_dict
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.stage_config import TuneStage
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from engram_eval.training import tune as module
from engram_eval.training.loop import TrainingError
from engram_eval.training.tune import candidates, following, second_dial, tune

QUIET = Reporter(quiet=True)
BASE = tools.SETTINGS


def stage(name: str, dials: TuneConfig = TUNED) -> TuneStage:
    return TuneStage(tools.ARCHITECTURES[name], BASE, dials)


def search(
    name: str, best_lr: float, best_factor: float, best_embedding: float = 1.0
) -> list[TrainConfig]:
    """Tune by a loss that is a bowl in the logarithms of all rates; return what was tried."""
    config = stage(name)
    dial = second_dial(config)

    def loss(each: TrainConfig) -> float:
        second = getattr(each, dial) / getattr(BASE, dial) / best_factor if dial else 1.0
        off = each.lr / BASE.lr / best_lr, second, each.embedding_lr_multiplier / best_embedding
        return sum(w * math.log(x) ** 2 for w, x in zip((1.0, 0.3, 0.3), off, strict=True))

    tried = candidates(config)
    for _ in range(TUNED.further):
        tried.append(following(tried, [loss(each) for each in tried], config))
    return sorted(tried, key=loss)


@pytest.mark.parametrize("name", tools.ARCHITECTURES)
@pytest.mark.parametrize("best", [0.1, 0.7, 1.0, 5.0, 12.0])
def test_a_best_far_outside_of_the_grid_is_reached(name: str, best: float) -> None:
    found = search(name, best, 1.0)[0]
    assert abs(math.log2(found.lr / BASE.lr / best)) < 0.5
    # The best rate is then no edge of what was tried.
    rates = [each.lr for each in search(name, best, 1.0)]
    assert min(rates) < found.lr < max(rates)


def test_the_second_rate_is_followed_too() -> None:
    found = search("engram", 1.0, 30.0)[0]
    assert found.table_lr_multiplier == pytest.approx(125.0)
    found = search("moe", 1.0, 0.2)[0]
    assert found.expert_lr_multiplier == pytest.approx(0.25)


@pytest.mark.parametrize("name", tools.ARCHITECTURES)
@pytest.mark.parametrize("best", [0.2, 1.0, 5.0, 25.0, 125.0])
def test_every_arm_finds_its_token_embeddings_rate(name: str, best: float) -> None:
    tried = search(name, 1.0, 1.0, best)
    assert tried[0].embedding_lr_multiplier == pytest.approx(best)
    assert len(tried) == TUNED.runs
    rates = [each.embedding_lr_multiplier for each in tried]
    assert min(rates) < best < max(rates)


def test_a_token_embedding_may_keep_its_rate() -> None:
    config = stage("moe", dataclasses.replace(TUNED, embedding_stride=1.0))
    tried = candidates(config)
    for _ in range(TUNED.further):
        tried.append(following(tried, [each.lr for each in tried], config))
    assert {each.embedding_lr_multiplier for each in tried} == {1.0}
    held = TuneStage(config.architecture, BASE, TUNED, ("embedding_lr_multiplier",))
    assert following(candidates(held), list(range(9)), held).embedding_lr_multiplier == 1.0


def test_experts_have_a_rate_of_their_own_where_there_is_no_table() -> None:
    found = {name: candidates(stage(name)) for name in tools.ARCHITECTURES}
    assert {len(settings) for settings in found.values()} == {TUNED.runs - TUNED.further}
    assert {s.expert_lr_multiplier for s in found["moe"]} == {0.5, 1.0, 2.0}
    assert {s.expert_lr_multiplier for s in (*found["dense"], *found["engram"])} == {1.0}
    assert second_dial(stage("moe", dataclasses.replace(TUNED, expert_factors=()))) is None
    frozen = {**tools.ARCHITECTURES["engram"], "engram_frozen_table": True}
    assert second_dial(TuneStage(frozen, BASE, TUNED)) == "expert_lr_multiplier"


def test_what_was_tuned_before_keeps_its_key() -> None:
    old = TuneConfig(lr_factors=(1.0,), table_factors=(1.0,))
    assert set(key_dict(old)) == {"lr_factors", "table_factors", "fraction", "seed"}
    assert "expert_lr_multiplier" not in key_dict(BASE)


def test_a_rate_that_breaks_the_training_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tools.make_corpus(tmp_path / "corpus")
    dials = TuneConfig(lr_factors=(1.0, 1e9), fraction=0.3, further=1)
    config = TuneStage(
        tools.ARCHITECTURES["dense"], dataclasses.replace(BASE, clip_norm=1e9, lr=1e-3), dials
    )
    rows = tune({"corpus": corpus}, config, None, tmp_path / "tune", QUIET)
    best = json.loads((tmp_path / "tune" / "best.json").read_text())
    assert len(rows) == dials.runs == 3
    assert rows[1].value is None and best["losses_nats"][1] is None
    assert best["lr"] < 1.0
    again = tune({"corpus": corpus}, config, None, tmp_path / "tune", QUIET)
    assert again == rows
    monkeypatch.setattr(module, "_trained_loss", lambda *_: None)
    with pytest.raises(TrainingError, match="none of 3 tuning runs came to a finite loss"):
        tune({"corpus": corpus}, config, None, tmp_path / "none", QUIET)


def test_a_rate_that_an_arm_is_about_is_not_tuned() -> None:
    study = solve(find_study("components", "smoke", tune=True))
    tunes = {n.model: n.config for n in graph(study) if n.stage == "tune"}
    assert second_dial(tunes["engram"]) == "table_lr_multiplier"
    slow = tunes["table_rate_1x"]
    assert second_dial(slow) == "expert_lr_multiplier"
    assert {s.table_lr_multiplier for s in candidates(slow)} == {1.0}
    assert len(candidates(slow)) == len(candidates(tunes["engram"]))
    assert "held" not in key_dict(tunes["engram"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tune.expert_factors=[0.5]", "as many as tune.table_factors"),
        ("tune.expert_factors=[0.5,-1.0,1.0]", "must be above 0"),
        ("tune.further=-1", "must not be negative"),
        ("tune.embedding_stride=0.5", "at least 1 is needed"),
    ],
)
def test_unfair_or_impossible_tuning_is_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_study(find_study("smoke", tune=True, assignments=[change]))
