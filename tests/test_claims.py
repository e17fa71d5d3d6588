"""Verdicts: the tests behind them against scipy and hand-worked cases, then simulated studies."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from engram_eval.bench.offload import STORAGES
from engram_eval.bench.offload_stage import arm_name
from engram_eval.claims.claim import Claim, Rows, Score, less_than
from engram_eval.claims.collect import read_table
from engram_eval.claims.judge import Verdict, bounds, judge
from engram_eval.claims.registry import CLAIMS, claims_of
from engram_eval.claims.shapes import describe_shape
from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.table import BRIEF, table
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.cli import main
from engram_eval.config import to_dict
from engram_eval.contrasts import (
    Estimate,
    block_contrast,
    interval,
    p_equivalent,
    p_greater,
    power_of_difference,
    power_of_equivalence,
    seed_contrast,
    slope_weights,
)
from engram_eval.errors import UserError
from engram_eval.records import (
    MetricRow,
    at_the_edge,
    read_jsonl,
    row_to_dict,
    write_json,
    write_jsonl,
)
from engram_eval.studies.registry import STUDIES, find_study
from engram_eval.variants import VARIANTS

ARMS = ("a", "b", "c", "d")
SMALLEST = 0.01


def simulate(
    rng: np.random.Generator, gain: float, spread: float = 0.004, seeds: int = 5
) -> dict[str, dict[int, float]]:
    """Draw losses: seeds share an effect, and ``b`` is better than the others by ``gain``."""
    common = rng.normal(0, 0.02, seeds)
    return {
        arm: {
            seed: 1.3 + common[seed] - (gain if arm == "b" else 0.0) + rng.normal(0, spread)
            for seed in range(seeds)
        }
        for arm in ARMS
    }


def claim(**changes: object) -> Claim:
    made = Claim("x.b", "b beats a", "nobody", "nothing", less_than("b", "a"), SMALLEST)
    return dataclasses.replace(made, **changes)


def one(values: dict, **changes: object) -> Verdict:
    return judge([(claim(**changes), values)])[0]


# --- the statistics -------------------------------------------------------------------------


def test_two_arms_with_equal_seeds_are_the_paired_t_test() -> None:
    values = simulate(np.random.default_rng(0), 0.01)
    pair = {arm: values[arm] for arm in ("a", "b")}
    a, b = (list(pair[arm].values()) for arm in ("a", "b"))
    truth = reference.ttest_rel(a, b)
    for contrast in (block_contrast, seed_contrast):
        found = contrast(pair, {"a": 1.0, "b": -1.0})
        assert found.value / found.stderr == pytest.approx(truth.statistic)
        assert found.dof == truth.df
        low, high = interval(found)
        assert (low, high) == pytest.approx(tuple(truth.confidence_interval()))
        assert 2 * min(p_greater(found), 1 - p_greater(found)) == pytest.approx(truth.pvalue)


def test_the_variance_of_all_arms_is_pooled() -> None:
    values = simulate(np.random.default_rng(1), 0.0)
    table = np.array([list(values[arm].values()) for arm in ARMS])
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    dof = (len(ARMS) - 1) * (table.shape[1] - 1)
    found = block_contrast(values, {"a": 1.0, "b": -1.0})
    assert found.value == pytest.approx(table[0].mean() - table[1].mean())
    assert found.dof == dof
    assert found.stderr == pytest.approx(np.sqrt((rest**2).sum() / dof * 2 / table.shape[1]))


def test_arms_may_have_fewer_seeds() -> None:
    values = {"a": {0: 1.0, 1: 2.1, 2: 3.0}, "b": {0: 0.5, 1: 1.5}, "c": {1: 3.0, 2: 4.2}}
    found = block_contrast(values, {"a": 1.0, "b": -1.0})
    rows = [(arm, seed, y) for arm, seeds in values.items() for seed, y in seeds.items()]
    x = np.array(
        [[arm == "b", arm == "c", s == 1, s == 2, True] for arm, s, _ in rows], dtype=float
    )
    y = np.array([row[2] for row in rows])
    solution, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    assert found.value == pytest.approx(-solution[0])
    assert found.dof == len(rows) - 5
    covariance = residual[0] / found.dof * np.linalg.inv(x.T @ x)
    assert found.stderr == pytest.approx(np.sqrt(covariance[0, 0]))


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6, unique=True), st.floats(-2, 2))
def test_slope_weights_find_a_slope(points: list[float], slope: float) -> None:
    x = {str(i): point for i, point in enumerate(points)}
    if np.ptp(points) < 1e-3:
        return
    weights = slope_weights(x)
    assert sum(weights[arm] * (2.0 + slope * x[arm]) for arm in x) == pytest.approx(slope, abs=1e-6)


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(2)
    differences = rng.normal(0.001, 0.004, 6)
    found = Estimate(differences.mean(), reference.sem(differences), 5.0)
    above = reference.ttest_1samp(differences, -SMALLEST, alternative="greater").pvalue
    below = reference.ttest_1samp(differences, SMALLEST, alternative="less").pvalue
    assert p_equivalent(found, SMALLEST) == pytest.approx(max(above, below))


def test_power_is_how_often_the_test_finds_it() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(0.01, 0.01, (20_000, 5))
    p = reference.ttest_1samp(draws, 0, axis=1)
    share = float(((p.pvalue < 0.05) & (p.statistic > 0)).mean())
    found = Estimate(0.0, 0.01 / np.sqrt(5), 4.0)
    # The standard error is known here, and drawn there: equal up to the noise of the draws.
    assert power_of_difference(found, 0.01) == pytest.approx(share, abs=0.02)
    assert power_of_difference(found, 1.0) == pytest.approx(1.0)
    assert power_of_equivalence(found, 1.0) == pytest.approx(1.0)
    assert power_of_equivalence(found, 0.001) == 0.0


@pytest.mark.parametrize("contrast", [block_contrast, seed_contrast])
def test_impossible_contrasts_are_refused(contrast) -> None:
    values = {"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}}
    with pytest.raises(UserError, match="'z' has no values"):
        contrast(values, {"a": 1.0, "z": -1.0})
    with pytest.raises(UserError, match="no spread"):
        contrast(values, {"a": 1.0, "b": -1.0})
    with pytest.raises(UserError, match=r"degrees of freedom|seeds that all arms have"):
        contrast({"a": {0: 1.0}, "b": {0: 2.0}}, {"a": 1.0, "b": -1.0})
    apart = {
        **{arm: {0: 1.0, 1: 2.0 + place} for place, arm in enumerate(("a", "c"))},
        **{arm: {2: 5.0, 3: 6.5 + place} for place, arm in enumerate(("b", "d"))},
    }
    with pytest.raises(UserError, match=r"no seeds link the arms a, b|seeds that all arms have"):
        contrast(apart, {"a": 1.0, "b": -1.0})


def test_a_pooled_contrast_adds_up_to_zero_and_a_difference_may_be_tested_against_it() -> None:
    values = {"a": {0: 1.0, 1: 2.0, 2: 2.5}, "b": {0: 1.5, 1: 2.0, 2: 2.1}}
    with pytest.raises(UserError, match="do not add up to 0"):
        block_contrast(values, {"a": 1.0, "b": 1.0})
    found = seed_contrast(values, {"a": 1.0})
    assert found.value / found.stderr == pytest.approx(
        reference.ttest_1samp(list(values["a"].values()), 0).statistic
    )


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        (lambda x: 0.0 * x, "flat"),
        (lambda x: 0.3 * x, "line"),
        (lambda x: (x - 0.7) ** 2, "parabola"),
        (lambda x: 0.1 * (x == 1.0), "step at the end"),
        (lambda x: np.maximum(x - 0.7, 0.0), "flat, then a line"),
        (lambda x: -np.minimum(x, 0.6), "a line, then flat"),
    ],
)
def test_the_planted_curve_is_recognised(curve, best: str) -> None:
    rng = np.random.default_rng(11)
    axis = {str(x): x for x in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    level = rng.normal(0, 0.1, 3)
    values = {
        arm: {s: float(curve(np.array(x)) + level[s] + rng.normal(0, 0.002)) for s in range(3)}
        for arm, x in axis.items()
    }
    found = describe_shape(axis, values)
    assert found is not None and found["best"] == best
    assert sum(found["weights"].values()) == pytest.approx(1)
    if best == "parabola":
        assert found["lowest"] == pytest.approx(0.7, abs=0.01)
        assert found["low"] <= found["lowest"] <= found["high"]
    assert describe_shape({"a": 1.0, "b": 2.0}, values) is None


def test_the_interval_of_the_lowest_point_covers_it() -> None:
    """Three seeds know little: over 300 studies about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(12)
    axis = {str(x): x for x in np.linspace(0.4, 1.0, 7)}
    held = 0
    for _ in range(300):
        values = {
            arm: {s: (x - 0.7) ** 2 + rng.normal(0, 0.02) for s in range(3)}
            for arm, x in axis.items()
        }
        found = describe_shape(axis, values)
        assert found is not None
        held += found["lowest"] is None or found["low"] <= 0.7 <= found["high"]
    assert 0.92 <= held / 300 <= 0.98
    flat = {
        arm: {s: rng.normal(0, 0.02) + 1e-4 * x**2 for s in range(3)} for arm, x in axis.items()
    }
    told = describe_shape(axis, flat)
    assert told is not None and (told["low"], told["high"]) in ((None, None), (0.4, 1.0))


