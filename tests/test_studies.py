"""The shipped studies: what each trains, and that arms are trained as they say."""

import dataclasses

import pytest

from engram_eval.arm_corpus import arm_corpus
from engram_eval.check import check_study
from engram_eval.config import StudyConfig, arm_training
from engram_eval.costs.ledger import ledger_of
from engram_eval.errors import UserError
from engram_eval.scales import SCALES
from engram_eval.studies.capacity import BIOGRAPHY_TOKENS, EXPOSURES, PEOPLE
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


def test_what_is_overridden_of_a_scale_holds_for_what_follows_from_it() -> None:
    study = find_study("horizon", "tiny", ["train.tokens=4096", "train.lr=0.5", "corpus.seed=3"])
    arms = {model.name: arm_training(study, model) for model in study.models}
    assert [arms[f"moe_{label}"].tokens for label in TOKENS] == [1024, 4096, 16384]
    assert arms["moe_narrow"].lr == pytest.approx(0.5 * WIDTHS["narrow"] ** -0.5)
    assert study.corpus.seed == 3
    told = find_study("memory-systems", "tiny", ["train.tokens=4096"])
    assert told.baseline_tokens == 4096


def test_an_override_has_the_last_word() -> None:
    assert find_study("allocation", "tiny").evaluate.tasks == ()
    study = find_study(
        "allocation", "tiny", ['evaluate.tasks=["pocket"]', "models.rho_95.seeds=[7]"]
    )
    assert study.evaluate.tasks == ("pocket",)
    assert study.models[1].seeds == (7,)


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


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optimizer", "adamm", "unknown optimizer 'adamm' .did you mean 'adamw'"),
        ("lr", -1.0, "must be above 0"),
        ("embedding_lr_multiplier", 0.0, "must be above 0"),
        ("clip_norm", 0.0, "must be above 0"),
        ("beta1", 1.0, r"must be in \[0, 1\)"),
        ("warmup_fraction", 2.0, r"must be in \[0, 1\]"),
        ("threads", -1, "must not be below 0"),
        ("save_every_s", -1.0, "must not be below 0"),
        ("skip_bad_batches", -1, "must not be below 0"),
        ("checkpoints", [0.5, 1.5], "1.5 is not a share"),
        ("accumulate", 0, "must divide train.batch_size=16"),
        ("accumulate", 3, "must divide train.batch_size=16"),
    ],
)
def test_impossible_training_is_refused_before_anything_runs(
    key: str, value: object, told: str
) -> None:
    study = find_study("smoke", assignments=[f"train.{key}={value}"])
    with pytest.raises(UserError, match=told):
        check_study(study)


def test_a_scale_is_not_a_label() -> None:
    with pytest.raises(UserError, match=r"--set scale=quick: .*follow from --scale"):
        find_study("smoke", assignments=["scale=quick"])


def test_a_study_that_scores_nothing_is_refused() -> None:
    nothing = ["evaluate.tasks=[]", "evaluate.heldout=false"]
    with pytest.raises(UserError, match="nothing to score"):
        check_study(find_study("smoke", assignments=[*nothing, "probe.probes=[]"]))
    probed = find_study("smoke", assignments=nothing)
    check_study(probed)
    assert not any(node.stage == "evaluate" for node in graph(solve(probed)))


def test_capacity_grows_the_text_and_keeps_the_models() -> None:
    study = solve(find_study("capacity", "tiny"))
    check_study(study)
    arms = {model.name: model for model in study.models}
    for label, times in PEOPLE.items():
        dense, moe, engram = (arms[f"{name}_{label}"] for name in ("dense", "moe", "engram"))
        told = {str(arm.corpus) for arm in (dense, moe, engram)}
        assert len(told) == 1 and moe.match is None and engram.match == dense.match == moe.name
        assert moe.architecture == arms["moe_1x"].architecture
        few, read = (arm_corpus(study, arms[f"moe_{each}"]) for each in ("1x", label))
        count = times * few.entities.n_entities
        assert read.entities.n_entities == count and read.vocab_size == study.corpus.vocab_size
        assert arm_training(study, moe).tokens == count * EXPOSURES * BIOGRAPHY_TOKENS


def test_each_arm_reads_and_is_asked_about_its_own_text() -> None:
    study = solve(find_study("capacity", "smoke"))
    nodes = graph(study)
    assert [node.stage for node in nodes[:3]] == ["corpus"] * 3
    assert not any(node.stage in ("items", "evaluate") for node in nodes)
    texts = {node.model: node.key for node in nodes if node.stage == "corpus"}
    for node in nodes:
        if node.stage in ("train", "probe"):
            owner = f"dense_{str(node.model).partition('_')[2]}"
            assert node.inputs["corpus"].key == texts[owner]
    place = {node.key: index for index, node in enumerate(nodes)}
    for node in nodes:
        assert all(place[source.key] < place[node.key] for source in node.inputs.values())


def test_arms_of_different_texts_are_not_compared_on_them() -> None:
    study = find_study("capacity", "smoke")
    for changes in (
        {"evaluate": dataclasses.replace(study.evaluate, heldout=True)},
        {"probe": dataclasses.replace(study.probe, probes=("cka",))},
        {"baselines": ("ngram",)},
        {"scores_at_equal_loss": True},
    ):
        with pytest.raises(UserError, match=r"text of their own \(dense_1x, moe_1x"):
            check_study(dataclasses.replace(study, **changes))
    moe = dataclasses.replace(study.models[1], corpus={"entitis": {}})
    with pytest.raises(UserError, match=r"unknown key 'models\.moe_1x\.corpus\.entitis'"):
        check_study(dataclasses.replace(study, models=(moe,)))


def test_storages_are_timed_one_after_the_other() -> None:
    study = solve(find_study("offload", "smoke", n_seeds=3))
    check_study(study)
    first, second, third = graph(study)
    assert (second.inputs["before"], third.inputs["before"]) == (first, second)
    assert [node.seed for node in (first, second, third)] == [0, 1, 2]
    assert find_study("main", "smoke", n_seeds=3).offload.repeats == 0
    for bad, told in (
        ({"repeats": -1}, "offload.repeats=-1"),
        ({"tables": (0,)}, r"offload.tables=\[0\]"),
        ({"seconds": 0.0}, "offload.seconds=0.0"),
    ):
        with pytest.raises(UserError, match=told):
            changed = dataclasses.replace(study.offload, **bad)
            check_study(dataclasses.replace(study, offload=changed))
    with pytest.raises(UserError, match="unknown scale"):
        check_study(dataclasses.replace(study, scale="mine"))
