"""The shipped studies: what each trains, and that arms are trained as they say."""

import dataclasses

import pytest

from engram_eval.check import check_study
from engram_eval.config import StudyConfig, arm_training
from engram_eval.errors import UserError
from engram_eval.ledger import ledger_of
from engram_eval.scales import SCALES
from engram_eval.studies.horizon import TOKENS, WIDTHS, widened
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve


@pytest.fixture(scope="module")
def horizon() -> StudyConfig:
    return solve(find_study("horizon", "tiny"))


def test_horizon_multiplies_tokens_and_matches_at_every_width(horizon: StudyConfig) -> None:
    arms = {model.name: model for model in horizon.models}
    tokens = {label: arm_training(horizon, arms[f"moe_{label}"]).tokens for label in TOKENS}
    assert {label: tokens[label] // tokens["1x"] for label in TOKENS} == dict(TOKENS)
    for label in {**TOKENS, **WIDTHS}:
        moe, engram = (arms[f"{name}_{label}"] for name in ("moe", "engram"))
        assert engram.match == moe.name and moe.match is None
        assert moe.train == engram.train and moe.seeds == engram.seeds
        costs = [ledger_of(arm.architecture, horizon.train.seq_len) for arm in (moe, engram)]
        assert abs(costs[1].params_total / costs[0].params_total - 1) <= 0.01
        assert abs(costs[1].flops_per_token / costs[0].flops_per_token - 1) <= 0.01
    widths = {label: arms[f"moe_{label}"].architecture["hidden_size"] for label in WIDTHS}
    assert {label: widths[label] / widths["4x"] for label in WIDTHS} == dict(WIDTHS)


@pytest.mark.parametrize("scale", SCALES)
def test_a_width_of_one_is_the_scale_itself(scale: str) -> None:
    assert widened(SCALES[scale], 1.0) == SCALES[scale]


def test_arms_shared_by_two_studies_are_trained_once(horizon: StudyConfig) -> None:
    def trained(study: StudyConfig) -> dict[str, str]:
        return {node.label: node.key for node in graph(solve(study)) if node.stage == "train"}

    main, long = trained(find_study("main", "tiny")), trained(horizon)
    for seed in range(5):
        assert main[f"train engram seed {seed}"] == long[f"train engram_4x seed {seed}"]
    assert len(set(long.values()) - set(main.values())) == 40


def test_an_arms_settings_are_checked_before_anything_runs() -> None:
    study = find_study("smoke", assignments=["models.moe.train={}"])
    assert arm_training(study, study.models[1]) == study.train

    def with_training(**settings: object) -> StudyConfig:
        moe = dataclasses.replace(study.models[1], train=settings)
        return dataclasses.replace(study, models=(study.models[0], moe, *study.models[2:]))

    check_study(with_training(lr=1e-3))
    with pytest.raises(UserError, match=r"unknown key 'models\.moe\.train\.lrr'.*'lr'"):
        check_study(with_training(lrr=1e-3))
    with pytest.raises(UserError, match=r"train\.tokens=0: at least 1"):
        check_study(with_training(tokens=0))


def test_a_study_that_scores_nothing_is_refused() -> None:
    study = find_study("smoke", assignments=["evaluate.tasks=[]", "evaluate.heldout=false"])
    with pytest.raises(UserError, match="nothing to score"):
        check_study(study)