# --- the verdicts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "prediction", "verdict"),
    [
        (0.05, "greater", "supported"),
        (-0.05, "greater", "reversed"),
        (0.0, "greater", "no_difference"),
        (0.0, "equal", "supported"),
        (0.05, "equal", "reversed"),
        (-0.05, "equal", "reversed"),
    ],
)
@pytest.mark.parametrize("test", ["pooled", "paired"])
def test_effects_present_absent_and_reversed(gain, prediction, verdict, test) -> None:
    values = simulate(np.random.default_rng(4), gain, spread=0.002)
    found = one(values, prediction=prediction, test=test)
    assert found.verdict == verdict
    assert found.tested is not None and found.seeds == 5
    assert found.tested.shown.estimate.value == pytest.approx(gain, abs=0.005)


def test_a_wide_spread_is_inconclusive_and_says_its_power() -> None:
    found = one(simulate(np.random.default_rng(5), 0.005, spread=0.05))
    assert found.verdict == "inconclusive"
    assert 0 < found.power < 0.5
    assert f"power {found.power:.0%}" in found.reason


def test_a_tiny_but_certain_effect_is_no_difference() -> None:
    found = one(simulate(np.random.default_rng(6), 0.004, spread=0.0005))
    assert found.verdict == "no_difference"
    assert found.reason == "smaller than 0.01 bit/byte, though not zero"


