"""Verdicts: the tests behind them against scipy and hand-worked cases, then simulated studies."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from engram_eval.analysis.contrasts import (
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
from engram_eval.bench.offload import STORAGES
from engram_eval.bench.offload_stage import arm_name
from engram_eval.claims.claim import Claim, Rows, Score, less_than
from engram_eval.claims.collect import read_table
from engram_eval.claims.judge import Verdict, bounds, judge
from engram_eval.claims.registry import CLAIMS, claims_of
from engram_eval.claims.shapes import describe_shape
from engram_eval.errors import UserError
from engram_eval.records import MetricRow
from engram_eval.studies.registry import STUDIES, find_study

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
        assert found.reason.startswith(f"the same in every seed: {signs}; after correction it nei")
        assert found.reason.endswith("power 0%")


def test_a_reason_is_true_of_an_interval_that_correction_widens() -> None:
    """What is found alone is lost among many; the reason says that it is the correction's."""
    clear = simulate(np.random.default_rng(8), 0.03, spread=0.012)
    (alone,), among = judge([(claim(), clear)]), judge([(claim(), clear)] * 30)
    assert alone.verdict == "supported" and among[0].tested is not None
    assert bounds(among[0].tested.shown)[0] > 0 and among[0].verdict == "inconclusive"
    assert among[0].reason.startswith("after correction it neither differs from zero nor")


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
    least = 5 if found.study in ("main", "horizon") else 3
    assert min(seeds or [study.offload.repeats]) >= least, f"a claim's arms need {least} seeds each"
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