def test_too_few_seeds_and_missing_rows_are_inconclusive() -> None:
    values = simulate(np.random.default_rng(7), 0.05, seeds=2)
    found = one(values)
    assert (found.verdict, found.seeds, found.power) == ("inconclusive", 2, 0.0)
    assert found.reason == "2 seeds per arm, a test needs 3; power 0%"
    del values["b"]
    found = one(values)
    assert (found.verdict, found.reason) == ("inconclusive", "no rows of b; power 0%")
    assert found.seeds == 0


def right(gain: float, seeds: int) -> dict[str, dict[int, float]]:
    """Return shares of right answers: seeds differ, and ``b`` has as many more in each of them."""
    a = {seed: 0.1 * seed for seed in range(seeds)}
    return {"a": a, "b": {seed: share + gain for seed, share in a.items()}}


ANSWERS = Score(((1.0, Rows("update", "exact_match")),), unit="share")
MORE = {"b - a": {"b": 1.0, "a": -1.0}}


@pytest.mark.parametrize(
    ("gain", "seeds", "prediction", "verdict", "power"),
    [
        # By hand: five equal signs have a chance of 1/32 on one side and 1/16 on either.
        (0.0, 5, "greater", "no_difference", 0.0),
        (0.0, 5, "equal", "supported", 1.0),
        (0.0, 4, "equal", "inconclusive", 0.0),
        (0.3, 5, "greater", "inconclusive", 0.0),
        (0.3, 6, "greater", "supported", 1.0),
        (-0.3, 6, "greater", "reversed", 1.0),
        (0.3, 6, "equal", "reversed", 1.0),
    ],
)
def test_what_is_the_same_in_every_seed_counts_by_its_signs(
    gain, seeds, prediction, verdict, power
) -> None:
    asked = {"score": ANSWERS, "contrasts": MORE, "prediction": prediction, "test": "paired"}
    found = one(right(gain, seeds), **asked)
    assert (found.verdict, found.power) == (verdict, power)
    assert found.tested is not None and bounds(found.tested.shown) == (None, None)
    assert found.tested.shown.estimate.value == pytest.approx(gain)
    if verdict == "inconclusive":
        signs = f"{seeds} equal signs have p {0.5**seeds:.2g} uncorrected"
        assert found.reason.startswith(f"the same in every seed: {signs}; neither")
        assert found.reason.endswith("power 0%")


def test_more_claims_need_more_equal_seeds() -> None:
    asked = claim(score=ANSWERS, contrasts=MORE, test="paired")
    for seeds, verdict in ((5, "inconclusive"), (6, "no_difference")):
        told = judge([(asked, right(0.0, seeds))] * 3)
        assert {found.verdict for found in told} == {verdict}


def test_few_questions_are_too_coarse_to_agree_on_purpose() -> None:
    """Where 5 % more are answered, none of 8 is in two of three seeds; of 40, in one of eight."""
    rng = np.random.default_rng(13)
    asked = claim(score=ANSWERS, contrasts=MORE, smallest_effect=0.05, test="paired")
    granted = {}
    for questions in (8, 40):
        told = []
        for _ in range(1000):
            b = {seed: rng.binomial(questions, 0.05) / questions for seed in range(5)}
            values = {"a": dict.fromkeys(range(5), 0.0), "b": b}
            (found,) = judge([(asked, values)], {asked.id: 1 / questions})
            same = len(set(b.values())) == 1
            told.append(found.verdict == "no_difference" and same)
            assert questions == 40 or not same or "one answer more would be 0.12" in found.reason
        granted[questions] = sum(told)
    assert granted[8] == 0 and granted[40] <= 10


def test_questions_are_counted_where_answers_are() -> None:
    rows = [
        MetricRow("update", "exact_match", 0.0, model="a", seed=seed, n=n, condition=condition)
        for seed, n in enumerate((40, 20, 40))
        for condition in (None, "before")
    ]
    after = Rows("update", "exact_match")
    gain = Score(((1.0, after), (-1.0, after._replace(condition="before"))))
    assert read_table(rows).step(gain) == 1 / 20
    assert read_table([dataclasses.replace(row, n=None) for row in rows]).step(gain) == np.inf


def test_bits_that_are_the_same_in_every_seed_were_read_twice() -> None:
    found = one(right(0.0, 5), contrasts=MORE, test="paired")
    assert found.tested is None and found.reason == "contrast: no spread over seeds; power 0%"


def test_a_shape_holds_only_if_all_its_parts_do() -> None:
    shape = {"a - b": {"a": 1.0, "b": -1.0}, "c - b": {"c": 1.0, "b": -1.0}}
    values = simulate(np.random.default_rng(8), 0.05, spread=0.002)
    assert one(values, contrasts=shape).verdict == "supported"
    flat = {**values, "c": {seed: value + 0.0003 for seed, value in values["b"].items()}}
    assert one(flat, contrasts=shape).verdict == "no_difference"
    falling = {**values, "c": {seed: value - 0.05 for seed, value in values["b"].items()}}
    found = one(falling, contrasts=shape)
    assert found.verdict == "reversed"
    assert found.tested is not None and found.tested.shown.label == "c - b"


def test_false_verdicts_stay_within_the_nominal_level() -> None:
    """Over 1,000 studies each: the chance of any false one of a kind is at most 5 %.

    Without an effect a difference is the false verdict; with one of the smallest size, that there
    is none.
    """
    rng = np.random.default_rng(9)
    false: dict[str, int] = dict.fromkeys(("found", "contradicted", "lost", "granted"), 0)
    for _ in range(1000):
        values = simulate(rng, 0.0, spread=0.004)
        shifted = {**values, "b": {s: v - SMALLEST for s, v in values["b"].items()}}
        for drawn, prediction, name, words in (
            (values, "greater", "found", ("supported", "reversed")),
            (values, "equal", "contradicted", ("reversed",)),
            (shifted, "greater", "lost", ("no_difference",)),
            (shifted, "equal", "granted", ("supported",)),
        ):
            claims = [
                claim(contrasts=less_than("b", other), prediction=prediction)
                for other in ("a", "c", "d")
            ]
            told = {verdict.verdict for verdict in judge([(c, drawn) for c in claims])}
            false[name] += bool(told & set(words))
    limit = 50 + 3 * np.sqrt(1000 * 0.05 * 0.95)
    assert max(false.values()) <= limit, false
    assert min(false.values()) > 5, "a test that never errs at the 5 % level is not the declared"


# --- the declared claims --------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_whole_and_about_arms_of_its_study(name: str) -> None:
    found = CLAIMS[name]
    assert found.id == name and name.split(".")[0] == found.study in STUDIES
    assert found.smallest_effect > 0
    assert all((found.sentence, found.source, found.published, found.score.unit))
    study = find_study(found.study, "tiny")
    timed = {arm_name(each.name) for each in STORAGES} if study.offload.repeats else set()
    beside = {*study.baselines, *study.update.ways}
    assert set(found.arms) <= {model.name for model in study.models} | beside | timed
    differs = sum(weight for weight, _ in found.score.terms) == 0
    for weights in found.contrasts.values():
        assert sum(weights.values()) == pytest.approx(0) or (differs and found.test == "paired")
    inner = {arm.partition("+")[0] for arm in found.arms}
    seeds = [len(model.seeds) for model in study.models if model.name in inner]
    assert min(seeds or [study.offload.repeats]) >= (5 if found.study in ("main", "horizon") else 3)
    assert set(found.axis or {}) <= {model.name for model in study.models}


def test_the_first_look_shares_the_claims_about_its_arms() -> None:
    arms = {model.name for model in find_study("brief").models}
    ids = {found.id for found in claims_of("brief")}
    assert "main.loss" in ids and "main.extra" not in ids
    assert all(set(CLAIMS[i].arms) <= arms for i in ids)
    assert claims_of("compare") == []


def test_a_model_with_a_memory_beside_it_is_compared_seed_by_seed() -> None:
    """It is the same training twice, and an n-gram model smooths its spread away."""
    beside = [c for c in CLAIMS.values() if any("+" in arm for arm in c.arms)]
    assert beside and all(found.test == "paired" for found in beside)


@pytest.mark.parametrize("scale", ["smoke", "tiny", "quick"])
def test_the_last_block_is_the_last_at_every_scale(scale: str) -> None:
    arms = [model.name for model in find_study("placement", scale).models]
    found = {c.id.partition(".")[2]: c for c in claims_of("placement", arms)}
    assert [f"placement.{name}" for name in found] == [
        c.id for c in CLAIMS.values() if c.study == "placement"
    ]
    blocks = [arm for arm in arms if arm.startswith("block_")]
    assert found["early"].arms == (blocks[-1], "block_1")
    assert found["late_still_gains"].arms == ("moe", blocks[-1])
    assert set(found["flat"].arms) == set(blocks)


@pytest.mark.parametrize(("scale", "ends"), [("quick", (512, 128)), ("wiki", (2048, 512))])
def test_the_longest_context_is_set_against_the_shortest(scale: str, ends: tuple[int, int]) -> None:
    lengths = find_study("context", scale).evaluate.lengths
    assert lengths in ((), (512, 1024, 2048))
    found = {claim.id: claim for claim in claims_of("context", lengths=lengths)}
    assert set(found) == {name for name in CLAIMS if name.startswith("context.")}
    asked = [rows.slice["length"] for _, rows in found["context.longer"].score.terms]
    assert asked == [str(end) for end in ends]


def test_contexts_without_a_length_have_the_tasks_own() -> None:
    from engram_eval.claims.context import LENGTHS
    from engram_eval.evaluation.long_dataset import LENGTHS as MADE

    assert LENGTHS == MADE


def test_horizon_contrasts_are_slopes_of_the_gap() -> None:
    (weights,) = CLAIMS["horizon.vanishes_with_tokens"].contrasts.values()
    gaps = {"1x": 0.30, "4x": 0.20, "16x": 0.10}
    losses = {f"moe_{k}": 1.5 + gap for k, gap in gaps.items()}
    losses |= {f"engram_{k}": 1.5 for k in gaps}
    assert sum(w * losses[arm] for arm, w in weights.items()) == pytest.approx(0.05)


# --- from rows to a file --------------------------------------------------------------------


def rows_of(values: dict, name: str = "heldout", **fields: object) -> list[MetricRow]:
    return [
        MetricRow(name, "bits_per_byte", value, model=arm, seed=seed, **fields)
        for arm, seeds in values.items()
        for seed, value in seeds.items()
    ]


def test_scores_are_weighted_sums_of_rows() -> None:
    easy, hard = {"domain": "facts"}, {"domain": "math"}
    rows = rows_of({"a": {0: 2.0}, "b": {0: 1.0}}, slice=easy) + rows_of(
        {"a": {0: 4.0}}, slice=hard
    )
    score = Score(((1.0, Rows(slice=hard)), (-0.5, Rows(slice=easy))))
    table = read_table(rows)
    assert table.values(score) == {"a": {0: 3.0}}
    logs = table.values(dataclasses.replace(score, log=True))
    assert logs["a"][0] == pytest.approx(np.log(4) - 0.5 * np.log(2))
    with pytest.raises(UserError, match="2 rows fit"):
        read_table(rows * 2).values(score)


def test_scores_at_equal_loss_are_rows_of_their_own() -> None:
    early = {"step": 4, "other": {"model": "b", "seed": 0}}
    rows = rows_of({"a": {0: 2.0}}) + rows_of({"a": {0: 3.0}}, condition="equal_loss", **early)
    rows += rows_of({"a": {0: 9.0}}, **early)
    table = read_table(rows)
    assert table.values(Score(((1.0, Rows()),))) == {"a": {0: 2.0}}
    assert table.values(Score(((1.0, Rows(condition="equal_loss")),))) == {"a": {0: 3.0}}


def test_a_mean_over_tasks_takes_those_that_inform() -> None:
    def row(task: str, model: str, value: float) -> MetricRow:
        return MetricRow(task, "acc", value, model=model, seed=0, split="test", n=200,
                         baseline=0.25, slice={"domain": "code"}, stage="evaluate")  # fmt: skip

    rows = [row("one", "a", 0.6), row("two", "a", 0.8), row("one", "b", 0.5), row("two", "b", 0.4)]
    rows += [row("guessed", "a", 0.25), row("guessed", "b", 0.26)]
    early = [row("one", "a", 0.1), row("guessed", "a", 0.9)]
    rows += [dataclasses.replace(r, condition="equal_loss") for r in early]
    score = Score(((1.0, Rows("tasks", "acc", {"domain": "code"})),))
    found = read_table(rows).values(score)
    assert found == {"a": {0: pytest.approx(0.7)}, "b": {0: pytest.approx(0.45)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study folder of the controls whose memory is 0.1 bits per byte better than all others."""
    rng = np.random.default_rng(10)
    arms = [model.name for model in find_study("controls", "tiny").models]
    values = {
        arm: {s: 1.3 - (0.1 if arm == "engram" else 0) + rng.normal(0, 0.002) for s in range(3)}
        for arm in arms
    }
    write_json(tmp_path / "study.json", {"name": "controls", "scale": "tiny",
                                         "models": [{"name": arm} for arm in arms],
                                         "evaluate": {"tasks": []}})  # fmt: skip
    write_json(tmp_path / "ledger.json", {arm: {"tuned": arm == "engram"} for arm in arms})
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(values)])
    return tmp_path


def test_verdicts_can_be_traced_to_rows(folder: Path) -> None:
    write_verdicts(folder)
    found = {entry["id"]: entry for entry in read_verdicts(folder)}
    assert list(found) == [c.id for c in claims_of("controls")]
    assert found["controls.random_index"]["verdict"] == "supported"
    assert found["controls.capacity_one"]["verdict"] == "reversed"
    assert found["controls.one_row_adds_nothing"]["verdict"] == "supported"
    assert found["controls.bigram"]["verdict"] == "reversed"
    assert not any(entry["tuned"] for entry in found.values())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    for entry in found.values():
        (selector,) = entry["rows"]
        for arm, seeds in entry["values"].items():
            for seed, value in seeds.items():
                fits = [
                    r["value"]
                    for r in rows
                    if r["model"] == arm
                    and r["seed"] == int(seed)
                    and all(r[k] == selector[k] for k in ("name", "metric", "slice"))
                ]
                assert fits == [value]
        for part in entry["contrasts"]:
            means = {arm: np.mean(list(v.values())) for arm, v in entry["values"].items()}
            effect = sum(w * means[arm] for arm, w in part["weights"].items())
            assert part["effect"] == pytest.approx(effect)
            assert part["ci_low"] < part["effect"] < part["ci_high"]


def test_what_is_not_trained_tells_nothing_of_the_spread_over_trainings(folder: Path) -> None:
    write_verdicts(folder)
    alone = read_verdicts(folder)
    noise = np.random.default_rng(13).normal(1, 1, 3)
    mixed = rows_of({"moe+ngram": {seed: float(value) for seed, value in enumerate(noise)}})
    rows = [*read_jsonl(folder / "metrics.jsonl"), *(row_to_dict(row) for row in mixed)]
    write_jsonl(folder / "metrics.jsonl", rows)
    write_verdicts(folder)
    assert read_verdicts(folder) == alone


PUBLIC = {
    "triviaqa": ("triviaqa_bpb", "knowledge"),
    "mmlu": ("mmlu_bpb", "knowledge"),
    "gsm8k": ("gsm8k_bpb@0", "math"),
    "humaneval": ("humaneval_bpb", "code"),
}


def test_tasks_that_tell_nobody_apart_are_the_reason(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    write_json(tmp_path / "study.json", to_dict(study))
    losses = {model.name: dict.fromkeys(range(3), 1.0) for model in study.models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry["reason"] for entry in read_verdicts(tmp_path)}
    assert told["main.tasks_code"] == "no task of its domain tells models apart; power 0%"
    assert told["main.loss"] == "contrast: no spread over seeds; power 0%"


def test_a_row_without_a_value_is_no_missing_row(tmp_path: Path) -> None:
    """A share of what was gained is not defined where nothing was."""
    (claim,) = (c for c in claims_of("mechanism") if c.id == "mechanism.facts_rely_on_memory")
    rows = [
        MetricRow(r.name, r.metric, None, model="engram", seed=seed, slice=r.slice,
                  condition=r.condition, site=r.site, layer=r.layer)
        for _, r in claim.score.terms for seed in range(3)
    ]  # fmt: skip
    write_json(tmp_path / "study.json", to_dict(find_study("mechanism", "smoke")))
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry["reason"] for entry in read_verdicts(tmp_path)}
    assert told[claim.id] == "engram: their rows have no value; power 0%"
    assert told["mechanism.early_lens"] == "no rows of moe, engram; power 0%"


@pytest.mark.parametrize(
    ("tasks", "asked"), [([], set()), (["triviaqa_bpb"], {"triviaqa"}), (["small"], set(PUBLIC))]
)
def test_a_claim_on_a_benchmark_is_made_where_it_is_asked(
    tmp_path: Path, tasks: list[str], asked: set[str]
) -> None:
    study = find_study("main", "smoke")
    study = dataclasses.replace(study, evaluate=dataclasses.replace(study.evaluate, tasks=tasks))
    write_json(tmp_path / "study.json", to_dict(study))
    rows = [
        row
        for task, domain in PUBLIC.values()
        for arm, better in (("moe", 0.0), ("engram", 0.5))
        for row in rows_of(
            {arm: {seed: 3 - better + better * 0.01 * (seed - 1) for seed in range(3)}},
            name=task,
            slice={"domain": domain},
        )
    ]
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"].partition(".")[2]: entry for entry in read_verdicts(tmp_path)}
    assert set(told) & set(PUBLIC) == asked
    assert all(told[name]["effect"] == pytest.approx(0.5) for name in asked)


def test_claims_about_arms_that_a_study_leaves_out_are_not_made(tmp_path: Path) -> None:
    study = find_study("mechanism", "smoke", arms=("moe", "engram"))
    write_json(tmp_path / "study.json", to_dict(study))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in study.models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"] for entry in read_verdicts(tmp_path)}
    asked = [c for c in claims_of("mechanism") if set(c.arms) <= {"moe", "engram"}]
    assert told == {claim.id for claim in asked} and "mechanism.early_lens" in told
    assert "mechanism.early_lens_beyond_bigram" not in told


def test_two_names_of_one_model_are_not_compared(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    moe = next(model for model in study.models if model.name == "moe")
    models = tuple(
        dataclasses.replace(
            moe if model.name == "engram" else model, name=model.name, match="dense", solved=True
        )
        for model in study.models
    )
    write_json(tmp_path / "study.json", to_dict(dataclasses.replace(study, models=models)))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry for entry in read_verdicts(tmp_path)}
    assert told["main.loss"]["reason"] == "moe and engram are one and the same model; power 0%"
    assert "one and the same" not in told["main.baseline"]["reason"]


def test_claims_on_domains_are_made_of_own_text_only_where_it_has_them(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    own = dataclasses.replace(study.corpus, paths=("mine.jsonl",))
    write_json(tmp_path / "study.json", to_dict(dataclasses.replace(study, corpus=own)))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in study.models}
    rows = [*rows_of(losses), *rows_of(losses, slice={"domain": "code"})]
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"] for entry in read_verdicts(tmp_path)}
    assert {"main.loss", "main.baseline", "main.code", "main.tasks_code"} <= told
    assert not told & {"main.knowledge", "main.math", "main.code_as_much", "main.in_context"}


def test_a_best_rate_at_the_edge_of_what_was_tried_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = json.loads((folder / "study.json").read_text())
    names = [model["name"] for model in study["models"]]
    write_json(folder / "ledger.json", {name: {"tuned": True} for name in names})
    runs = [
        MetricRow("tune", "loss_nats", loss, model=name, split="val", slice=dict(labels))
        for name in names
        # The loss falls up to the highest rate for one arm alone.
        for loss, *labels in (
            (3.0, ("lr", "0.01"), ("table_lr_multiplier", "5")),
            (2.0, ("lr", "0.02"), ("table_lr_multiplier", "1")),
            (1.0 if name == "random_index" else 2.5, ("lr", "0.04"), ("table_lr_multiplier", "5")),
        )
    ]
    rows = [*read_jsonl(folder / "metrics.jsonl"), *(row_to_dict(row) for row in runs)]
    write_jsonl(folder / "metrics.jsonl", rows)
    write_verdicts(folder)
    for entry in read_verdicts(folder):
        touched = "random_index" in {arm for each in entry["contrasts"] for arm in each["weights"]}
        assert entry["tuned"] and entry["at_edge"] == ["random_index"] * touched
    assert main(["claims", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "tuned to the edge of what was tried" in line]
    assert told and all("controls." in line for line in told)
    assert len(told) == sum(bool(entry["at_edge"]) for entry in read_verdicts(folder))
    assert not any("untuned" in line for line in lines)


@pytest.mark.parametrize(("factor", "edge"), [("25", True), ("5", False)])
def test_a_second_rate_may_be_at_its_edge_too(factor: str, edge: bool) -> None:
    runs = [("0.1", "1"), ("0.2", "5"), ("0.4", "25"), ("0.2", "25"), ("0.2", factor)]
    rows = [
        MetricRow("tune", "loss_nats", 3.0 - place, model="a", split="val",
                  slice={"lr": lr, "table_lr_multiplier": table})
        for place, (lr, table) in enumerate(runs)
    ]  # fmt: skip
    assert at_the_edge(rows) == ({"a"} if edge else set())


def test_the_command_prints_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_verdicts(folder)
    assert main(["claims", str(folder), str(folder)]) == 0
    text = capsys.readouterr().out
    count = len(claims_of("controls"))
    assert f"{2 * count} claims, each at its scale only" in text
    assert "at this scale (tiny), 3 seeds, untuned" in text
    assert main(["claims", str(folder), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == count and all(set(BRIEF) <= set(entry) for entry in entries)


def test_the_command_prints_curves_and_effects_without_an_interval() -> None:
    curves = {"flat": 0.005, "line": 0.2, "parabola": 0.795}
    shape = {"weights": curves, "lowest": 0.58, "low": 0.4, "high": 0.7}
    entry = {
        "id": "x.b", "claim": "b", "source": "s", "published": "p", "verdict": "supported",
        "effect": 0.0, "ci_low": None, "ci_high": None, "unit": "share", "seeds": 6,
        "scale": "tiny", "tuned": True, "shape": shape,
    }  # fmt: skip
    text = table([entry, {**entry, "shape": {**shape, "lowest": None}}])
    evidence = "weights of evidence: parabola 80%, line 20%"
    assert f"{evidence}; a parabola is lowest at 0.58 (0.40 to 0.70) on the axis\n" in text
    assert f"{evidence}\n" in text and text.count("+0.0000 in every seed, share") == 2


def test_a_folder_without_verdicts_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", str(tmp_path)]) == 2
    assert "no verdicts.json here" in capsys.readouterr().err
    (tmp_path / "verdicts.json").write_text("[")
    assert main(["claims", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_study_without_verdicts_beside_others_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_verdicts(folder)
    other = folder / "other"
    other.mkdir()
    (other / "provenance.json").write_text("{}")
    assert main(["claims", str(folder), str(other)]) == 0
    told = capsys.readouterr()
    assert "controls.random_index" in told.out and f"{other}: no claim" in told.err
    assert main(["claims", str(folder), str(folder / "nowhere")]) == 2


def test_variants_that_controls_name_exist() -> None:
    names = {model.name for model in find_study("controls", "tiny").models}
    assert names - {"capacity_one_bare"} <= set(VARIANTS)
